"""Whole models with hostile metadata: what a generation does not need does not stop it, and errors name the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from naiad import LLM
from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.runtime.demo import demo_model

TEMPLATE = "tokenizer.chat_template"
USER = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """The demo model with other metadata."""

    def write(**kv: Any) -> Path:
        path = tmp_path / "odd model.gguf"
        with GGUFFile(demo_model()) as source:
            changes = {key.replace("__", "."): value for key, value in kv.items()}
            types = {key: kind for key, kind in source.kv_types.items() if key not in changes}
            write_gguf(path, {**source.kv, **changes}, source.tensors.values(), kv_types=types)
        return path

    return write


BROKEN = {
    "unclosed": ("{% for m in messages %}{{ m.content }}", "chat template"),
    "unknown tag": ("{% do x.append(1) %}", "chat template"),
    "unknown filter": ("{{ messages | wordwrap(20) }}", "chat template"),
    "unknown test": ("{{ messages is odder }}", "chat template"),
    "import": ("{% import 'x' as y %}", "no use in a chat template"),
    "Go": ("{{ if .System }}{{ .System }}{{ end }}", "chat template"),
    "too long": ("x" * 200_000, "200000 characters, the limit is"),
    "deep": ("{{ " + "(" * 9000, "chat template"),
    "no text": (["{{ messages }}"], "must be text, found list"),
}


@pytest.mark.parametrize(("template", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_template_stops_chats_only(changed: Callable[..., Path], template: Any, message: str) -> None:
    path = changed(tokenizer__chat_template=template)
    with LLM(path, device="cpu") as llm:
        assert llm.generate("Once", max_tokens=2, temperature=0).tokens
        for content in ("Hello", [{"type": "text", "text": "Hello"}]):
            with pytest.raises(ValueError, match=message) as caught:
                llm.chat([{"role": "user", "content": content}], max_tokens=2)
            assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 900


def test_another_template_replaces_a_broken_one(changed: Callable[..., Path]) -> None:
    with LLM(changed(tokenizer__chat_template="{% if %}"), device="cpu", chat_template="chatml") as llm:
        assert llm.chat(USER, max_tokens=2).tokens


def test_a_broken_template_on_the_command_line(
    changed: Callable[..., Path], run: Callable[[str], tuple[int, str, str]]
) -> None:
    path = changed(tokenizer__chat_template="{% if %}")
    code, out, err = run(f"run -m '{path}' -p Once -n 2 -no-cnv")
    assert (code, out[:4]) == (0, "Once"), err
    code, _, err = run(f"run -m '{path}' -p Once -n 2")
    assert code == 1 and err.startswith(f"error: {path}: chat template 'tokenizer.chat_template', line 1")
    assert run(f"run -m '{path}' -p Once -n 2 --chat-template chatml")[0] == 0
    # One that the user gives is wrong at once.
    code, _, err = run(f"run -m '{path}' -p Once -n 2 --chat-template '{{% if %}}'")
    assert code == 1 and err.startswith("error: chat template '--chat-template', line 1")


def test_errors_of_the_tokenizer_name_the_file(
    changed: Callable[..., Path], run: Callable[[str], tuple[int, str, str]]
) -> None:
    path = changed(tokenizer__ggml__model="klingon")
    with pytest.raises(ValueError, match="tokenizer model 'klingon' is not supported") as caught:
        LLM(path, device="cpu")
    assert str(caught.value).startswith(f"{path}: ")
    assert run(f"tokenize -m '{path}' -p x")[2].startswith(f"error: {path}: tokenizer model")


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(
    changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "{% for i in range(99999) %}{{ 'abcdefgh' * 9 }}{% endfor %}"
    with LLM(changed(tokenizer__chat_template=endless), device="cpu", n_ctx=512) as llm:
        monkeypatch.setattr(llm.tokenizer, "encode", lambda *args, **kwargs: pytest.fail("tokenised"))
        message = r"^the prompt has \d+ tokens or more, but the context holds 512$"
        with pytest.raises(ValueError, match=message):
            llm.chat(USER, max_tokens=2)
        with pytest.raises(ValueError, match=message):
            llm.generate("abc " * 10**6, max_tokens=2)


def test_prompts_at_the_edge_of_the_context(changed: Callable[..., Path]) -> None:
    with LLM(changed(), device="cpu", n_ctx=512) as llm:
        longest = max(range(llm.tokenizer.n_vocab), key=lambda token: len(llm.tokenizer.token_text(token)))
        text = llm.tokenizer.decode([longest] * 400)
        assert llm.tokenizer.least_tokens(text) <= len(llm.tokenize(text)) <= 512
        assert llm.generate(text, max_tokens=1).tokens


def test_a_context_of_billions_takes_no_memory(changed: Callable[..., Path]) -> None:
    """Windows make the cache small, whatever the context is."""
    path = changed(llama__context_length=2**32 - 1, llama__attention__sliding_window=64)
    with LLM(path, device="cpu") as llm:
        assert llm.memory.n_ctx == 2**24
        assert sum(table.nbytes for table in llm.engine.runner.slots.host) < 200e6
        assert llm.generate("Once", max_tokens=2).tokens
