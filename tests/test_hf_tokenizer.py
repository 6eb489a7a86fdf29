"""A checkpoint's tokenizer as metadata: the same tokens as the tokenizers library finds, whichever file they lie in."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, pre_tokenizers

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.hf.sentencepiece_file import TokenType, read_sentencepiece
from naiad.loaders.hf.tokenizer import PRE_NAMES, PRE_NAMES_IGNORING_MERGES, pre_name, tokenizer_kv
from naiad.loaders.tokenizer import Tokenizer
from naiad.loaders.tokenizer.carried import CARRIED
from naiad.loaders.tokenizer.pretokenizers import pre_tokenizer

N_VOCAB = {"llama": 512, "gemma2": 512, "phi3": 544, "qwen2": 1024}
# Without capitals beyond ASCII, which llama.cpp's rules for tekken and gpt-4o take for small letters.
PROBE = (
    "Hello world, it's 12345 times  MORE\n\n than we'Ve seen!?  \n\tfoo_bar(x) == 3.14; ... naïve Straße école "
    "привет мир 你好世界 こんにちは 🚀🎉 can't YOU'RE 1st x²   \r\n end  "
)


def tokenizer_folder(shared_data: Path, tmp_path: Path, name: str, *files: str) -> Path:
    """A folder with those of a tiny checkpoint's files."""
    for file in files:
        shutil.copyfile(shared_data / "tiny" / name / file, tmp_path / file)
    return tmp_path


@pytest.mark.parametrize("name", N_VOCAB)
def test_tokens_are_those_of_the_library(name: str, shared_data: Path, tmp_path: Path) -> None:
    """Also without tokenizer.model, when the scores come from the order of the merges."""
    folder = tokenizer_folder(shared_data, tmp_path, name, "tokenizer.json", "tokenizer_config.json")
    text = (shared_data / "text" / "tinyshakespeare.txt").read_text()[:20_000] + PROBE
    expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert Tokenizer.from_kv(tokenizer_kv(folder, name, N_VOCAB[name])).encode(text) == expected
    whole = shared_data / "tiny" / name
    assert Tokenizer.from_kv(tokenizer_kv(whole, name, N_VOCAB[name])).encode(text) == expected


def test_sentencepiece_alone_is_enough(shared_data: Path, tmp_path: Path) -> None:
    folder = tokenizer_folder(shared_data, tmp_path, "llama", "tokenizer.model", "config.json")
    kv = tokenizer_kv(folder, "llama", 512)
    assert kv["tokenizer.ggml.add_space_prefix"] is True
    assert (kv["tokenizer.ggml.bos_token_id"], kv["tokenizer.ggml.eos_token_id"]) == (1, 2)


def test_a_folder_without_tokenizer_has_no_tokenizer_metadata(tmp_path: Path) -> None:
    assert tokenizer_kv(tmp_path, "llama", 512) == {}


def test_rows_without_a_token_get_a_filler(shared_data: Path) -> None:
    kv = tokenizer_kv(shared_data / "tiny" / "qwen2", "qwen2", 1030)
    assert kv["tokenizer.ggml.tokens"][1024:] == [f"[PAD{i}]" for i in range(1024, 1030)]
    assert kv["tokenizer.ggml.token_type"][1024:].tolist() == [TokenType.UNUSED] * 6


def whole(cut: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
    return [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]


def tokenizer_json(steps: list[dict[str, Any]], **model: Any) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {"type": "BPE", **model}}


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"type": "Digits", "individual_digits": True}
REMOVED = {"type": "Split", "pattern": {"Regex": O200K}, "behavior": "Removed", "invert": True}
KNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "llama-3": (tokenizer_json(whole(CL100K), ignore_merges=True), "llama-bpe"),
    "phi-4": (tokenizer_json(whole(CL100K)), "dbrx"),
    "qwen-2": (tokenizer_json(whole(CL100K.replace("{1,3}", ""))), "qwen2"),
    "mistral-nemo": (tokenizer_json(whole(NEMO), ignore_merges=True), "tekken"),
    "phi-4-mini": (tokenizer_json([REMOVED, *whole("")[1:]]), "gpt-4o"),
    "smollm": (tokenizer_json([DIGITS, {"type": "ByteLevel", "use_regex": True}]), "smollm"),
    "gpt-2": ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "model": {}}, "gpt-2"),
}


