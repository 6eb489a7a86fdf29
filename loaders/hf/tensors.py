"""A checkpoint's tensors under GGUF's names and in GGUF's order of rows, made when they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from einops import rearrange

from ...quant.formats import BF16, F16, F32, Format
from ..stored import Bytes, StoredTensor
from .config import HFConfig
from .safetensors_file import SafetensorsFile

# Computed from the configuration anyway, or of no use in a language model.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|(^|\.)(vision_tower|vision_model|multi_modal_projector)\.")
LAYER = re.compile(r"((?:.*\.)?layers\.)(\d+)(\..*)")
EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(.*)")
# Mixtral's names for the matrices of an expert.
EXPERT_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
Array = npt.NDArray[Any]
# numpy has no bfloat16, whose bits are the upper half of a float32's.
ITEMS: dict[Format, npt.DTypeLike] = {F32: np.float32, F16: np.float16, BF16: np.uint16}
# Always float32, like everything with one dimension.
FLOAT32_NAMES = re.compile(r"_norm\.weight$|ffn_gate_inp\.weight$|\.bias$")


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the checkpoint and the file that it lies in."""

    file: SafetensorsFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.entries[self.name].shape

    @property
    def format(self) -> Format:
        return self.file.entries[self.name].format

    def read(self) -> Array:
        """Its numbers, in the shape and dtype of the file (ITEMS); a view of the file where that can be."""
        values = self.file.read(self.name).view(ITEMS[self.format]).reshape(self.shape)
        # Headers of odd lengths leave numbers at odd addresses, which torch cannot view.
        return values if values.flags.aligned else values.copy()


