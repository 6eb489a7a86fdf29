"""Random damage to every kind of file: one short ValueError or a model, soon and in little memory."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import CASES, as_json, changed, fuzz, mutated
from gguf_files import ARRAY, STRING, UINT8, RawTensor, array, gguf_bytes, pair, string

from naiad.loaders.gguf import SCALARS, GGUFFile
from naiad.loaders.hf.json_file import parse_json
from naiad.loaders.hf.safetensors_file import SafetensorsFile
from naiad.loaders.hf.sentencepiece_file import read_sentencepiece
from naiad.loaders.hf.tokenizer import tokenizer_kv
from naiad.loaders.tokenizer import Tokenizer
from naiad.loaders.tokenizer.vocab import EMBEDDED_KEY

SIZES = [struct.pack("<Q", n) for n in (0, 1, 24, 2**16, 2**17, 2**24, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)]
TYPES = [struct.pack("<I", n) for n in (*range(14), 2**31)]


def gguf_value(rng: random.Random, depth: int = 0) -> tuple[int, bytes]:
    """A type and the value's bytes; sometimes of another length than they say."""
    kind = rng.choice([*SCALARS, STRING, ARRAY, ARRAY])
    if kind in SCALARS:
        return kind, rng.randbytes(struct.calcsize(SCALARS[kind]))
    if kind == STRING:
        return kind, string(rng.randbytes(rng.randrange(9)))
    n = rng.choice([0, 1, 3, rng.randrange(2 if depth else 200)])
    if depth > 4:
        return kind, array(UINT8, n, bytes(n))
    parts = [gguf_value(rng, depth + 1)] * n
    element = parts[0][0] if parts else rng.choice([UINT8, STRING, ARRAY])
    claimed = n if rng.random() < 0.9 else rng.choice([n + 1, 2**20, 2**40])
    return kind, array(element, claimed, b"".join(part for _, part in parts))


def gguf_file(rng: random.Random) -> bytes:
    pairs = [
        pair(rng.choice(["a", "split.count", "split.no", "general.alignment", f"k{i}"]), *gguf_value(rng))
        for i in range(rng.randrange(4))
    ]
    tensors = [
        RawTensor(f"t{i}", tuple(rng.choice([0, 1, 4, 32, 256]) for _ in range(rng.randrange(4))), rng.randrange(44))
        for i in range(rng.randrange(3))
    ]
    order = rng.choice("<>") if not pairs else "<"
    return mutated(rng, gguf_bytes(*pairs, tensors=tensors, order=order), SIZES + TYPES)


@pytest.mark.parametrize("n", CASES)
def test_gguf(n: int, tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"

    def case(rng: random.Random) -> None:
        path.write_bytes(gguf_file(rng))
        with GGUFFile(path, use_mmap=rng.random() < 0.5) as file:
            dict(file.kv)
            for tensor in file.tensors.values():
                tensor.read()

    fuzz(n, case)


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
}


@pytest.mark.parametrize("n", CASES)
def test_safetensors(n: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def case(rng: random.Random) -> None:
        raw = as_json(rng, changed(rng, HEADER))
        data = len(raw).to_bytes(8, "little") + raw + bytes(40)
        path.write_bytes(mutated(rng, data, SIZES) if rng.random() < 0.5 else data)
        file = SafetensorsFile(path)
        for name, entry in file.entries.items():
            assert len(file.read(name)) == entry.n_bytes

    fuzz(n, case)


JSON_PIECES = [
    b"[",
    b"]" * 99,
    b"{",
    b'{"a":',
    b'"',
    b"\\",
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"[" * 5000,
    b"\xff",
    b"\0",
    b",",
]


@pytest.mark.parametrize("n", CASES)
def test_json(n: int) -> None:
    def case(rng: random.Random) -> None:
        value = parse_json(
            mutated(rng, as_json(rng, changed(rng, TOKENIZER)), JSON_PIECES), "x.json", strict=rng.random() < 0.5
        )
        assert isinstance(value, dict)

    fuzz(n, case)


def field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload


def piece(text: str, score: float, kind: int) -> bytes:
    return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))


SENTENCEPIECE = b"".join(piece(t, -i, k) for i, (t, k) in enumerate([("<unk>", 2), ("<s>", 3), ("ab", 1), ("é", 4)]))
SENTENCEPIECE += field(2, b"\x08\x01") + field(3, field(1, b"nmt") + bytes([3 << 3, 1]))


@pytest.mark.parametrize("n", CASES)
def test_sentencepiece(n: int, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    varints = [b"\xff" * 9 + b"\1", b"\xff" * 11, b"\x80\x80\4", b"\x0a", b"\0", b"\x0a\0" * 300]

    def case(rng: random.Random) -> None:
        path.write_bytes(mutated(rng, SENTENCEPIECE, varints))
        read_sentencepiece(path)

    fuzz(n, case)


TOKENIZER: dict[str, Any] = {
    "added_tokens": [
        {"id": 3, "content": "<s>", "special": True},
        {"id": 4, "content": "\u2581user", "special": False, "lstrip": True},
    ],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "use_regex": True}]},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        "pair": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "B"}}],
    },
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_token": None},
}
CONFIG: dict[str, Any] = {
    "bos_token": {"content": "<s>"},
    "eos_token": "b",
    "add_bos_token": True,
    "added_tokens_decoder": {"3": {"content": "<s>", "special": True}, "4": {"content": "user"}},
    "chat_template": [{"name": "default", "template": "{{ messages }}"}, {"name": "tool", "template": "x"}],
}


