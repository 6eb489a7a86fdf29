"""Which model a cache belongs to: a digest of its configuration and of all of its tensors' bytes."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ...loaders.stored import ModelSource
from ..config import ModelConfig

DIGEST_BYTES = 16
# Tensors that are hashed at a time, each in a thread: about 1 GB/s per core.
N_THREADS = 4
PART = re.compile(r"(.+-)\d{5}(-of-\d{5}\.gguf)")


class ModelIdentity:
    """Tells models apart, whatever their files are called.

    A digest takes as long as reading the files, so it is computed when it is first asked for, and once. files: path,
    bytes, time of change and inode of each, one a line; where a file of a cache says the same of its model, that is
    this one, and nothing has to be read.
    """

    def __init__(self, source: ModelSource, config: ModelConfig) -> None:
        self._source, self._config = source, config
        self._lock = threading.Lock()
        self._digest: str | None = None
        self.files = "\n".join(_states(model_files(Path(source.name))))

    @property
    def digest(self) -> str:
        with self._lock:
            if self._digest is None:
                tensors = self._source.tensors.values()
                names = [f"{t.name} {t.format.name} {list(t.shape)}" for t in tensors]

                def hashed(number: int) -> bytes:
                    tensor = tensors_by_number[number]
                    found = digest_of(tensor.bytes())
                    self._source.release(tensor)
                    return found

                tensors_by_number = list(tensors)
                self._digest = joined(repr(self._config), names, hashed)
            return self._digest

    def is_known(self) -> bool:
        return self._digest is not None


def joined(first: str, names: list[str], hashed: Callable[[int], bytes]) -> str:
    """The digest of a text and of parts with names; hashed: the digest of a part by its number."""
    whole = hashlib.blake2b(first.encode(), digest_size=DIGEST_BYTES)
    with ThreadPoolExecutor(N_THREADS) as threads:
        parts = list(threads.map(hashed, range(len(names))))
    for name, part in sorted(zip(names, parts, strict=True)):
        whole.update(f"\0{name}\0".encode() + part)
    return whole.hexdigest()


def digest_of(tensor: torch.Tensor) -> bytes:
    """Of a tensor's bytes, on a CPU."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def model_files(path: Path) -> list[Path]:
    """The files that a model is read from: one, all parts of a split one, or those in a folder."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".json") and file.is_file())
    part = PART.fullmatch(path.name)
    if part is None:
        return [path]
    found = ((file, PART.fullmatch(file.name)) for file in path.parent.iterdir())
    return sorted(file for file, match in found if match is not None and match.groups() == part.groups())


def _states(files: Iterable[Path]) -> list[str]:
    stats = [(file.resolve(), file.stat()) for file in files]
    return [f"{file} {s.st_size} {s.st_mtime_ns} {s.st_ino}" for file, s in stats]
