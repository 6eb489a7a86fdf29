"""Opens a model of any kind by its path."""

from __future__ import annotations

import os
from pathlib import Path

from .experts import with_stacks
from .gguf import GGUFFile
from .stored import ModelSource


def open_model(path: str | os.PathLike[str], *, use_mmap: bool = True) -> ModelSource:
    """A GGUF file, the first part of a split one, or a safetensors checkpoint's folder.

    OSError if it is not there, ValueError if it is no model.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ValueError(
                f"{path} is a folder without config.json, expected a GGUF file or a safetensors checkpoint"
            )
        # Imported when it is needed: the tensor names come from the gguf package, which is slow to load.
        from .hf import SafetensorsModel

        return SafetensorsModel(path, use_mmap=use_mmap)
    return with_stacks(GGUFFile(path, use_mmap=use_mmap))
