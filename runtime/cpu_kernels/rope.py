"""What lies between the product of Q, K and V and attention: the norms of q's and k's heads, the rotation, and the
writing of keys and values into the cache.

Source of the rotation: RoFormer, arXiv 2104.09864. Products and sums are rounded one by one, as in plain torch.
"""

from __future__ import annotations

from typing import Any, Literal

import llvmlite.ir as ir
import numpy as np
import torch
from numba import types

from ...quant.cache_types import CacheType
from .atomics import next_task
from .attention_tables import COS, N_ROWS, SIN, SLOTS, Angles, StepTables
from .cache import check_heads, plane_addresses, row_writer
from .kernel import kernel_family
from .language import F32, FLOATS, I32, LANES, floats, inline, load, op
from .programs import Program
from .scalars import load_float, load_int, number, square_root, store_float
from .vectors import all_floats, load_floats, store_floats, sum_floats

Pairing = Literal["norm", "neox"]

# Heads that a thread takes at a time.
TASK_HEADS = 16
ONE = np.float32(1.0)


@op(floats, types.intp)
def load_pairs(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """8 float32, each in two lanes beside each other."""
    half = load(b, address, ir.VectorType(F32, LANES // 2))
    order = ir.Constant(ir.VectorType(I32, LANES), [i // 2 for i in range(LANES)])
    return b.shuffle_vector(half, ir.Constant(half.type, ir.Undefined), order)


@op(floats, floats)
def swap_pairs(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Neighbouring lanes exchanged, the even ones negated: (x0, x1) becomes (-x1, x0)."""
    order = ir.Constant(ir.VectorType(I32, LANES), [i + 1 if i % 2 == 0 else LANES + i - 1 for i in range(LANES)])
    return b.shuffle_vector(b.fsub(ir.Constant(FLOATS, [-0.0] * LANES), x), x, order)


@inline
def rotate_numbers(first, second, cos, sin):
    x, y, c, s = load_float(first), load_float(second), load_float(cos), load_float(sin)
    store_float(first, x * c - y * s)
    store_float(second, y * c + x * s)


def rotation(dim: int, neox: bool) -> Any:
    """rotate(head, cos, sin): the first `dim` values of a head, in place; cos and sin are a row's angles."""
    half = dim // 2
    whole = half // LANES * LANES

    @inline
    def halves(head, cos, sin):
        for i in range(0, 4 * whole, 4 * LANES):
            x, y, c, s = (
                load_floats(head + i),
                load_floats(head + 4 * half + i),
                load_floats(cos + i),
                load_floats(sin + i),
            )
            store_floats(head + i, x * c - y * s)
            store_floats(head + 4 * half + i, y * c + x * s)
        for i in range(4 * whole, 4 * half, 4):
            rotate_numbers(head + i, head + 4 * half + i, cos + i, sin + i)

    pairs_whole = dim // LANES * LANES

    @inline
    def neighbours(head, cos, sin):
        for i in range(0, 4 * pairs_whole, 4 * LANES):
            x, c, s = load_floats(head + i), load_pairs(cos + i // 2), load_pairs(sin + i // 2)
            store_floats(head + i, x * c + swap_pairs(x) * s)
        for i in range(4 * pairs_whole, 4 * dim, 8):
            rotate_numbers(head + i, head + i + 4, cos + i // 2, sin + i // 2)

    return halves if neox else neighbours


def head_norm(head_dim: int) -> Any:
    """norm(head, weight, eps): RMSNorm of a head, in place."""
    share = np.float32(1 / head_dim)

    @inline
    def norm(head, weight, eps):
        total = all_floats(0.0)
        for i in range(0, 4 * head_dim, 4 * LANES):
            x = load_floats(head + i)
            total = total + x * x
        scale = ONE / square_root(sum_floats(total) * share + eps)
        for i in range(0, 4 * head_dim, 4 * LANES):
            store_floats(head + i, load_floats(head + i) * scale * load_floats(weight + i))

    return norm


@kernel_family
def rope_and_write(head_dim, rope_dim, pairing, normed, k_type, v_type):
    """Heads of all rows, q's, then k's, then v's, in tasks of a few: q and k normed (if `normed`, where there is a
    weight) and rotated in place, k and v written into the cache. Strides are bytes from row to row."""
    norm, rotate = head_norm(head_dim), rotation(rope_dim, pairing == "neox")
    write_k, write_v = row_writer(k_type, head_dim), row_writer(v_type, head_dim)
    head_bytes, angle_bytes = 4 * head_dim, 2 * rope_dim

    def rope_and_write(
        q, k, v, q_stride, k_stride, v_stride, n_heads, n_kv_heads, q_norm, k_norm, eps, tables, angles,
        k_data, k_high, k_scales, v_data, v_high, v_scales, counter, thread, n_threads,
    ):  # fmt: skip
        per_row = n_heads + 2 * n_kv_heads
        total, slots = load_int(tables + 8 * N_ROWS) * per_row, load_int(tables + 8 * SLOTS)
        while True:
            first = next_task(counter) * TASK_HEADS
            if first >= total:
                break
            for i in range(first, min(first + TASK_HEADS, total)):
                row = i // per_row
                head = i - row * per_row
                kv_head = head - n_heads
                if kv_head < n_kv_heads:
                    at = q + row * q_stride + head * head_bytes
                    weight = q_norm
                    if kv_head >= 0:
                        at = k + row * k_stride + kv_head * head_bytes
                        weight = k_norm
                    if normed and weight != 0:
                        norm(at, weight, number(eps))
                    if rope_dim > 0:
                        angle = row * angle_bytes
                        rotate(at, load_int(angles + 8 * COS) + angle, load_int(angles + 8 * SIN) + angle)
                    if kv_head >= 0:
                        place = load_int(slots + 8 * row) * n_kv_heads + kv_head
                        write_k(k_data, k_high, k_scales, place, at)
                else:
                    place = load_int(slots + 8 * row) * n_kv_heads + kv_head - n_kv_heads
                    at = v + row * v_stride + (kv_head - n_kv_heads) * head_bytes
                    write_v(v_data, v_high, v_scales, place, at)

    return rope_and_write


class RopeAndWrite:
    """A layer's part between the product of Q, K and V and attention.

    rope_dim: how many values of a head rotate, the first ones, 0 for none; pairing: which of them together, "norm"
    (2 i, 2 i + 1) or "neox" (i, i + rope_dim / 2). q_norm, k_norm: weights of the heads' RMSNorms, float32 [head_dim].

    ValueError where heads are not a multiple of 16 values, or do not fit the cache types or the rotation.
    """

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        rope_dim: int,
        pairing: Pairing,
        k_type: CacheType,
        v_type: CacheType,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        check_heads(head_dim, k_type, v_type)
        if rope_dim % 2 or not 0 <= rope_dim <= head_dim or pairing not in ("norm", "neox"):
            found = f"{rope_dim} of {head_dim}, {pairing!r}"
            raise ValueError(f'expected an even part of a head to rotate, paired as "norm" or "neox", found {found}')
        for weight in (q_norm, k_norm):
            if weight is not None and (
                (weight.shape, weight.dtype) != ((head_dim,), torch.float32) or not weight.is_contiguous()
            ):
                raise ValueError(f"expected a norm float32 [{head_dim}], found {weight.dtype} {list(weight.shape)}")
        self.n_heads, self.n_kv_heads, self.eps = n_heads, n_kv_heads, eps
        self._norms = [weight for weight in (q_norm, k_norm) if weight is not None]
        self._weights = [0 if weight is None else weight.data_ptr() for weight in (q_norm, k_norm)]
        self._constants = (head_dim, rope_dim, pairing, bool(self._norms), k_type.name, v_type.name)

    def add(
        self,
        program: Program,
        qkv: tuple[int | str, int | str, int | str],
        strides: tuple[int, int, int],
        tables: StepTables,
        angles: Angles,
        k_planes: tuple[torch.Tensor, ...],
        v_planes: tuple[torch.Tensor, ...],
    ) -> None:
        """Adds one instruction. qkv: addresses of q, k and v, or the program's names for them, float32 rows of heads;
        strides: bytes from row to row.

        k_planes, v_planes: the layer's cache, [n_pages, page_size, n_kv_heads, width] each. q and k are changed in
        place. Between runs, only `tables` and `angles` need be set.
        """
        program.keep += [*self._norms, tables, angles, *k_planes, *v_planes]
        names = ("q", "k", "v", "q_stride", "k_stride", "v_stride", "q_norm", "k_norm")
        rows: dict[str, Any] = dict(zip(names, (*qkv, *strides, *self._weights), strict=True))
        program.add(
            rope_and_write,
            *self._constants,
            **rows,
            **plane_addresses("k", k_planes),
            **plane_addresses("v", v_planes),
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            eps=float(self.eps),
            tables=tables.address,
            angles=angles.address,
        )
