"""Attention over a paged cache: which kernel, which tile, which launch.

An `Attention` is made once per kind of layer and checked then. A call is given the queries, the cache's planes and the
`PageTables` of a batch, which were checked when they were made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..quant.cache_types import BLOCK, CacheType
from . import codebooks
from .activations import Form, Units, empty_form, in_form
from .attention_decode import attention_decode_kernel
from .attention_prefill import attention_prefill_kernel
from .grid import next_power_of_2
from .kv_cache import plane_pointers
from .packing import UNIT
from .scores import LOG2_E
from .tuning import AttentionTile, AttentionTuning, Tuning, arch_of, isa, multiprocessors, tuning

MAX_HEAD_DIM = 512
MAX_REGISTERS = 255
# Places in a plane are computed in 32 bits.
MAX_VALUES = 2**31 - 1
# Sequences with at most so many new tokens have their keys divided among programs.
FEW_TOKENS = 16
# Chunks that the keys of a sequence are divided into at most.
PARTS = 32


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a layer's attention computes: softmax(q.k * scale) v, over the keys that a query sees.

    head_dim, v_dim: values in a head of queries and keys, and in one of values. softcap c > 0: a score s becomes
    c tanh(s / c). A query at position p sees the keys up to p (all of them where not causal); with a window w > 0 those
    after p - w (not causal: from p - w // 2 to p + w // 2), with a chunk c > 0 those from p // c * c on.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    scale: float
    softcap: float = 0.0
    window: int = 0
    chunk: int = 0
    causal: bool = True

    def __post_init__(self) -> None:
        if self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} heads cannot share {self.n_kv_heads} kv heads evenly")
        for size in (self.head_dim, self.v_dim):
            if not 1 <= size <= MAX_HEAD_DIM:
                raise ValueError(f"heads have 1 … {MAX_HEAD_DIM} values, found {size}")
        if min(self.softcap, self.window, self.chunk) < 0:
            raise ValueError(f"softcap, window and chunk are not negative, found {self}")
        if self.chunk and not self.causal:
            raise ValueError("chunks need causal attention")


@dataclass(frozen=True, slots=True)
class PageTables:
    """Where a batch's sequences are: int32 tensors on the device, and what launches need to know of them.

    starts [n + 1]: sequence i has rows starts[i] … starts[i + 1] - 1. lengths [n]: its tokens in the cache, new
    ones included. pages [n, width]: its pages in order. n_pages: those of the cache. new: how many tokens are new, of
    sequences that have any.
    """

    starts: Tensor
    lengths: Tensor
    pages: Tensor
    page_size: int
    n_pages: int
    n_tokens: int
    new: tuple[int, ...]

    @classmethod
    def build(
        cls,
        sequences: Sequence[tuple[int, int, int, Sequence[int]]],
        page_size: int,
        n_pages: int,
        device: torch.device,
    ) -> "PageTables":
        """From start, stop, length and pages of each sequence.

        ValueError where rows do not follow one another, a length is less than the new tokens or more than the pages
        hold, or a page is not one of the cache's.
        """
        row = 0
        for i, (start, stop, length, pages) in enumerate(sequences):
            if start != row or stop < start:
                raise ValueError(f"sequence {i}: expected rows from {row} on, found {start} … {stop}")
            if not stop - start <= length <= len(pages) * page_size:
                found = f"length {length} with {stop - start} new tokens and {len(pages)} pages of {page_size}"
                raise ValueError(f"sequence {i}: expected a length that its pages hold, found {found}")
            if pages and not 0 <= min(pages) <= max(pages) < n_pages:
                raise ValueError(f"sequence {i}: expected pages 0 … {n_pages - 1}, found {min(pages)} … {max(pages)}")
            row = stop
        width = max((len(pages) for *_, pages in sequences), default=0)
        table = torch.zeros(len(sequences), max(width, 1), dtype=torch.int32)
        for i, (*_, pages) in enumerate(sequences):
            table[i, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        starts = torch.tensor([0, *(stop for _, stop, *_ in sequences)], dtype=torch.int32)
        lengths = torch.tensor([length for _, _, length, _ in sequences], dtype=torch.int32)
        new = tuple(stop - start for start, stop, *_ in sequences if stop > start)
        return cls(starts.to(device), lengths.to(device), table.to(device), page_size, n_pages, row, new)


class Attention:
    """softmax(q k^T) v for the new tokens of a batch, keys and values from a paged cache, of any types.

    sinks: [n_heads], a score per head that takes part in the softmax and has no value.
    table: tiles; by default those of the device. few: sequences with at most so many new tokens have their keys divided
    among programs.

    ValueError where the types do not fit the heads.
    """

    def __init__(
        self,
        shape: AttentionShape,
        k_type: CacheType,
        v_type: CacheType,
        device: torch.device,
        *,
        sinks: Tensor | None = None,
        table: Tuning | None = None,
        few: int = FEW_TOKENS,
    ) -> None:
        for kind, size in ((k_type, shape.head_dim), (v_type, shape.v_dim)):
            kind.planes(size)
            if kind.name == "fp8" and size % 16:
                raise ValueError(f"kernels read fp8 from heads of a multiple of 16 values, found {size}")
        if sinks is not None and (sinks.shape != (shape.n_heads,) or sinks.device != device):
            raise ValueError(f"expected sinks [{shape.n_heads}] on {device}, found {list(sinks.shape)}, {sinks.device}")
        arch = arch_of(device)
        self.shape, self.k_type, self.v_type, self.device, self.sinks, self.few = (
            *(shape, k_type, v_type, device, sinks, few),
        )
        self.table = table or tuning(arch)
        self.group = shape.n_heads // shape.n_kv_heads
        self._scales = (shape.scale * LOG2_E.value, shape.softcap or 1.0, shape.window, shape.chunk)
        d0, d1 = pieces(shape.head_dim)
        dv0, dv1 = pieces(shape.v_dim)
        self._options: dict[str, Any] = {
            **{"N_HEADS": shape.n_heads, "N_KV": shape.n_kv_heads, "D": shape.head_dim, "D0": d0, "D1": d1},
            **{"DV": shape.v_dim, "DV0": dv0, "DV1": dv1, "K_TYPE": k_type.name, "V_TYPE": v_type.name},
            **{"CAUSAL": shape.causal, "WINDOW": shape.window > 0, "CHUNK": shape.chunk > 0},
            **{"SOFTCAP": shape.softcap > 0, "ISA": isa(arch), "enable_fp_fusion": True},
        }
        if isa(arch) == "ptx":
            # Without a number of its own, ptxas spills to reach the next step of occupancy.
            self._options["maxnreg"] = MAX_REGISTERS

    def forms(self) -> tuple[Form, ...]:
        """The forms in which the output can be had: units need whole groups of 32 in a head and whole units of 256."""
        whole = self.shape.v_dim % BLOCK == 0 and self.shape.n_heads * self.shape.v_dim % UNIT == 0
        return ("plain", "int8", "spread") if whole else ("plain",)

    def __call__(
        self, q: Tensor, k: tuple[Tensor, ...], v: tuple[Tensor, ...], tables: PageTables, form: Form = "plain"
    ) -> Tensor | Units:
        """q [n_tokens, n_heads, head_dim], contiguous; k, v: planes [n_pages, page_size, n_kv_heads, width].

        The result is [n_tokens, n_heads * v_dim] in the type of q, or its units.
        """
        self._check_call(q, k, v, tables, form)
        shape, n = self.shape, len(q)
        out = empty_form(n, shape.n_heads * shape.v_dim, form, q.dtype, self.device)
        if n:
            arguments = (*plane_pointers(k), *plane_pointers(v), codebooks.table(self.device), self.sinks)
            options = {
                **self._options,
                "PAGE_SIZE": tables.page_size,
                "FORM": form,
                "SEQUENCES": next_power_of_2(len(tables.lengths)),
            }
            few = [count for count in tables.new if count <= self.few]
            if len(few) < len(tables.new):
                self._prefill(out, q, arguments, tables, options)
            if few:
                self._decode(out, q, arguments, tables, options, few)
        return in_form(out, shape.n_heads * shape.v_dim, form, q.dtype)

    def _check_call(
        self, q: Tensor, k: tuple[Tensor, ...], v: tuple[Tensor, ...], tables: PageTables, form: Form
    ) -> None:
        shape = self.shape
        if q.shape != (tables.n_tokens, shape.n_heads, shape.head_dim) or not q.is_contiguous():
            expected = f"q [{tables.n_tokens}, {shape.n_heads}, {shape.head_dim}], contiguous"
            raise ValueError(f"expected {expected}, found {list(q.shape)} with strides {q.stride()}")
        cache = (tables.n_pages, tables.page_size, shape.n_kv_heads)
        for planes, kind, width in ((k, self.k_type, shape.head_dim), (v, self.v_type, shape.v_dim)):
            expected_planes = [((*cache, n), dtype) for n, dtype in kind.planes(width)]
            found = [(tuple(plane.shape), plane.dtype) for plane in planes]
            if found != expected_planes:
                raise ValueError(f"expected planes {expected_planes}, found {found}")
            if planes[0].numel() > MAX_VALUES:
                raise ValueError(f"expected at most {MAX_VALUES} values in a plane, found {planes[0].numel()}")
        if form not in self.forms():
            found_heads = f"{shape.n_heads} heads of {shape.v_dim} values"
            raise ValueError(f"expected one of the forms {self.forms()} for {found_heads}, found {form!r}")

    def _prefill(
        self, out: Tensor, q: Tensor, arguments: tuple[Any, ...], tables: PageTables, options: dict[str, Any]
    ) -> None:
        tile = self._tile("prefill", q)
        n_sequences = len(tables.lengths)
        attention_prefill_kernel[len(q) * self.group // tile.bm + n_sequences, self.shape.n_kv_heads](
            *(out, q, *arguments, tables.starts, tables.lengths, tables.pages),
            *(tables.pages.shape[1], n_sequences, self.few, *self._scales),
            **options,
            **{"BM": tile.bm, "BN": tile.bn, "STAGES": tile.stages, "num_warps": tile.warps},
        )

    def _decode(
        self,
        out: Tensor,
        q: Tensor,
        arguments: tuple[Any, ...],
        tables: PageTables,
        options: dict[str, Any],
        few: list[int],
    ) -> None:
        entry, shape, n_sequences = self.table.attention, self.shape, len(tables.lengths)
        tile = self._tile("decode", q)
        bm = min(max(16, next_power_of_2(self.group * max(few))), tile.bm)
        n_blocks = len(q) * self.group // bm + n_sequences
        partial = torch.empty(sum(few), shape.n_heads, PARTS, shape.v_dim + 2, device=self.device)
        counters = _counters(self.device, n_blocks * shape.n_kv_heads)
        attention_decode_kernel[entry.programs * multiprocessors(self.device),](
            *(out, q, *arguments, tables.starts, tables.lengths, tables.pages, partial, counters),
            *(tables.pages.shape[1], n_sequences, self.few, entry.min_keys, *self._scales),
            **options,
            **{"PARTS": PARTS, "BM": bm, "BN": tile.bn, "STAGES": tile.stages, "num_warps": tile.warps},
        )

    def _tile(self, kernel: str, q: Tensor) -> AttentionTile:
        types = self.k_type.name, self.v_type.name
        return attention_tile(self.table.attention, kernel, self.shape.head_dim, self.shape.v_dim, types, q.itemsize)


_COUNTERS: dict[torch.device, list[Tensor]] = {}


def _counters(device: torch.device, n: int) -> Tensor:
    # Zero between launches. Kernels of one stream run one after another, so all layers share them. Smaller ones are
    # kept: captured graphs have their addresses.
    made = _COUNTERS.setdefault(device, [])
    if not made or len(made[-1]) < n:
        made.append(torch.zeros(max(4096, next_power_of_2(n)), dtype=torch.int32, device=device))
    return made[-1]


def pieces(size: int) -> tuple[int, int]:
    """One or two powers of two, 16 or more, that cover a head: 80 is 64 + 16, 96 is 64 + 32."""
    first = max(16, 1 << int(math.log2(size)))
    rest = size - first
    return first, max(16, next_power_of_2(rest)) if rest > 0 else 0


def attention_tile(
    entry: AttentionTuning, kernel: str, head_dim: int, v_dim: int, types: tuple[str, str], itemsize: int
) -> AttentionTile:
    """The tile of a kernel ("prefill" or "decode") for heads of that size.

    itemsize: bytes of a query's values; those of four take twice the room.
    """
    # For 16-bit queries, quants are decoded to f16, which takes no more registers than f16 itself.
    decoded = itemsize == 4 or "f32" in types
    size = max(head_dim, v_dim) * (2 if itemsize == 4 else 1)
    tiles = entry.decode if kernel == "decode" else entry.prefill
    usable = [tile for tile in tiles if tile.decoded or not decoded]
    return next(tile for tile in usable if not tile.max_dim or size <= tile.max_dim)