@pytest.mark.parametrize("n", CASES)
def test_tokenizer_json(n: int) -> None:
    """The one that a GGUF file may carry, as far as a text's tokens."""

    def case(rng: random.Random) -> None:
        text = as_json(rng, changed(rng, TOKENIZER)).decode("utf-8", "surrogateescape")
        tokenizer = Tokenizer.from_kv({EMBEDDED_KEY: text})
        assert tokenizer.decode(tokenizer.encode("ab<s>ba")) is not None

    fuzz(n, case)


@pytest.mark.filterwarnings("ignore:.*passed over")
@pytest.mark.parametrize("n", [pytest.param(150, id="some"), pytest.param(100_000, id="many", marks=pytest.mark.slow)])
def test_tokenizer_folders(n: int, tmp_path: Path) -> None:
    """tokenizer.json or tokenizer.model, and the files beside them."""

    def case(rng: random.Random) -> None:
        files = {"tokenizer_config.json": CONFIG, "added_tokens.json": {"x": 5}, "config.json": {"eos_token_id": [1]}}
        (tmp_path / "tokenizer.model").unlink(missing_ok=True)
        json_file = TOKENIZER
        if rng.random() < 0.5:
            (tmp_path / "tokenizer.model").write_bytes(SENTENCEPIECE)
            json_file = {**TOKENIZER, "decoder": {}}
        for name, value in {**files, "tokenizer.json": json_file}.items():
            (tmp_path / name).write_bytes(as_json(rng, changed(rng, value)))
        kv = tokenizer_kv(tmp_path, rng.choice(["llama", "phi3", "qwen2"]), 6)
        Tokenizer.from_kv(kv).encode("ab<s>")

    fuzz(n, case)


def test_counts_of_json_values(tmp_path: Path) -> None:
    """What takes many times its size in memory is counted before it is parsed."""
    for raw, kind in ((b"[]," * 3_000_000, "arrays and objects"), (b'"a",' * 4_000_000, "values")):
        with pytest.raises(ValueError, match=rf"^x\.json has \d+ {kind}, expected at most \d+$"):
            parse_json(b'{"a":[' + raw + b"0]}", "x.json")
    path = tmp_path / "x.safetensors"
    header = b'{"a":[' + b"[]," * 3_000_000 + b"0]}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"x\.safetensors: the header has 3000002 arrays and objects"):
        SafetensorsFile(path)
    assert len(parse_json(b'{"a":[' + b"[]," * 100_000 + b"0]}", "x.json")["a"]) == 100_001


def test_fields_of_sentencepiece_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.loaders.hf.sentencepiece_file.MAX_FIELDS", 30)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\x0a\0" * 30)
    assert len(read_sentencepiece(path).pieces) == 30
    for data in (b"\x0a\0" * 31, field(1, b"\x20\0" * 31), field(3, b"\x20\0" * 31), piece("a", 0, 1) * 9):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="more than 30 fields"):
            read_sentencepiece(path)


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "an added token that is a list": ({"added_tokens": [{"id": 3, "content": ["<s>"]}]}, "must be valid text"),
    "an id that is a list": ({"added_tokens": [{"id": [3], "content": "<s>"}]}, "token id .* is outside"),
    "an id that is deep": ({"added_tokens": [{"id": json.loads("[" * 500 + "]" * 500), "content": "x"}]}, "token id"),
    "a long text": ({"model": {**TOKENIZER["model"], "merges": ["x" * 10**6]}}, "a merge must be a pair"),
    "a deep merge": ({"model": {**TOKENIZER["model"], "merges": [json.loads("[" * 500 + "]" * 500)]}}, "a merge must"),
    "a long type": ({"model": {"type": "x" * 10**6, "vocab": {}}}, "a model of type BPE"),
    "a deep pre-tokenizer": (
        {"pre_tokenizer": json.loads('{"type": "Sequence", "pretokenizers": [' * 200 + "{}" + "]}" * 200)},
        "its pre-tokenizer has more than 64 steps",
    ),
    "an odd step": ({"pre_tokenizer": {"type": "x" * 10**6}}, "its pre-tokenizer has a step"),
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(("changes", "message"), ODD.values(), ids=ODD)
def test_odd_tokenizer_json(changes: dict[str, Any], message: str, alone: bool, tmp_path: Path) -> None:
    tokenizer = {**TOKENIZER, **changes}
    if not alone:
        if "added_tokens" not in changes:
            pytest.skip("tokenizer.model has the rest")
        # Beside tokenizer.model the added tokens are read by another rule.
        tokenizer["decoder"] = {}
        (tmp_path / "tokenizer.model").write_bytes(SENTENCEPIECE)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer_kv(tmp_path, "llama", 6)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1000


def test_numbers_that_are_not_ids_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(SENTENCEPIECE)
    config = {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"token id '9+'?\.\.\. \(5000 characters\) is outside"):
        tokenizer_kv(tmp_path, "llama", 6)


def test_names_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    raw = json.dumps({"x" * 10**6: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + np.zeros(1, np.float32).tobytes())
    with pytest.raises(ValueError, match=r"\(1000000 characters\) has a name of more than 1024") as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < 500
