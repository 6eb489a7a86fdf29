"""Fits an OpenAI client's messages to what a template can take, as llama.cpp does before it renders them.

What a template takes is found by rendering short conversations with a marker and looking for it in the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .template import ChatTemplate

MARK = "naiad-mark"
USER = {"role": "user", "content": "question"}
# Templates with channels (gpt-oss) give developers a role of their own.
DEVELOPER_SIGN = "<|channel|>"


@dataclass(frozen=True)
class Takes:
    """text, parts: whether contents may be texts, and lists of {"type": "text", "text": …}.
    system: whether messages of that role reach the prompt. object_arguments: whether the arguments of tool calls are
    written well when they are objects (otherwise templates expect JSON text).
    """

    text: bool
    parts: bool
    system: bool
    object_arguments: bool


@lru_cache(maxsize=16)
def takes(template: ChatTemplate) -> Takes:
    """What this template can take; a few renderings, so the answer is kept."""
    arguments = {"naiad_argument": MARK}
    call = {"id": "call00001", "type": "function", "function": {"name": "tool1", "arguments": arguments}}
    called: list[Mapping[str, Any]] = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "tool1", "tool_call_id": "call00001", "content": "result"},
        {"role": "assistant", "content": "answer"},
        USER,
    ]
    parts = [{"type": "text", "text": MARK}]
    return Takes(
        text=_shows(template, [{"role": "user", "content": MARK}]),
        parts=_shows(template, [{"role": "user", "content": parts}], but_not=("'text'", '"text"')),
        system=_shows(template, [{"role": "system", "content": MARK}, USER]),
        object_arguments=_shows(template, called, but_not=("{'naiad_argument'",)),
    )


def _shows(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], but_not: Sequence[str] = ()) -> bool:
    """Whether the marker reaches the prompt, and not as a Python object that was printed by mistake."""
    try:
        prompt = template.render(messages)
    except ValueError:
        return False
    return MARK in prompt and not any(sign in prompt for sign in but_not)


def adapt_messages(messages: Sequence[Mapping[str, Any]], template: ChatTemplate) -> list[dict[str, Any]]:
    """New messages for `template.render`.

    - a missing content becomes "", a developer the system
    - contents become one text (parts on lines of their own), or lists of parts, where the template takes only one
    - the JSON text of tool calls' arguments becomes an object where the template takes objects
    - a leading system message goes in front of the next one's text where the template has no such role

    Raises ValueError for content parts that are not text and for arguments that are not JSON.
    """
    able = takes(template)
    out = [_adapted(message, template, able) for message in messages]
    if not able.system and len(out) > 1 and out[0].get("role") == "system":
        texts = [message["content"] for message in out[:2]]
        if all(isinstance(text, str) for text in texts):
            out[:2] = [out[1] | {"content": "\n".join(texts)}]
    return out


def _adapted(message: Mapping[str, Any], template: ChatTemplate, able: Takes) -> dict[str, Any]:
    out = dict(message)
    if out.get("role") == "developer" and DEVELOPER_SIGN not in template.source:
        out["role"] = "system"
    content = out.get("content")
    if content is None:
        out["content"] = content = ""
    if isinstance(content, list) and able.text and not able.parts:
        out["content"] = "\n".join(_text_of(part) for part in content)
    elif isinstance(content, str) and able.parts and not able.text:
        out["content"] = [{"type": "text", "text": content}]
    calls = out.get("tool_calls")
    if isinstance(calls, list) and able.object_arguments:
        out["tool_calls"] = [_with_object_arguments(call) for call in calls]
    return out


def _text_of(part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ValueError(f"this model takes texts only, found a content part of type {kind!r:.100}")


def _with_object_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the arguments of a tool call are not JSON: {function['arguments']:.100}") from error
    return {**call, "function": {**function, "arguments": arguments}}
