"""Checkpoint folders as people have them: broken files beside the model, odd JSON, recommended sampling, end tokens."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from naiad.loaders.hf import SafetensorsModel
from naiad.loaders.hf.json_file import parse_json
from naiad.loaders.hf.sampling import sampling_kv
from naiad.loaders.tokenizer import Tokenizer
from naiad.runtime.sampling.recommended import recommended_params

SIDE = ("generation_config.json", "tokenizer_config.json", "added_tokens.json", "chat_template.json")
BROKEN = [b"", b"{", b'{"eos_token_id": 2,}', b"[]", b"null", b'{"a": "\xff"}', b"\xef\xbb\xbf{}", b"[" * 100_000]
Change = Callable[..., Path]


@pytest.fixture
def folder(shared_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_data / "models/stories260K-hf", tmp_path / "model"))


def ending(path: Path, more: str) -> None:
    """Puts keys behind those of a JSON file."""
    path.write_text(path.read_text().rstrip().removesuffix("}") + f", {more}}}")


def settings(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def same(found: Any, expected: Any) -> bool:
    return bool(np.array_equal(found, expected))


@pytest.mark.parametrize("name", SIDE)
@pytest.mark.parametrize("raw", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_side_file_is_as_none(name: str, raw: bytes, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    expected = SafetensorsModel(folder).kv
    (folder / name).write_bytes(raw)
    with pytest.warns(UserWarning, match=rf"model/{name}.* passed over") as record:
        found = SafetensorsModel(folder).kv
    assert len(record) == 1 and len(str(record[0].message)) < 400
    assert found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"x" * (2**20 + 1)], ids=["no UTF-8", "large"])
def test_a_broken_template_file(raw: bytes, folder: Path) -> None:
    settings(folder, "tokenizer_config.json", chat_template=None)
    (folder / "chat_template.jinja").write_bytes(raw)
    with pytest.warns(UserWarning, match=r"chat_template\.jinja.* passed over"):
        assert "tokenizer.chat_template" not in SafetensorsModel(folder).kv
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").mkdir()
    with pytest.warns(UserWarning, match=r"chat_template\.jinja.* passed over"):
        SafetensorsModel(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("raw", BROKEN[:3], ids=range(3))
def test_what_a_model_cannot_do_without_stays_an_error(name: str, raw: bytes, folder: Path) -> None:
    (folder / name).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"model/{name} is not valid JSON"):
        SafetensorsModel(folder)


UNUSED = [
    '"unused": NaN',
    '"limits": [0.0, Infinity, -Infinity]',
    '"use_cache": 1, "use_cache": 2',
    '"a": {"b": 1, "b": 2}',
]


@pytest.mark.parametrize("more", UNUSED)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_odd_json_that_nobody_reads(more: str, name: str, folder: Path) -> None:
    expected = SafetensorsModel(folder).kv
    ending(folder / name, more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = SafetensorsModel(folder).kv
    assert all(same(found[key], expected[key]) for key in expected)


USED = {
    "number": ("config.json", '"rms_norm_eps": NaN', "rms_norm_eps must be a finite number, found nan"),
    "infinite": ("config.json", '"rope_theta": Infinity', "rope_theta must be a finite number above 1, found inf"),
    "size": ("config.json", '"vocab_size": -Infinity', "vocab_size must be an integer .*, found -inf"),
    "twice": ("config.json", '"num_hidden_layers": 3', r"key 'num_hidden_layers' appears twice, .* 5 and 3"),
    "type twice": ("config.json", '"model_type": "qwen2"', "key 'model_type' appears twice, .* 'llama' and 'qwen2'"),
    "vocabulary": ("tokenizer.json", '"model": {}', "key 'model' appears twice"),
}


@pytest.mark.parametrize(("name", "more", "message"), USED.values(), ids=USED)
def test_odd_json_that_is_needed(name: str, more: str, message: str, folder: Path) -> None:
    path = folder / name
    (folder / "tokenizer.model").unlink()
    if more.split(":")[0] in ('"rms_norm_eps"', '"rope_theta"', '"vocab_size"'):
        settings(folder, name, **{json.loads(more.split(":")[0]): None})
        path.write_text(path.read_text().replace(more.split(":")[0] + ": null", more))
    else:
        ending(path, more)
    with pytest.raises(ValueError, match=rf"model/{name}.*{message}"):
        SafetensorsModel(folder)


def test_keys_that_appear_twice() -> None:
    found = parse_json(b'{"a": 1, "b": [2], "a": 1, "b": [3], "c": {"d": 1, "d": 2}}', "there")
    assert found["a"] == 1 and set(found) == {"a", "b", "c"}
    for key, look in (("b", lambda: found["b"]), ("b", lambda: found.get("b")), ("b", lambda: found.items())):
        with pytest.raises(ValueError, match=f"^there: key '{key}' appears twice, with the values .* and "):
            look()
    with pytest.raises(ValueError, match="key 'd' appears twice"):
        list(found["c"].values())
    assert type(parse_json(b'{"a": 1, "a": 1}', "there")) is dict
    with pytest.raises(ValueError, match="key 'a' appears twice"):
        parse_json(b'{"a": 1, "a": 1}', "there", strict=True)


# ---- recommended sampling ----

SAMPLING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0},
        {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0},
    ),
    ({"repetition_penalty": 1.05}, {"penalty_repeat": 1.05}),
    (
        {"repetition_penalty": 1.05, "penalty_repeat": 1.5, "penalty_last_n": 32},
        {"penalty_repeat": 1.5, "penalty_last_n": 32},
    ),
    ({"xtc_probability": 0.5, "xtc_threshold": 0.2}, {"xtc_probability": 0.5, "xtc_threshold": 0.2}),
    (
        {"mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2},
        {"mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2},
    ),
    ({"sequence": "top_k;temperature"}, {"sequence": "top_k;temperature"}),
    ({"do_sample": False, "temperature": None, "top_k": None, "num_beams": 4, "typical_p": 0.5}, {}),
]


@pytest.mark.parametrize(("generation", "expected"), SAMPLING)
def test_recommended_sampling(generation: dict[str, Any], expected: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sampling_kv(generation, "there")
        recommended_params(found)
    # Numbers are those of float32, as in a GGUF file.
    rounded = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in expected.items()}
    assert found == {f"general.sampling.{key}": value for key, value in rounded.items()}
    assert {key: type(value) for key, value in expected.items()} == {
        key.removeprefix("general.sampling."): type(value) for key, value in found.items()
    }


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("temperature", "0.5", "a finite number, found '0.5'"),
        ("temperature", float("nan"), "a finite number, found nan"),
        ("top_p", True, "a finite number, found True"),
        ("top_k", 1.5, "an integer, found 1.5"),
        ("top_k", 2**40, "an integer, found 1099511627776"),
        ("sequence", ["top_k"], "a string"),
        ("min_p", [0.1] * 100_000, "a finite number"),
    ],
)
def test_impossible_recommendations_are_passed_over(key: str, value: Any, expected: str) -> None:
    with pytest.warns(UserWarning, match=f"^there: {key} must be {expected}.*passed over$") as record:
        found = sampling_kv({key: value, "mirostat": 1}, "there")
    assert found == {"general.sampling.mirostat": 1} and len(str(record[0].message)) < 200


def test_a_folder_recommends_sampling(folder: Path) -> None:
    settings(folder, "generation_config.json", temperature=0.25, top_k=7, top_p=9.0, repetition_penalty=-1.0)
    with pytest.warns(UserWarning, match="penalty_repeat is passed over"):
        params = recommended_params(SafetensorsModel(folder).kv)
    assert (params.temperature, params.top_k, params.top_p, params.repeat_penalty) == (0.25, 7, 9.0, 1.0)


# ---- end tokens ----


@pytest.mark.parametrize(
    ("config", "generation", "eos", "all_ids"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": [2, 30, 40]}, 2, {2, 30, 40}),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, 5, {2, 5, 6, 7}),
        ({"eos_token_id": None}, {"eos_token_id": [9, 9]}, 9, {2, 9}),
        ({"eos_token_id": [3]}, {"eos_token_id": [3, -1, 10**9, None, "4", True, 1.0, [5]]}, 3, {2, 3}),
        ({"eos_token_id": 2, "text_config": {"eos_token_id": [2, 11]}}, {}, 2, {2, 11}),
    ],
)
def test_all_end_tokens_count(
    config: dict[str, Any], generation: dict[str, Any], eos: int, all_ids: set[int], folder: Path
) -> None:
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    settings(folder, "config.json", **config)
    settings(folder, "generation_config.json", **generation)
    kv = SafetensorsModel(folder).kv
    tokenizer = Tokenizer.from_kv(kv)
    # Token 2 is </s>, which ends texts by its name.
    assert tokenizer.eos_id == eos and tokenizer.eog_ids == all_ids
    assert kv["tokenizer.ggml.eos_token_id"] == eos


def test_bad_end_tokens_of_a_file(folder: Path) -> None:
    kv = SafetensorsModel(folder).kv
    with_ends = {**kv, "tokenizer.ggml.eog_token_ids": np.array([-1, 7, 10**6], np.int64)}
    assert Tokenizer.from_kv(with_ends).eog_ids == Tokenizer.from_kv(kv).eog_ids | {7}
    with pytest.raises(ValueError, match="eog_token_ids should be an array of integers"):
        Tokenizer.from_kv({**kv, "tokenizer.ggml.eog_token_ids": 7})