@pytest.mark.parametrize(("tokenizer", "name"), KNOWN.values(), ids=KNOWN)
def test_known_pre_tokenizers_have_names(tokenizer: dict[str, Any], name: str) -> None:
    assert pre_name(tokenizer) == name


UNNAMED: dict[str, Any] = {
    "expression": whole(r"\w+"),
    "prefix": [{"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}],
    "digits": [{"type": "Digits", "individual_digits": False}, *whole("")[1:]],
}


@pytest.mark.parametrize("steps", UNNAMED.values(), ids=UNNAMED)
def test_what_has_no_name_is_carried(steps: list[dict[str, Any]]) -> None:
    assert pre_name(tokenizer_json(steps)) == CARRIED


BAD_STEPS: dict[str, tuple[Any, str]] = {
    "no bytes": ([{"type": "Whitespace"}], r"has the steps \['Whitespace'\], expected ByteLevel among them"),
    "none": ([], r"has the steps \[\], expected ByteLevel"),
    "unknown": (
        [{"type": "Words"}, *whole("")[1:]],
        "has a step 'Words', expected some of BertPreTokenizer, ByteLevel",
    ),
    "metaspace": ([{"type": "Metaspace"}, *whole("")[1:]], "has a step 'Metaspace', expected"),
    "no object": ([5], "has a step 5, expected"),
    "no name": ([{"type": ["x"] * 1000}], "has a step ."),
    "many": ([*whole("")[1:]] * 1000, "has more than 64 steps"),
}


@pytest.mark.parametrize(("steps", "message"), BAD_STEPS.values(), ids=BAD_STEPS)
def test_what_no_byte_level_vocabulary_has_is_refused(steps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^tokenizer\.json: its pre-tokenizer {message}") as error:
        pre_name(tokenizer_json(steps))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("cuts", list(PRE_NAMES), ids=list(PRE_NAMES.values()))
def test_the_named_pre_tokenizer_cuts_as_the_checkpoints(cuts: tuple[str, ...]) -> None:
    def words(expressions: tuple[str, ...]) -> list[str]:
        steps = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
        return [word for word, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(PROBE)]

    assert words(pre_tokenizer(PRE_NAMES[cuts]).splits) == words(cuts)
    assert words(pre_tokenizer(PRE_NAMES_IGNORING_MERGES[cuts]).splits) == words(cuts)


def byte_level(**changes: Any) -> dict[str, Any]:
    """A whole tokenizer.json of seven tokens."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": ["a b"]}
    added = [{"id": 3, "content": "<s>", "special": True}, {"id": 4, "content": "▁x", "special": False}]
    steps = {"pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"}}
    return {"model": model, "added_tokens": added, **steps, **changes}


def write(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_byte_level_metadata(tmp_path: Path) -> None:
    """Merges as pairs may hold spaces; added tokens that are no control tokens have real spaces."""
    model = {**byte_level()["model"], "merges": [["a", "b"], [" ", "a"]]}
    write(tmp_path, tokenizer=byte_level(model=model), tokenizer_config={"bos_token": {"content": "<s>"}})
    kv = tokenizer_kv(tmp_path, "qwen2", 6)
    assert kv["tokenizer.ggml.merges"] == ["a b", "Ġ a"]
    assert kv["tokenizer.ggml.tokens"] == ["a", "b", "ab", "<s>", " x", "[PAD5]"]
    types = [TokenType.NORMAL] * 3 + [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED]
    assert kv["tokenizer.ggml.token_type"].tolist() == types
    assert kv["tokenizer.ggml.bos_token_id"] == 3
    assert "tokenizer.ggml.scores" not in kv


def template(*single: str | None, pair: tuple[str | None, ...] = ()) -> dict[str, Any]:
    def step(text: str | None) -> dict[str, Any]:
        return {"Sequence": {"id": "A"}} if text is None else {"SpecialToken": {"id": text}}

    processor = {"type": "TemplateProcessing", "single": [*map(step, single)], "pair": [*map(step, pair)]}
    return {"type": "Sequence", "processors": [{"type": "ByteLevel"}, processor]}


ENDS = {"bos_token": "a", "eos_token": "b"}
ADDED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, bool]]] = {
    "nothing": ({}, {}, {}),
    "begin": (template("a", None), ENDS, {"bos": True}),
    "end": (template(None, "b"), ENDS, {"eos": True}),
    "begin-of-other-kind": (template("ab", None), ENDS, {"bos": False}),
    "settings-win": (
        template("a", None),
        {**ENDS, "add_bos_token": False, "add_eos_token": True},
        {"bos": False, "eos": True},
    ),
    "pair": (template("a", None, pair=("a", None, "a", None)), ENDS, {"bos": True, "sep": False}),
    "pair-with-separator": (template(None, "b", pair=(None, "b", "b", None, "b")), ENDS, {"eos": True, "sep": True}),
    "pair-of-ended-texts": (template(None, "b", pair=(None, "b", None, "b")), ENDS, {"eos": True, "sep": False}),
}


@pytest.mark.parametrize(("processor", "settings", "expected"), ADDED.values(), ids=ADDED)
def test_added_special_tokens(
    processor: dict[str, Any], settings: dict[str, Any], expected: dict[str, bool], tmp_path: Path
) -> None:
    write(tmp_path, tokenizer=byte_level(post_processor=processor), tokenizer_config=settings)
    kv = tokenizer_kv(tmp_path, "llama", 5)
    assert {
        key[19:22]: kv[key] for key in kv if key.startswith("tokenizer.ggml.add_") and key.endswith("_token")
    } == expected


IDS: dict[str, tuple[dict[str, Any], int | None]] = {
    "settings": ({"tokenizer_config": {"eos_token": "b"}, "config": {"eos_token_id": 0}}, 1),
    "config": ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": 0}}, 2),
    "text-config": ({"config": {"text_config": {"eos_token_id": 2}}}, 2),
    "list": ({"generation_config": {"eos_token_id": [4, 3]}}, 4),
    "out-of-range": ({"tokenizer_config": {"eos_token": "?"}, "config": {"eos_token_id": 5}}, None),
    "no-id": ({"config": {"eos_token_id": True}}, None),
}


@pytest.mark.parametrize(("files", "expected"), IDS.values(), ids=IDS)
def test_ids_of_special_tokens(files: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    write(tmp_path, tokenizer=byte_level(), **files)
    assert tokenizer_kv(tmp_path, "llama", 5).get("tokenizer.ggml.eos_token_id") == expected


NAMED = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}, 3]


@pytest.mark.parametrize(
    ("settings", "jinja", "expected"),
    [
        ({"chat_template": "S"}, "J", {"": "S"}),
        ({}, "J", {"": "J"}),
        ({"chat_template": NAMED}, None, {"": "D", ".tool_use": "T"}),
        ({}, None, {}),
    ],
    ids=["settings-win", "file", "several", "none"],
)
def test_chat_templates(settings: Any, jinja: str | None, expected: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, tokenizer=byte_level(), tokenizer_config=settings)
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    kv = tokenizer_kv(tmp_path, "llama", 5)
    found = {key.removeprefix("tokenizer.chat_template"): kv[key] for key in kv if "chat_template" in key}
    assert found == expected


MODEL = byte_level()["model"]
BAD_JSON: dict[str, tuple[dict[str, Any], str]] = {
    "model-missing": ({"model": None}, "a model of type BPE with a vocab is expected, found None"),
    "unigram": ({"model": {"type": "Unigram", "vocab": []}}, "found 'Unigram'"),
    "id-too-large": ({"model": {**MODEL, "vocab": {"a": 5}}}, "token id 5 is outside 0 ... 4"),
    "id-huge": ({"model": {**MODEL, "vocab": {"a": 10**30}}}, "is outside 0 ... 4"),
    "id-text": ({"model": {**MODEL, "vocab": {"a": "0"}}}, "token id '0' is outside"),
    "half-a-surrogate": ({"model": {**MODEL, "vocab": {"\ud800": 0}}}, "token 0 must be valid text"),
    "merges-missing": ({"model": {"type": "BPE", "vocab": {}}}, "no list of merges"),
    "merge-of-three": ({"model": {**MODEL, "merges": ["a b c"]}}, "a merge must be a pair of tokens, found a b c"),
    "merge-of-numbers": ({"model": {**MODEL, "merges": [[1, 2]]}}, "a merge must be a pair"),
    "added-number": ({"added_tokens": [3]}, "added_tokens must be a list of objects"),
    "added-without-text": ({"added_tokens": [{"id": 1}]}, "token 1 must be valid text, found None"),
    "added-without-id": ({"added_tokens": [{"content": "x"}]}, "token id None is outside"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_JSON.values(), ids=BAD_JSON)
def test_bad_tokenizer_json(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, tokenizer=byte_level(**changes))
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'tokenizer.json'))}: .*{message}"):
        tokenizer_kv(tmp_path, "llama", 5)


NASTY = [None, True, -1, 2**40, 1.5, "", "x", "\ud800", [], [None], {}, {"a": 1}]


def test_any_tokenizer_json_is_read_or_raises_value_error(tmp_path: Path) -> None:
    """Every value of every file takes every nasty value."""
    files = {
        "tokenizer": byte_level(post_processor=template("<s>", None, pair=("<s>", None, "<s>", None)), normalizer=None),
        "tokenizer_config": {"bos_token": {"content": "<s>"}, "add_bos_token": True, "chat_template": NAMED},
        "generation_config": {"eos_token_id": [1]},
        "added_tokens": {"x": 1},
    }
    for name, content in files.items():
        write(tmp_path, **files)
        for path in paths(content):
            for value in NASTY:
                write(tmp_path, **{name: put(content, path, value)})
                try:
                    tokenizer_kv(tmp_path, "llama", 5)
                except ValueError as error:
                    assert str(error).startswith(str(tmp_path)), (path, value)


def paths(value: Any) -> list[tuple[Any, ...]]:
    """The way to everything inside a JSON value, and to the value itself."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *path) for key, part in inside for path in paths(part))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with one part replaced."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload


def piece(text: bytes, score: float, *kind: int) -> bytes:
    score_field = bytes([2 << 3 | 5]) + struct.pack("<f", score)
    return field(1, field(1, text) + score_field + (bytes([3 << 3, *kind]) if kind else b""))


def test_sentencepiece_fields(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    unknown_fields = field(9, b"?") + bytes([15 << 3, 0x96, 0x01]) + bytes([14 << 3 | 1]) + bytes(8)
    path.write_bytes(piece("▁é".encode(), -1.5) + unknown_fields + piece(b"<s>", 0, 3) + field(3, bytes([3 << 3, 0])))
    model = read_sentencepiece(path)
    assert [(p.text, p.score, p.type) for p in model.pieces] == [("▁é", -1.5, 1), ("<s>", 0.0, 3)]
    assert model.add_dummy_prefix is False


BAD_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no pieces"),
    "text": (b"IQ== 0\nIg== 1\n", "not a SentencePiece model"),
    "length-beyond-the-end": (bytes([1 << 3 | 2, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]), "a field of 4294967295 bytes"),
    "number-without-end": (bytes([1 << 3] + [0xFF] * 11), "more than 10 bytes"),
    "wire-type": (bytes([1 << 3 | 3]), "wire type 3"),
    "piece-is-a-number": (bytes([1 << 3, 5]), "a number where bytes should be"),
    "type-unknown": (piece(b"a", 0, 9), "not a SentencePiece model"),
    "text-no-utf8": (piece(b"\xff", 0), "not a SentencePiece model"),
}


@pytest.mark.parametrize(("raw", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_sentencepiece(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_sentencepiece(path)


def test_damaged_sentencepiece_is_read_or_raises_value_error(shared_data: Path, tmp_path: Path) -> None:
    raw, path = (shared_data / "tiny" / "llama" / "tokenizer.model").read_bytes(), tmp_path / "tokenizer.model"
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(raw[: random.integers(1, len(raw))])
        damaged[random.integers(len(damaged))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_sentencepiece(path)
        except ValueError as error:
            assert str(error).startswith(str(path))


@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma2"])
def test_a_tokenizer_json_inside_a_gguf_file(shared_data: Path, name: str) -> None:
    """A file with tokenizer.huggingface.json alone gives the ids of the file that llama.cpp's converter wrote."""
    written = GGUFFile(shared_data / "tiny" / f"{name}.gguf").kv
    embedded = {
        key: value for key, value in written.items() if key.endswith(("_token_id", "add_space_prefix", "add_bos_token"))
    }
    embedded["tokenizer.huggingface.json"] = (shared_data / "tiny" / name / "tokenizer.json").read_text()
    ours, theirs = Tokenizer.from_kv(embedded), Tokenizer.from_kv(written)
    for text in ("Hello world", "  two  spaces\n\nand 12345 naïve 你好 🐱", ""):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "must be a string, found int"),
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"model": {"type": "BPE", "vocab": {"a": 900000000}, "merges": []}}', "1 tokens have ids up to 900000000"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}', "type BPE"),
    ],
)
def test_bad_embedded_tokenizers(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_kv({"tokenizer.huggingface.json": value})
