"""Opens a Hugging Face checkpoint folder as if llama.cpp's converter had made a GGUF file of it, without a copy.

config.json and the tokenizer's files become metadata (config.py, tokenizer.py), the safetensors files' tensors
get GGUF's names (tensors.py); what has to be changed in them is changed when they are read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..quote import quoted
from ..stored import StoredTensor
from .config import HFConfig, read_config
from .files import CONFIG, GENERATION, INDEX, WEIGHTS, index_files, reads_index
from .json_file import read_json, read_side_json
from .safetensors_file import SafetensorsFile
from .sampling import sampling_kv
from .tensors import HFTensors, Piece
from .tokenizer import tokenizer_kv

# general.file_type by the format of the first matrix.
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
QUANTIZATION_VERSION = 2


class SafetensorsModel:
    """A checkpoint: config.json, model.safetensors or model.safetensors.index.json with its parts, a tokenizer.

    kv, tensors, release: as ModelSource has them; where there is no tokenizer, kv has no tokenizer.* keys.
    Raises OSError for files that cannot be read, ValueError, naming the file, for what is malformed or unsupported.
    """

    def __init__(self, path: str | os.PathLike[str], *, use_mmap: bool = True) -> None:
        self.path = Path(path)
        config_path = self.path / CONFIG
        config = read_config(read_json(config_path), str(config_path))
        pieces = _pieces(self.path, use_mmap)
        try:
            found = HFTensors(config, pieces)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        self.tensors: dict[str, StoredTensor] = found.stored
        self._pieces = found.pieces
        rows = self.tensors["token_embd.weight"].shape if "token_embd.weight" in self.tensors else ()
        if rows[:1] != (config.n_vocab,):
            raise ValueError(f"{self.path}: the embedding has shape {list(rows)}, expected {config.n_vocab} rows")
        generation = read_side_json(self.path / GENERATION)
        self.kv: dict[str, Any] = {
            **self._general(config),
            **config.kv,
            **sampling_kv(generation, str(self.path / GENERATION)),
            **tokenizer_kv(self.path, config.architecture, config.n_vocab, generation),
        }

    @property
    def name(self) -> str:
        return str(self.path)

    def release(self, tensor: StoredTensor) -> None:
        """Lets the pages of a tensor whose bytes were used leave memory; reading it again stays possible."""
        for piece in self._pieces[tensor.name]:
            piece.file.release(piece.name)

    def _general(self, config: HFConfig) -> dict[str, Any]:
        first = next((t.format.name for t in self.tensors.values() if len(t.shape) > 1), "F16")
        return {
            "general.architecture": config.architecture,
            "general.type": "model",
            "general.name": _title(self.path.resolve().name),
            "general.file_type": FILE_TYPES[first],
            "general.quantization_version": QUANTIZATION_VERSION,
        }


def _pieces(folder: Path, use_mmap: bool) -> dict[str, Piece]:
    """All tensors of all files of the checkpoint."""
    index_path, present = folder / INDEX, {path.name for path in folder.glob("*.safetensors")}
    weight_map: dict[str, str] = {}
    if index_path.exists():
        index = read_json(index_path)
        names = index_files(index, str(index_path))
        if reads_index(names, present):
            weight_map = index["weight_map"]
    if not weight_map:
        file = SafetensorsFile(folder / WEIGHTS, use_mmap=use_mmap)
        return {name: Piece(file, name) for name in file.entries}
    if absent := [name for name in names if name not in present]:
        raise FileNotFoundError(f"{folder}: {absent[0]} is missing, {len(absent)} of the {len(names)} files of {INDEX}")
    pieces: dict[str, Piece] = {}
    for name in names:
        file = SafetensorsFile(folder / name, use_mmap=use_mmap)
        pieces |= {tensor: Piece(file, tensor) for tensor in file.entries if weight_map.get(tensor) == name}
    missing = weight_map.keys() - pieces.keys()
    if missing:
        raise ValueError(
            f"{index_path}: {len(missing)} tensors are not where it says, {quoted(min(missing))} among them"
        )
    return pieces


def _title(name: str) -> str:
    """A folder's name as a model's name: words capitalised unless they are numbers or have capitals already."""
    words = name.strip().replace("-", " ").split()
    plain = re.compile(r"(v\d+(\.\d+)*|\d.*)")
    return " ".join(w.title() if w.islower() and not plain.fullmatch(w) else w for w in words)
