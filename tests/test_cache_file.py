"""Files of caches: those of other models and damaged ones are refused before anything of them enters the cache."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from naiad import LLM, SamplingParams
from naiad.loaders.gguf import GGUFFile
from naiad.runtime.demo import demo_model
from naiad.runtime.engine import identity
from naiad.runtime.engine.identity import ModelIdentity, model_files
from naiad.runtime.model import read_model_config

GREEDY = SamplingParams(temperature=0, max_tokens=8)
PROMPT = list(range(3, 103))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    shutil.copyfile(demo_model(), path)
    return path


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, device="cpu", max_seqs=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def saved(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    llm.generate(PROMPT, GREEDY)
    path = tmp_path_factory.mktemp("cache") / "cache"
    assert llm.save_cache(path, PROMPT) == len(PROMPT)
    return path.read_bytes()


def refused(llm: LLM, path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    llm.engine.forget()
    with pytest.raises(ValueError, match=message) as caught:
        llm.restore_cache(path)
    assert len(str(caught.value)) < 500 + len(str(path))
    assert not llm.engine.scheduler.pool.prefixes.nodes


def test_damaged_files(llm: LLM, saved: bytes, tmp_path: Path) -> None:
    """A bit, a byte, a stretch, anywhere in the header or the data; too short, too long."""
    path, n = tmp_path / "cache", 8 + int.from_bytes(saved[:8], "little")
    generator = random.Random(1)
    # Spaces that fill the header up mean nothing.
    end = saved.rindex(b"}", 0, n)
    places = [generator.randrange(8, end) for _ in range(20)] + [generator.randrange(n, len(saved)) for _ in range(20)]
    for place in (n, len(saved) - 1, *places):
        for size in (0, 1, 64):
            changed = bytearray(saved)
            if size:
                changed[place : place + size] = generator.randbytes(len(changed[place : place + size]))
            else:
                changed[place] ^= 1 << generator.randrange(8)
            if changed != saved:
                refused(llm, path, bytes(changed), str(path))
    for size in (0, 7, 8, n - 1, n, n + 1, len(saved) // 2, len(saved) - 1):
        refused(llm, path, saved[:size], "not a whole file")
    refused(llm, path, saved + b"more", "not a whole file")
    path.write_bytes(saved)
    assert llm.restore_cache(path) == len(PROMPT)


def test_files_of_other_models(llm: LLM, model: Path, saved: bytes, tmp_path: Path) -> None:
    """Whatever tensor differs, by however little; the same model under another name is the same."""
    data, cache = model.read_bytes(), tmp_path / "cache"
    cache.write_bytes(saved)
    with GGUFFile(model) as file:
        config = read_model_config(file)
        expected = ModelIdentity(file, config).digest
        pieces = {name: bytes(t.bytes().flatten()[:64].numpy()) for name, t in file.tensors.items()}
        sizes = {name: t.n_bytes for name, t in file.tensors.items()}
    other = tmp_path / "other.gguf"
    for name in ("token_embd.weight", "blk.0.attn_norm.weight", "blk.1.attn_k.weight", "output_norm.weight"):
        place = data.index(pieces[name]) + sizes[name] - 4
        other.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with GGUFFile(other) as file:
            assert ModelIdentity(file, config).digest != expected, name
    with LLM(other, device="cpu", max_seqs=1) as differing:
        refused(differing, cache, saved, "expected a cache file with model")
    shutil.copyfile(model, other)
    with LLM(other, device="cpu", max_seqs=1) as same:
        assert same.restore_cache(cache) == len(PROMPT)
        assert same.generate(PROMPT, GREEDY).tokens == llm.generate(PROMPT, GREEDY).tokens


def test_a_model_is_read_once_and_not_at_all_where_its_files_are_those(
    model: Path, saved: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(saved)
    read: list[int] = []
    hashed = identity.digest_of

    def counting(tensor: object) -> bytes:
        read.append(1)
        return hashed(tensor)  # type: ignore[arg-type]

    monkeypatch.setattr(identity, "digest_of", counting)
    with LLM(model, device="cpu", max_seqs=1) as llm:
        assert llm.restore_cache(cache) == len(PROMPT)
        assert not read
        llm.save_cache(tmp_path / "again", PROMPT)
        n_tensors = len(read)
        llm.save_cache(tmp_path / "again", PROMPT)
        llm.restore_cache(cache)
        assert len(read) == n_tensors > 10
    os.utime(model, (1, 1))
    with LLM(model, device="cpu", max_seqs=1) as touched:
        assert touched.restore_cache(cache) == len(PROMPT)
    assert len(read) == 2 * n_tensors


def test_the_files_of_a_model(tmp_path: Path) -> None:
    parts = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    for name in [
        *parts,
        "a-00001-of-00003.gguf",
        "b-00001-of-00002.gguf",
        "c.gguf",
        "config.json",
        "m.safetensors",
        "r",
    ]:
        (tmp_path / name).write_text(name)
    assert [file.name for file in model_files(tmp_path / parts[0])] == parts
    assert [file.name for file in model_files(tmp_path / "c.gguf")] == ["c.gguf"]
    assert [file.name for file in model_files(tmp_path)] == ["config.json", "m.safetensors"]
