"""A sequence's keys and values in a file, to go on from them later or elsewhere.

A safetensors file: `tokens` int32 [n_tokens]; for every layer, side and plane `blk.{layer}.{k|v}.{plane}`
[n_pages, page_size, n_kv_heads, width], of layers with a window only the pages that the next token sees. Its metadata
says which model and which cache types they belong to.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..decoder import Decoder
from ..layers import Linear
from ..ops import Weight
from .engine import Engine
from .pages import NULL_PAGE, PAGE_SIZE

FORMAT, VERSION = "naiad.cache", "1"

Contents = dict[str, torch.Tensor]


def save_cache(engine: Engine, path: str | os.PathLike[str], tokens: Sequence[int]) -> int:
    """Writes what the cache holds of these tokens; how many. ValueError where that is none.

    The file is written beside its place and then moved there, so that it is whole or not there.
    """
    contents = engine.between_steps(lambda: _taken(engine, tokens))
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ValueError(f"{target}: there is something that is not a file")
    unfinished = target.with_name(target.name + ".part")
    try:
        save_file(contents, unfinished, _metadata(engine))
        unfinished.replace(target)
    except SafetensorError as error:
        raise OSError(f"{target}: cannot be written: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return len(contents["tokens"])


def restore_cache(engine: Engine, path: str | os.PathLike[str]) -> int:
    """Puts a file's content into the cache as an idle prefix; the number of tokens.

    ValueError for a file that is damaged, of another model, of other cache types, or larger than the cache.
    """
    pool, cache = engine.scheduler.pool, engine.runner.cache
    if not pool.share:
        raise ValueError("prefixes are not shared, so nothing that is restored would be found")
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path}: not a file")
    try:
        with safe_open(path, "pt") as file:
            _check_metadata(path, file.metadata() or {}, _metadata(engine))
            tokens = _checked_tokens(path, file, engine)
            contents = {
                name: _checked_plane(path, name, file, plane, n_pages)
                for group, n_pages in enumerate(pool.n_kept_pages(len(tokens)))
                for name, plane in cache.planes(group)
            }
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole file of a cache: {error}") from None
    if not engine.between_steps(lambda: _put(engine, tokens, contents)):
        raise ValueError(f"{path}: its {len(tokens)} tokens do not fit into the cache beside what is running")
    return len(tokens)


def _taken(engine: Engine, tokens: Sequence[int]) -> Contents:
    """The tokens that the cache holds, and its pages, on the host."""
    pool, cache = engine.scheduler.pool, engine.runner.cache
    n_tokens, lists = pool.find(tokens) or (0, [])
    with _releasing(engine, lists):
        cache.move(pool.take_moves())
        contents = {"tokens": torch.tensor(tokens[:n_tokens], dtype=torch.int32)}
        for group, pages in enumerate(lists):
            numbers = _present(pages)
            contents |= {name: plane[numbers.to(plane.device)].cpu() for name, plane in cache.planes(group)}
        pool.release(lists, tokens[:n_tokens])
    if not n_tokens:
        raise ValueError("the cache holds nothing of these tokens")
    return contents


def _put(engine: Engine, tokens: Sequence[int], contents: Contents) -> bool:
    """Fills pages of the cache; false where there are not enough."""
    pool, cache = engine.scheduler.pool, engine.runner.cache
    lists = pool.adopt(tokens)
    if lists is None:
        return False
    with _releasing(engine, lists):
        cache.move(pool.take_moves())
        for group, pages in enumerate(lists):
            numbers = _present(pages)
            for name, plane in cache.planes(group):
                plane[numbers.to(plane.device)] = contents[name].to(plane.device)
        pool.release(lists, tokens)
    return True


@contextmanager
def _releasing(engine: Engine, lists: Sequence[list[int]]) -> Iterator[None]:
    """If something goes wrong, releases pages and forgets what they, and those that were to be moved, should hold."""
    pool = engine.scheduler.pool
    try:
        yield
    except BaseException:
        pool.unregister(pool.step)
        pool.release(lists)
        raise


def _present(pages: Sequence[int]) -> torch.Tensor:
    return torch.tensor([page for page in pages if page != NULL_PAGE], dtype=torch.int64)


def _checked_plane(
    path: str | os.PathLike[str], name: str, file: Any, plane: torch.Tensor, n_pages: int
) -> torch.Tensor:
    expected, shape = [n_pages, *plane.shape[1:]], file.get_slice(name).get_shape()
    if shape == expected:
        found: torch.Tensor = file.get_tensor(name)
        if found.dtype == plane.dtype:
            return found
        shape = f"{found.dtype} {shape}"
    raise ValueError(f"{path}: expected {name} as {plane.dtype} {expected}, found {shape}")


def _metadata(engine: Engine) -> dict[str, str]:
    layer = engine.runner.cache.layers[0]
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": fingerprint(engine.runner.decoder),
        "k_type": layer.k.type.name,
        "v_type": layer.v.type.name,
        "page_size": str(PAGE_SIZE),
    }


def _check_metadata(path: str | os.PathLike[str], found: dict[str, str], expected: dict[str, str]) -> None:
    for key, value in expected.items():
        if found.get(key) != value:
            raise ValueError(f"{path}: expected a cache file with {key} {value}, found {found.get(key, 'none')}")


def _checked_tokens(path: str | os.PathLike[str], file: Any, engine: Engine) -> list[int]:
    n_vocab, capacity = engine.vocabulary.n_vocab, engine.scheduler.pool.capacity
    shape = file.get_slice("tokens").get_shape()
    if len(shape) != 1 or shape[0] > capacity:
        raise ValueError(f"{path}: expected at most {capacity} tokens, found {shape}")
    tokens = file.get_tensor("tokens")
    if tokens.dtype != torch.int32 or not len(tokens):
        expected = f"tokens as int32, 1 … {capacity}"
        raise ValueError(f"{path}: expected {expected}, found {tokens.dtype} {list(tokens.shape)}")
    if not bool(((tokens >= 0) & (tokens < n_vocab)).all()):
        raise ValueError(f"{path}: there are token ids outside 0 … {n_vocab - 1}")
    numbers: list[int] = tokens.tolist()
    return numbers


def fingerprint(decoder: Decoder) -> str:
    """What tells models apart: the configuration and the first row of every matrix, as far as 16 bits show it."""
    digest = hashlib.blake2b(repr(decoder.config).encode(), digest_size=16)
    for weight in _matrices(decoder):
        row = weight.dense(0, 1, torch.float32).to("cpu", torch.bfloat16)
        digest.update(row.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _matrices(decoder: Decoder) -> Iterator[Weight]:
    """Every matrix, of stacks of them the first."""
    yield decoder.token_embd
    for half in (half for layer in decoder.layers for half in (layer.attention, layer.mlp)):
        for part in (getattr(half, field.name) for field in fields(half)):
            if isinstance(part, Linear):
                yield part.weight
            elif hasattr(part, "expert"):
                yield part.expert(0)
    yield decoder.output.weight
