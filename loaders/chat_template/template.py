"""Turns conversations into prompts by a model's chat template (Jinja text, usually stored in its file)."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from .budget import MAX_NESTING, MAX_OUTPUT, Budget, LimitError, tree_size
from .builtin import BUILTIN, builtin_template
from .functions import MeteredContext
from .sandbox import compile_template

MAX_SOURCE = 2**17
MAX_ERROR = 500
KEY = "tokenizer.chat_template"


class ChatTemplate:
    """A compiled template. Rendering is safe for untrusted templates and from several threads.

    source, bos_token, eos_token, name: as given; name and file appear in error messages.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        name: str | None = None,
        file: str | None = None,
    ) -> None:
        """Raises ValueError, with the line, for text that is not a Jinja template."""
        self.source, self.bos_token, self.eos_token, self.name = source, bos_token, eos_token, name
        self._file = f"{file}: " if file else ""
        if not isinstance(source, str):
            raise ValueError(f"{self._file}a chat template must be text, found {type(source).__name__}")
        if len(source) > MAX_SOURCE:
            raise ValueError(f"{self._file}a chat template has {len(source)} characters, the limit is {MAX_SOURCE}")
        try:
            self._template = compile_template(source)
        except TemplateSyntaxError as error:
            raise ValueError(self._message(error, error.lineno)) from error
        except Exception as error:  # whatever an odd template sets off in jinja's or Python's compiler
            raise ValueError(self._message(error, None)) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for a conversation; bos and eos stand in it where the template writes them.

        messages, tools and kwargs (further variables for the template) hold what JSON can hold. Raises ValueError
        when they do not, when the template refuses the conversation and when it uses up its limits.
        """
        # Without tools the variable is undefined, as in llama.cpp: some templates fail on transformers' None.
        variables = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **{name: _plain(value, name) for name, value in kwargs.items()},
            "messages": _records(messages, "messages"),
            **({} if tools is None else {"tools": _records(tools, "tools")}),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        context = self._template.new_context(variables)
        assert isinstance(context, MeteredContext)
        context.budget = Budget(len(messages), tree_size(variables, sys.maxsize))
        chunks, n_chars = [], 0
        try:
            for chunk in self._template.root_render_func(context):
                if not isinstance(chunk, str):  # of {% filter %} and {% call %}, whose values nothing else checks
                    raise TypeError(f"a block's result must be text, found {type(chunk).__name__}")
                n_chars += len(chunk)
                if n_chars > MAX_OUTPUT:
                    raise LimitError(f"the prompt is longer than {MAX_OUTPUT} characters")
                chunks.append(chunk)
        except Exception as error:  # the template is a program of a stranger: every kind can come out of it
            raise ValueError(self._message(error, self._line(error))) from error
        return "".join(chunks)

    def without_added_tokens(self, prompt: str, *, add_bos: bool, add_eos: bool) -> str:
        """The prompt without the bos and eos that the tokenizer will add around it, as llama.cpp does.

        add_bos, add_eos: whether it will. Without this, a template that writes bos itself would lead to two.
        """
        if add_bos:
            prompt = prompt.removeprefix(self.bos_token)
        if add_eos:
            prompt = prompt.removesuffix(self.eos_token)
        return prompt

    def _line(self, error: Exception) -> int | None:
        """The template's line that was running: that of the innermost frame of its compiled code."""
        line = None
        for frame, compiled_line in traceback.walk_tb(error.__traceback__):
            if frame.f_globals is self._template.root_render_func.__globals__:
                line = self._template.get_corresponding_lineno(compiled_line)
        return line

    def _message(self, error: Exception, line: int | None) -> str:
        where = f"chat template {self.name!r}" if self.name else "the chat template"
        what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        return f"{self._file}{where}{'' if line is None else f', line {line}'}: {what[:MAX_ERROR]}"


class BrokenTemplate(ChatTemplate):
    """Stands for a model's template that cannot be used: whatever needs it gets the error, and nothing else does."""

    def __init__(self, error: ValueError) -> None:
        self.source = self.bos_token = self.eos_token = ""
        self.name, self.error = None, error

    def render(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(f"{self.error}; another template can be given instead (--chat-template)") from self.error


def template_for(
    kv: Mapping[str, Any],
    *,
    bos_token: str,
    eos_token: str,
    override: str | None = None,
    variant: str | None = None,
    file: str | None = None,
) -> ChatTemplate | None:
    """The template of a model with this metadata, or None if it has none.

    override: what stands after --chat-template, the name of a built-in template or Jinja text; it replaces the
    model's. variant: asks for the model's further template of that name ("tool_use", "rerank"), which no override
    replaces. file: where the metadata comes from. Raises ValueError for unknown names and for templates that do not
    compile.
    """
    if override is not None and variant is None:
        (source, name), file = _overriding(override), None
    else:
        name = KEY if variant is None else f"{KEY}.{variant}"
        source = kv.get(name, "")
        if not isinstance(source, str):
            where = f"{file}: " if file else ""
            raise ValueError(f"{where}{name} must be text, found {type(source).__name__}")
        if not source:
            return None
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token, name=name, file=file)


def _overriding(override: str) -> tuple[str, str]:
    if override not in BUILTIN and any(marker in override for marker in ("{{", "{%", "{#")):
        return override, "--chat-template"
    return builtin_template(override), override


def _records(values: object, path: str) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise ValueError(f"{path} must be a list of objects, found {type(values).__name__}")
    for i, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}[{i}] must be an object, found {type(value).__name__}")
        if path == "messages" and not isinstance(value.get("role"), str):
            raise ValueError(f"{path}[{i}] must have a role, a text; found {value.get('role')!r:.100}")
    return [_plain(value, f"{path}[{i}]") for i, value in enumerate(values)]


def _plain(value: object, path: str, depth: int = 0) -> Any:
    """A copy in the types of JSON. Other objects have methods that nobody has checked, so they are refused."""
    if depth > MAX_NESTING // 2:
        raise ValueError(f"{path[:MAX_ERROR]} is nested deeper than {MAX_NESTING // 2} levels")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{path[:MAX_ERROR]} has the key {bad[0]!r:.100}, expected texts")
        return {str.__str__(key): _plain(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ValueError(f"{path[:MAX_ERROR]} must be what JSON can hold, found {type(value).__name__}")
