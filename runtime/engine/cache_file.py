"""A sequence's keys and values in a file, to go on from them later or elsewhere.

A safetensors file: `tokens` int32 [n_tokens]; for every layer, side and plane `blk.{layer}.{k|v}.{plane}`
[n_pages, page_size, n_kv_heads, width], of layers with a window only the pages that the next token sees. Its metadata
says which model and which cache types they belong to, and has a checksum over all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .engine import Engine
from .identity import ModelIdentity, digest_of, joined
from .pages import NULL_PAGE, PAGE_SIZE

FORMAT, VERSION = "naiad.cache", "2"

Contents = dict[str, torch.Tensor]


def save_cache(engine: Engine, model: ModelIdentity, path: str | os.PathLike[str], tokens: Sequence[int]) -> int:
    """Writes what the cache holds of these tokens; how many. ValueError where that is none.

    The file is written beside its place and then moved there, so that it is whole or not there.
    """
    contents = engine.between_steps(lambda: _taken(engine, tokens))
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ValueError(f"{target}: there is something that is not a file")
    unfinished = target.with_name(target.name + ".part")
    try:
        about = _metadata(engine) | {"model": model.digest, "files": model.files}
        save_file(contents, unfinished, about | {"checksum": checksum(about, contents)})
        unfinished.replace(target)
    except SafetensorError as error:
        raise OSError(f"{target}: cannot be written: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return len(contents["tokens"])


def restore_cache(engine: Engine, model: ModelIdentity, path: str | os.PathLike[str]) -> int:
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
            about = file.metadata() or {}
            _check_metadata(path, about, _metadata(engine))
            tokens = _checked_tokens(path, file, engine)
            contents = {"tokens": torch.tensor(tokens, dtype=torch.int32)}
            contents |= {
                name: _checked_plane(path, name, file, plane, n_pages)
                for group, n_pages in enumerate(pool.n_kept_pages(len(tokens)))
                for name, plane in cache.planes(group)
            }
            if set(file.keys()) != set(contents):
                raise ValueError(f"{path}: expected {len(contents)} tensors, found {len(file.keys())}")
        if checksum({key: value for key, value in about.items() if key != "checksum"}, contents) != about["checksum"]:
            raise ValueError(f"{path}: damaged, its checksum is not that of its content")
        # What was written of the same files needs no look at them.
        if about["files"] != model.files or model.is_known():
            _check_metadata(path, about, {"model": model.digest})
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole file of a cache: {error}") from None
    if not engine.between_steps(lambda: _put(engine, tokens, contents)):
        raise ValueError(f"{path}: its {len(tokens)} tokens do not fit into the cache beside what is running")
    return len(tokens)


def checksum(about: Mapping[str, str], contents: Mapping[str, torch.Tensor]) -> str:
    """Of a file's metadata and tensors."""
    names = list(contents)
    described = [f"{name} {contents[name].dtype} {list(contents[name].shape)}" for name in names]
    return joined(repr(sorted(about.items())), described, lambda number: digest_of(contents[names[number]]))


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
        "k_type": layer.k.type.name,
        "v_type": layer.v.type.name,
        "page_size": str(PAGE_SIZE),
    }


def _check_metadata(path: str | os.PathLike[str], found: dict[str, str], expected: dict[str, str]) -> None:
    for key, value in expected.items():
        if found.get(key) != value:
            raise ValueError(f"{path}: expected a cache file with {key} {value}, found {found.get(key, 'none'):.100}")
    for key in ("model", "files", "checksum"):
        if key not in found:
            raise ValueError(f"{path}: expected a cache file with {key}, found none")


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
