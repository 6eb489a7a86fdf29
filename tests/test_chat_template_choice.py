"""Choosing a chat template, llama.cpp's named ones, and fitting messages to what a template takes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from naiad.loaders.chat_template import (
    BUILTIN,
    ChatTemplate,
    Takes,
    adapt_messages,
    builtin_template,
    takes,
    template_for,
)

RECORDED = json.loads((Path(__file__).parent / "data" / "builtin_templates.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_template_is_llama_cpps(name: str) -> None:
    template = ChatTemplate(builtin_template(name))
    prompts = [
        template.render([{"role": role, "content": text} for role, text in conversation], add_generation_prompt=add)
        for conversation in RECORDED["conversations"]
        for add in (False, True)
    ]
    assert prompts == RECORDED["prompts"][name]


def test_builtin_names_are_llama_cpps() -> None:
    assert set(BUILTIN) == set(RECORDED["prompts"])
    with pytest.raises(ValueError, match=r"no built-in chat template 'llama9'.*chatml.*zephyr"):
        builtin_template("llama9")


KV = {
    "tokenizer.chat_template": "{{ bos_token }}model",
    "tokenizer.chat_template.tool_use": "tools{{ eos_token }}",
    "general.name": "x",
}
CHOICES: list[tuple[str, Mapping[str, Any], dict[str, str | None], str | None]] = [
    ("model", KV, {}, "<s>model"),
    ("variant", KV, {"variant": "tool_use"}, "tools</s>"),
    ("variant-despite-override", KV, {"variant": "tool_use", "override": "chatml"}, "tools</s>"),
    ("missing-variant", KV, {"variant": "rerank"}, None),
    ("name", KV, {"override": "openchat"}, "GPT4 Correct Assistant:"),
    ("jinja", KV, {"override": "{# x #}{{ eos_token }}!"}, "</s>!"),
    ("without", {}, {}, None),
    ("empty", {"tokenizer.chat_template": ""}, {}, None),
    ("name-without", {}, {"override": "chatml"}, "<|im_start|>assistant\n"),
]


@pytest.mark.parametrize(("kv", "options", "prompt"), [case[1:] for case in CHOICES], ids=[case[0] for case in CHOICES])
def test_template_for(kv: Mapping[str, Any], options: dict[str, str | None], prompt: str | None) -> None:
    template = template_for(kv, bos_token="<s>", eos_token="</s>", **options)
    assert (template and template.render([])) == prompt


def test_template_for_refuses() -> None:
    with pytest.raises(ValueError, match=r"no built-in chat template 'chat-ml'.*chatml"):
        template_for({}, bos_token="", eos_token="", override="chat-ml")
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template must be text, found list"):
        template_for({"tokenizer.chat_template": ["x"]}, bos_token="", eos_token="")
    with pytest.raises(ValueError, match=r"chat template 'tokenizer\.chat_template', line 1"):
        template_for({"tokenizer.chat_template": "{% if %}"}, bos_token="", eos_token="")


@pytest.mark.parametrize(
    ("add_bos", "add_eos", "expected"),
    [(False, False, "<s><s>x</s>"), (True, False, "<s>x</s>"), (True, True, "<s>x")],
)
def test_added_tokens_do_not_appear_twice(add_bos: bool, add_eos: bool, expected: str) -> None:
    template = ChatTemplate("{{ bos_token }}<s>x{{ eos_token }}", bos_token="<s>", eos_token="</s>")
    assert template.without_added_tokens(template.render([]), add_bos=add_bos, add_eos=add_eos) == expected
    bare = ChatTemplate("<s>x")
    assert bare.without_added_tokens("<s>x", add_bos=True, add_eos=True) == "<s>x"


LOOP = "{% for m in messages %}[{{ m.role }}]BODY{% endfor %}"
TEXTS = LOOP.replace(
    "BODY", "{{ m.content + '' }}{% for c in m.tool_calls %}{{ c.function.arguments|tojson }}{% endfor %}"
)
PARTS = LOOP.replace("BODY", "{% for p in m.content %}{{ p.text + '' }};{% endfor %}")
BOTH = LOOP.replace(
    "BODY",
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endif %}",
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEXTS
JSON_TEXT = LOOP.replace(
    "BODY", "{% for c in m.tool_calls %}{{ c.function.arguments + '' }}{% endfor %}{{ m.content + '' }}"
)
ABILITIES = [
    ("texts", TEXTS, Takes(text=True, parts=False, system=True, object_arguments=True)),
    ("parts", PARTS, Takes(text=False, parts=True, system=False, object_arguments=False)),
    ("both", BOTH, Takes(text=True, parts=True, system=True, object_arguments=False)),
    ("no-system", NO_SYSTEM, Takes(text=True, parts=False, system=False, object_arguments=True)),
    ("json-text", JSON_TEXT, Takes(text=True, parts=False, system=True, object_arguments=False)),
    ("prints-objects", LOOP.replace("BODY", "{{ m.content }}{{ m.tool_calls }}"), Takes(True, False, True, False)),
]


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in ABILITIES], ids=[case[0] for case in ABILITIES])
def test_takes(source: str, expected: Takes) -> None:
    assert takes(ChatTemplate(source)) == expected


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def calling(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}


ADAPTED = [
    ("parts-to-text", TEXTS, [{"role": "user", "content": [part("a"), part("b")]}], "[user]a\nb"),
    ("text-to-parts", PARTS, [{"role": "user", "content": "a"}], "[user]a;"),
    ("both-stay", BOTH, [{"role": "u", "content": [part("a")]}, {"role": "v", "content": "b"}], "[u]a;[v]b"),
    ("developer", TEXTS, [{"role": "developer", "content": "a"}], "[system]a"),
    ("developer-stays", "{# <|channel|> #}" + TEXTS, [{"role": "developer", "content": "a"}], "[developer]a"),
    ("merged-system", NO_SYSTEM, [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "[user]s\na"),
    ("no-content", TEXTS, [calling('{"x": [1]}')], '[assistant]{"x": [1]}'),
    ("null-content", TEXTS, [{"role": "assistant", "content": None}], "[assistant]"),
    ("json-text-stays", JSON_TEXT, [calling('{"x":1}')], '[assistant]{"x":1}'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "messages", "prompt"), [case[1:] for case in ADAPTED], ids=[case[0] for case in ADAPTED]
)
def test_adapts_messages(source: str, messages: list[dict[str, Any]], prompt: str) -> None:
    template, before = ChatTemplate(source), copy.deepcopy(messages)
    assert template.render(adapt_messages(messages, template)) == prompt
    assert messages == before


def test_adapting_refuses() -> None:
    template = ChatTemplate(TEXTS)
    with pytest.raises(ValueError, match="texts only, found a content part of type 'image_url'"):
        adapt_messages([{"role": "user", "content": [{"type": "image_url"}]}], template)
    with pytest.raises(ValueError, match="arguments of a tool call are not JSON"):
        adapt_messages([calling("{x")], template)