class HFTensors:
    """Collects the checkpoint's tensors under GGUF's names.

    stored: the tensors, lazy. pieces: for each what it is made of. ValueError for tensors that are unknown, missing
    from a stack of experts, or of a dtype or shape that their place does not allow.
    """

    def __init__(self, config: HFConfig, pieces: dict[str, Piece]) -> None:
        self.config = config
        arch = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == config.architecture)
        # One layer's names are enough: the others differ by the number only.
        self.names = gguf.get_tensor_name_map(arch, 1)
        self.pieces: dict[str, tuple[Piece, ...]] = {}
        self.stored: dict[str, StoredTensor] = {}
        stacks: dict[str, dict[int, Piece]] = {}
        for name, values in config.rope_factors.items():
            self._add_numbers(name, values)
        for name, piece in pieces.items():
            plain = name.replace("language_model.", "")
            if IGNORED.search(name) or (config.tied and plain == "lm_head.weight"):
                continue
            if match := EXPERT.fullmatch(plain):
                stacks.setdefault(f"{match[1]}{match[3]}", {})[int(match[2])] = piece
            elif plain.endswith(".experts.gate_up_proj"):
                self._add_fused_experts(plain, piece)
            else:
                self._add(plain, (piece,))
        for name, experts in stacks.items():
            if sorted(experts) != list(range(config.n_experts)):
                raise ValueError(f"{name} has experts {_shown(sorted(experts))}, expected {config.n_experts} of them")
            self._add(name, [experts[i] for i in range(config.n_experts)], stacked=True)
        if not config.tied and "output.weight" not in self.stored:
            raise ValueError("tensor 'lm_head.weight' is missing, and tie_word_embeddings is not set")

    def _gguf_name(self, name: str) -> str:
        """The name in a GGUF file of a tensor whose name is that of a language model without vision."""
        parts = name.split(".")
        if "experts" in parts:
            parts = [EXPERT_NAMES.get(part, part) for part in parts]
            name = ".".join(parts).replace("block_sparse_moe.", "mlp.")
        if name.endswith("_proj") and "experts" in parts:
            name += ".weight"
        layer = LAYER.fullmatch(name)
        found: str | None
        if layer is None:
            found = self.names.get_name(name, try_suffixes=(".weight", ".bias"))
        else:
            if int(layer[2]) >= self.config.n_layers:
                raise ValueError(f"tensor {name!r} is of layer {layer[2]}, but there are {self.config.n_layers} layers")
            found = self.names.get_name(f"{layer[1]}0{layer[3]}", try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"tensor {name!r} is not part of the architecture {self.config.architecture}")
        return found if layer is None else found.replace("blk.0.", f"blk.{int(layer[2])}.", 1)

    def _add(self, name: str, pieces: Sequence[Piece], *, stacked: bool = False) -> None:
        """A tensor made of one piece, or of the stack of several."""
        first = pieces[0]
        for piece in pieces:
            _check_format(piece)
            if (piece.shape, piece.format) != (first.shape, first.format):
                raise ValueError(
                    f"tensor {piece.name!r} is {piece.format.name} {list(piece.shape)}, "
                    f"expected {first.format.name} {list(first.shape)} as in {first.name!r}"
                )
        shape = (len(pieces), *first.shape) if stacked else first.shape

        def numbers() -> Array:
            return np.stack([piece.read() for piece in pieces]) if stacked else first.read()

        self._store(self._gguf_name(name), shape, first.format, numbers, pieces, self._change(name, shape))

    def _add_fused_experts(self, name: str, piece: Piece) -> None:
        """transformers' own layout: gate and up of all experts in one tensor [n_experts, 2 * n_ff, n_embd]."""
        _check_format(piece)
        if len(piece.shape) != 3 or piece.shape[1] % 2:
            raise ValueError(
                f"tensor {piece.name!r} has shape {list(piece.shape)}, expected [experts, 2 x width, width]"
            )
        n_experts, n_rows, n_in = piece.shape
        for i, half in enumerate(("gate_proj", "up_proj")):
            start = i * n_rows // 2
            part = self._gguf_name(name.replace("gate_up_proj", half))
            shape = (n_experts, n_rows // 2, n_in)
            self._store(part, shape, piece.format, _Rows(piece, start, start + n_rows // 2), (piece,))

    def _add_numbers(self, name: str, values: list[float]) -> None:
        self._store(name, (len(values),), F32, lambda: np.array(values, np.float32), ())

    def _change(self, name: str, shape: tuple[int, ...]) -> Callable[[Array], Array] | None:
        """What GGUF files have different from checkpoints."""
        if self.config.architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            return lambda values: values + 1
        if self.config.architecture == "llama":
            for part, n_heads in (("q_proj", self.config.n_heads), ("k_proj", self.config.n_kv_heads)):
                if name.endswith((f".{part}.weight", f".{part}.bias")):
                    if not shape or shape[0] % (2 * n_heads):
                        raise ValueError(f"tensor {name!r} has shape {list(shape)}, which {n_heads} heads cannot share")
                    return partial(interleave, n_heads=n_heads)
        return None

    def _store(
        self,
        name: str,
        shape: tuple[int, ...],
        fmt: Format,
        numbers: Callable[[], Array],
        pieces: Sequence[Piece],
        change: Callable[[Array], Array] | None = None,
    ) -> None:
        if name in self.stored:
            raise ValueError(f"tensor {name!r} of the model is in the checkpoint twice")
        wide = len(shape) <= 1 or FLOAT32_NAMES.search(name) is not None

        def read() -> Bytes:
            values = _float32(numbers(), fmt) if wide else numbers()
            values = change(values) if change else values
            return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

        self.stored[name] = StoredTensor(name, F32 if wide else fmt, shape, read)
        self.pieces[name] = tuple(pieces)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows [start, stop) of every matrix of a stack."""

    piece: Piece
    start: int
    stop: int

    def __call__(self) -> Array:
        return self.piece.read()[:, self.start : self.stop]


def interleave(values: Array, n_heads: int) -> Array:
    """Rows of heads whose halves rotate together (i, i + dim / 2), moved so that neighbours do (2i, 2i + 1)."""
    rows: Array = rearrange(values, "(heads two pair) ... -> (heads pair two) ...", heads=n_heads, two=2)
    return rows


def _float32(values: Array, fmt: Format) -> Array:
    return (values.astype(np.uint32) << 16).view(np.float32) if fmt == BF16 else values.astype(np.float32)


def _check_format(piece: Piece) -> None:
    try:
        _ = piece.format
    except ValueError as error:
        raise ValueError(f"tensor {piece.name!r}: {error}") from None


def _shown(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
