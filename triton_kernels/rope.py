"""What lies between the product of Q, K and V and attention, in one launch: the norms of q's and k's heads, the
rotation, and the writing of keys and values into the cache.

Source of the rotation: RoFormer, arXiv 2104.09864. A program takes a few heads of one token. An element and its
partner in the rotation are two loads of the same row, so that both pairings and rotations of a part of a head are one
piece of code without an exchange between lanes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quant.cache_types import cache_type
from .activations import FLOATS
from .grid import cdiv, next_power_of_2
from .kv_cache import plane_pointers, store_rows

Pairing = Literal["norm", "neox"]

MAX_HEAD_DIM = 512
# Values that a program takes at a time.
PROGRAM_VALUES = 1024


# ---- kernels ----


@triton.jit
def _partner(d, DIM: tl.constexpr, NEOX: tl.constexpr):
    """The element that element d of the first DIM rotates with, their pair, and whether d is the pair's first."""
    if NEOX:
        first = d < DIM // 2
        return tl.where(first, d + DIM // 2, d - DIM // 2), tl.where(first, d, d - DIM // 2), first
    else:
        return d ^ 1, d // 2, d % 2 == 0


@triton.jit
def _normed(values, inverse, weight, d, inside, x):
    """Values [H, D] of heads times their inverse RMS [H] and the norm's weight, rounded to the type of x."""
    scaled = values * inverse[:, None] * tl.load(weight + d, mask=inside, other=0.0)[None, :]
    return scaled.to(x.dtype.element_ty).to(tl.float32)


@triton.jit
def _turned(
    x,
    row,
    head,
    n_heads,
    weight,
    eps,
    cos,
    sin,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    NEOX: tl.constexpr,
):
    """Heads `head` [H] of a token, normed and rotated: [H, D_PADDED] float32, rounded to the type of x.

    x: the token's first head. Past D, and past the last head, values are zeros or of another head.
    """
    d = tl.arange(0, D_PADDED)
    at = x + (head * D)[:, None]
    known = (head < n_heads)[:, None]
    values = tl.load(at + d[None, :], mask=known & (d < D)[None, :], other=0.0).to(tl.float32)
    inverse = tl.zeros((head.shape[0],), tl.float32)
    if weight is not None:
        inverse = tl.rsqrt(tl.sum(values * values, 1) / D + eps)
        values = _normed(values, inverse, weight, d, d < D, x)
    if DIM > 0:
        turns = d < DIM
        partner, pair, first = _partner(d, DIM, NEOX)
        other = tl.load(at + partner[None, :], mask=known & turns[None, :], other=0.0).to(tl.float32)
        if weight is not None:
            other = _normed(other, inverse, weight, partner, turns, x)
        c = tl.load(cos + row * (DIM // 2) + pair, mask=turns, other=1.0)[None, :]
        s = tl.load(sin + row * (DIM // 2) + pair, mask=turns, other=0.0)[None, :]
        turned = tl.where(first[None, :], values * c - other * s, other * s + values * c)
        values = tl.where(turns[None, :], turned, values)
    return values.to(x.dtype.element_ty).to(tl.float32)


@triton.jit
def rope_kernel(
    q_out,
    q,
    k,
    v,
    q_norm,
    k_norm,
    eps,
    cos,
    sin,
    slots,
    k_data,
    k_high,
    k_scales,
    v_data,
    v_high,
    v_scales,
    q_stride,
    k_stride,
    v_stride,
    n_heads,
    n_kv_heads,
    n_slots,
    D: tl.constexpr,
    V_DIM: tl.constexpr,
    D_PADDED: tl.constexpr,
    V_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    NEOX: tl.constexpr,
    K_TYPE: tl.constexpr,
    V_TYPE: tl.constexpr,
    H: tl.constexpr,
):
    """q_out [n, n_heads, D] = q normed and rotated; k the same into the cache at `slots` [n], and v as it is.

    q [n, n_heads, D], k [n, n_kv_heads, D], v [n, n_kv_heads, V_DIM]: tokens a stride apart. q_norm, k_norm: float32
    [D] or None. cos, sin: float32 [n, DIM / 2]; DIM, how many elements of a head rotate, may be 0. Planes of the cache
    as kv_cache.store_rows has them. Grid (n, ceil(n_heads / H) + 2 ceil(n_kv_heads / H)).
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    blocks_q = tl.cdiv(n_heads, H)
    blocks_k = tl.cdiv(n_kv_heads, H)
    if block < blocks_q:
        head = block * H + tl.arange(0, H)
        values = _turned(q + row * q_stride, row, head, n_heads, q_norm, eps, cos, sin, D, D_PADDED, DIM, NEOX)
        d = tl.arange(0, D_PADDED)
        at = q_out + row * n_heads * D + (head * D)[:, None] + d[None, :]
        tl.store(at, values.to(q_out.dtype.element_ty), mask=(head < n_heads)[:, None] & (d < D)[None, :])
    else:
        slot = tl.load(slots + row)
        used = tl.where((slot >= 0) & (slot < n_slots), n_kv_heads, 0)
        if block < blocks_q + blocks_k:
            head = (block - blocks_q) * H + tl.arange(0, H)
            token = k + row * k_stride
            values = _turned(token, row, head, n_kv_heads, k_norm, eps, cos, sin, D, D_PADDED, DIM, NEOX)
            inside = head < used
            store_rows(values, k_data, k_high, k_scales, slot * n_kv_heads + head, inside, K_TYPE, D)
        else:
            head = (block - blocks_q - blocks_k) * H + tl.arange(0, H)
            d = tl.arange(0, V_PADDED)
            at = v + row * v_stride + (head * V_DIM)[:, None] + d[None, :]
            inside = head < used
            values = tl.load(at, mask=inside[:, None] & (d < V_DIM)[None, :], other=0.0).to(tl.float32)
            store_rows(values, v_data, v_high, v_scales, slot * n_kv_heads + head, inside, V_TYPE, V_DIM)


# ---- calls ----


class RopeAndWrite:
    """A layer's part between the product of Q, K and V and attention.

    rope_dim: how many elements of a head rotate, the first ones, 0 for none; pairing: which of them together, "norm"
    (2 i, 2 i + 1) or "neox" (i, i + rope_dim / 2). q_norm, k_norm: weights of the heads' RMSNorms, float32 [head_dim].
    k_type, v_type: names of cache types (quant/cache_types.py).

    ValueError where they do not fit each other.
    """

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        v_dim: int,
        *,
        rope_dim: int,
        pairing: Pairing,
        k_type: str,
        v_type: str,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        _check_heads(head_dim, v_dim, rope_dim, pairing)
        for weight in (q_norm, k_norm):
            if weight is not None and (
                (weight.shape, weight.dtype) != ((head_dim,), torch.float32) or not weight.is_contiguous()
            ):
                raise ValueError(f"expected a norm float32 [{head_dim}], found {weight.dtype} {list(weight.shape)}")
        self.n_heads, self.n_kv_heads, self.head_dim, self.v_dim = n_heads, n_kv_heads, head_dim, v_dim
        self.rope_dim, self.q_norm, self.k_norm, self.eps = rope_dim, q_norm, k_norm, eps
        self.widths = [n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * v_dim]
        # Of every plane of the keys and of the values, what follows pages and places: a ValueError where blocks do not
        # fit the heads.
        sides = ((k_type, head_dim), (v_type, v_dim))
        self._planes = [
            [((n_kv_heads, width), dtype) for width, dtype in cache_type(kind).planes(dim)] for kind, dim in sides
        ]
        padded, v_padded = next_power_of_2(head_dim), next_power_of_2(v_dim)
        self._heads = max(1, min(PROGRAM_VALUES // max(padded, v_padded), next_power_of_2(n_heads)))
        self._blocks = cdiv(n_heads, self._heads) + 2 * cdiv(n_kv_heads, self._heads)
        self._options = {
            **{"D": head_dim, "V_DIM": v_dim, "D_PADDED": padded, "V_PADDED": v_padded, "H": self._heads},
            **{"K_TYPE": k_type, "V_TYPE": v_type, "NEOX": pairing == "neox", "num_warps": 4},
            "enable_fp_fusion": True,
        }

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v side by side, [n, width], as views; ValueError for another width."""
        if qkv.dim() != 2 or qkv.shape[1] != sum(self.widths):
            raise ValueError(f"expected q, k and v side by side, [n, {sum(self.widths)}], found {list(qkv.shape)}")
        q, k, v = qkv.split(self.widths, dim=1)
        return q, k, v

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        slots: Tensor,
        k_planes: Sequence[Tensor],
        v_planes: Sequence[Tensor],
    ) -> Tensor:
        """q [n, n_heads * head_dim], k [n, n_kv_heads * head_dim], v [n, n_kv_heads * v_dim], rows with unit stride ->
        q rotated [n, n_heads, head_dim].

        angles: cos and sin, float32 [n, rope_dim / 2], contiguous; None without a rotation. slots: int64 [n], counted
        in tokens from the cache's first page; a token whose slot is outside is not written. k_planes, v_planes: the
        cache, contiguous, [n_pages, page size, n_kv_heads, width] each. ValueError where these do not fit.
        """
        self._check_call((q, k, v), angles, slots, (k_planes, v_planes))
        n = len(q)
        q_out = torch.empty(n, self.n_heads, self.head_dim, dtype=q.dtype, device=q.device)
        cos, sin = angles or (None, None)
        n_slots = k_planes[0].shape[0] * k_planes[0].shape[1]
        if n:
            rope_kernel[n, self._blocks](
                *(q_out, q, k, v, self.q_norm, self.k_norm, self.eps, cos, sin, slots),
                *(*plane_pointers(k_planes), *plane_pointers(v_planes), q.stride(0), k.stride(0), v.stride(0)),
                *(self.n_heads, self.n_kv_heads, n_slots),
                DIM=self.rope_dim if angles else 0,
                **self._options,
            )
        return q_out

    def _check_call(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        angles: tuple[Tensor, Tensor] | None,
        slots: Tensor,
        planes: tuple[Sequence[Tensor], Sequence[Tensor]],
    ) -> None:
        n, dtype, device = len(qkv[0]), qkv[0].dtype, qkv[0].device
        for x, width in zip(qkv, self.widths, strict=True):
            if (x.shape, x.stride(-1), x.dtype, x.device) != ((n, width), 1, dtype, device) or dtype not in FLOATS:
                expected = f"[{n}, {width}] with unit stride, float32, float16 or bfloat16, of one type"
                found = f"{x.dtype} {list(x.shape)} with strides {x.stride()}"
                raise ValueError(f"expected q, k or v {expected}, found {found}")
        if (slots.shape, slots.dtype, slots.is_contiguous()) != ((n,), torch.int64, True):
            raise ValueError(f"expected slots int64 [{n}], contiguous, found {slots.dtype} {list(slots.shape)}")
        half = self.rope_dim // 2
        for angle in angles or ():
            if (angle.shape, angle.dtype, angle.is_contiguous()) != ((n, half), torch.float32, True):
                found = f"{angle.dtype} {list(angle.shape)} with strides {angle.stride()}"
                raise ValueError(f"expected angles float32 [{n}, {half}], contiguous, found {found}")
        pages = planes[0][0].shape[:2]
        for side, expected_planes in zip(planes, self._planes, strict=True):
            if [(plane.shape[2:], plane.dtype) for plane in side] != expected_planes or any(
                plane.shape[:2] != pages or not plane.is_contiguous() for plane in side
            ):
                found = ", ".join(f"{plane.dtype} {list(plane.shape)}" for plane in side)
                expected = f"{list(pages)} and then {expected_planes}, contiguous"
                raise ValueError(f"expected planes of the cache {expected}, found {found}")


def _check_heads(head_dim: int, v_dim: int, rope_dim: int, pairing: Pairing) -> None:
    if rope_dim % 2 or not 0 <= rope_dim <= head_dim or pairing not in ("norm", "neox"):
        found = f"{rope_dim} of {head_dim}, {pairing!r}"
        raise ValueError(f'expected an even part of a head to rotate, paired as "norm" or "neox", found {found}')
    if not 1 <= min(head_dim, v_dim) <= max(head_dim, v_dim) <= MAX_HEAD_DIM:
        raise ValueError(f"expected heads of 1 … {MAX_HEAD_DIM} values, found {head_dim} and {v_dim}")
