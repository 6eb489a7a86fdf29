"""Records what llama.cpp's named chat templates give: run with a Python that has llama-cpp-python.

python tests/data/record_builtin_templates.py writes builtin_templates.json beside itself:
{"conversations": [[[role, content], …], …], "prompts": {name: [prompt, prompt with add_generation_prompt, …]}}
"""

import ctypes
import json
from pathlib import Path

import llama_cpp

# The no-break space is white space for Python but not for C, and the form feed for both.
CONVERSATIONS = [
    [],
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "Hi there")],
    [("user", "1+1?"), ("assistant", "2")],
    [
        ("system", " sys\n"),
        ("user", "\n a \n"),
        ("assistant", " b\t\n"),
        ("user", "  c\r\n"),
        ("assistant", "\u00a0d\f"),
    ],
    [
        ("user", "один 二 🦙"),
        ("assistant", "é<b>&'\"</b>"),
        ("user", "{{ x }} {% y %} $content"),
        ("assistant", "z"),
        ("user", ""),
    ],
    [
        ("system", ""),
        ("system", "two"),
        ("user", "u"),
        ("user", "v"),
        ("system", "late"),
        ("assistant", "w"),
    ],
    [("assistant", "first"), ("assistant", "again"), ("user", "x"), ("system", "last")],
    [
        ("user", "u"),
        ("assistant_tool_call", "call"),
        ("tool", " t "),
        ("function", "f"),
        ("model", "m"),
        ("user", "v"),
    ],
]


def names() -> list[bytes]:
    n = llama_cpp.llama_chat_builtin_templates(None, 0)
    array = (ctypes.c_char_p * n)()
    llama_cpp.llama_chat_builtin_templates(array, n)
    return list(array)


def prompt(name: bytes, conversation: list[tuple[str, str]], add_generation_prompt: bool) -> str:
    n = len(conversation)
    chat = (llama_cpp.llama_chat_message * max(n, 1))(
        *[(role.encode(), content.encode()) for role, content in conversation]
    )
    buffer = ctypes.create_string_buffer(1 << 16)
    length = llama_cpp.llama_chat_apply_template(name, chat, n, add_generation_prompt, buffer, len(buffer))
    assert 0 <= length <= len(buffer), (name, length)
    return buffer.raw[:length].decode()


def main() -> None:
    prompts = {
        name.decode(): [prompt(name, chat, add) for chat in CONVERSATIONS for add in (False, True)] for name in names()
    }
    recorded = {"conversations": CONVERSATIONS, "prompts": prompts}
    path = Path(__file__).with_name("builtin_templates.json")
    path.write_text(json.dumps(recorded, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
