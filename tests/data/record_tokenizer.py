"""Records llama.cpp's answers for the vocabularies of tests/tokenizer_vocabs.py.

python tests/data/record_tokenizer.py, with a Python that has naiad and llama-cpp-python, writes tokenizer.json:
{"pre": {name: index into pre_answers}, "pre_answers": […], "cases": {name: answer}, "eog": {name: answer}}.
An answer has, per text, "ids" (special tokens added and parsed), "plain" (neither), "text" (ids as text) and "bare"
(ids without special tokens, as text), the second and fourth only where they differ; for "eog" lists of token texts.
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp

from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.tokenizer.pretokenizers import PRE_TOKENIZERS

sys.path.insert(0, str(Path(__file__).parents[1]))
import tokenizer_vocabs as vocabs


class Oracle:
    """A vocabulary in llama.cpp."""

    def __init__(self, kv: dict[str, Any]) -> None:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            write_gguf(file.name, kv, [])
            params = llama_cpp.llama_model_default_params()
            params.vocab_only = True
            self.model = llama_cpp.llama_model_load_from_file(file.name.encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp refuses {kv['tokenizer.ggml.model']} {kv.get('tokenizer.ggml.pre')}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.tokens = kv["tokenizer.ggml.tokens"]

    def encode(self, text: str, special: bool) -> list[int]:
        data = text.encode()
        ids = (llama_cpp.llama_token * (4 * len(data) + 16))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), special, special)
        assert n >= 0
        return list(ids[:n])

    def decode(self, ids: list[int], remove: bool, unparse: bool) -> str:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        buffer = ctypes.create_string_buffer(64 * len(ids) + 64)
        n = llama_cpp.llama_detokenize(self.vocab, tokens, len(ids), buffer, len(buffer), remove, unparse)
        assert n >= 0
        return buffer.raw[:n].decode("utf-8", "replace")

    def answers(self, texts: Any) -> dict[str, Any]:
        ids = [self.encode(text, True) for text in texts]
        return {
            "ids": ids,
            "plain": [self.encode(text, False) for text in texts],
            "text": [self.decode(i, False, True) for i in ids],
            "bare": [self.decode(i, True, False) for i in ids],
        }

    def ends(self) -> dict[str, list[str]]:
        def texts(test: Any) -> list[str]:
            return sorted(text for i, text in enumerate(self.tokens) if test(self.vocab, i))

        return {"eog": texts(llama_cpp.llama_vocab_is_eog), "control": texts(llama_cpp.llama_vocab_is_control)}


def compact(answers: dict[str, Any]) -> dict[str, Any]:
    """plain and bare only where they differ from ids and text: {index of the text: answer}."""
    for short, full in (("plain", "ids"), ("bare", "text")):
        pairs = enumerate(zip(answers[short], answers[full], strict=True))
        answers[short] = {str(i): a for i, (a, b) in pairs if a != b}
    return answers


def main() -> None:
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    recorded: dict[str, Any] = {"pre": {}, "pre_answers": [], "cases": {}, "eog": {}}
    for row in PRE_TOKENIZERS:
        for name in row.names:
            answers = compact(Oracle(vocabs.pre_kv(name, row.raw_utf8)).answers(vocabs.TEXTS))
            if answers not in recorded["pre_answers"]:
                recorded["pre_answers"].append(answers)
            recorded["pre"][name] = recorded["pre_answers"].index(answers)
    for name, (kv, texts) in vocabs.cases().items():
        recorded["cases"][name] = compact(Oracle(kv).answers(texts))
    for name, (texts, types, extra) in vocabs.EOG_TABLE.items():
        recorded["eog"][name] = Oracle(vocabs.eog_kv(texts, types, **extra)).ends()
    path = Path(__file__).with_name("tokenizer.json")
    path.write_text(json.dumps(recorded, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
