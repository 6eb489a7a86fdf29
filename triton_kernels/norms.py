"""RMSNorm and LayerNorm of rows, with what stands around them in a decoder layer: the half layer's output is normed
itself (the post norms of Gemma 2 and 3), is added to the residual stream, and the next half's norm follows.

Everything is computed in float32. What enters the stream is rounded to its type, and the next norm is that of the
rounded values, so that the result is that of separate operations. Sources: RMSNorm, arXiv 1910.07467; LayerNorm,
arXiv 1607.06450.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import FLOATS, Form, Units, empty_form, in_form, store_form
from .grid import cdiv, next_power_of_2
from .packing import units

# The widest row that a program holds in registers.
MAX_BLOCK = 16384
# Groups of 32 values at a time of a longer one.
LONG_GROUPS: tl.constexpr = tl.constexpr(128)


# ---- kernels ----


@triton.jit
def _inverse_rms(squares, W, eps):
    return tl.rsqrt(squares / W + eps)


@triton.jit
def _streamed(t, residual, inverse, post_weight, k, inside, x):
    """What the stream becomes, rounded to its type: t, normed by the post norm where there is one, plus residual."""
    if post_weight is not None:
        t = t * inverse * tl.load(post_weight + k, mask=inside, other=0.0)
        t = t.to(x.dtype.element_ty).to(tl.float32)
    if residual is not None:
        t += tl.load(residual + k, mask=inside, other=0.0).to(tl.float32)
        t = t.to(x.dtype.element_ty).to(tl.float32)
    return t


@triton.jit
def _scaled(t, mean, inverse, weight, bias, k, inside, LAYER: tl.constexpr):
    if LAYER:
        t = t - mean
    t = t * inverse * tl.load(weight + k, mask=inside, other=0.0)
    if bias is not None:
        t += tl.load(bias + k, mask=inside, other=0.0)
    return tl.where(inside, t, 0.0)


@triton.jit
def norm_held(
    t,
    x,
    residual,
    stream,
    out,
    row,
    weight,
    bias,
    eps,
    post_weight,
    post_eps,
    W,
    S,
    LAYER: tl.constexpr,
    FORM: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """norm_row of values t [GROUPS, 32], float32, that are zero from W on. x: any pointer to the stream's type."""
    group = tl.arange(0, GROUPS)
    k = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    inside = k < W
    inverse = 1.0
    if post_weight is not None:
        inverse = _inverse_rms(tl.sum(t * t), W, post_eps)
    t = _streamed(t, residual, inverse, post_weight, k, inside, x)
    if stream is not None:
        tl.store(stream + k, t.to(stream.dtype.element_ty), mask=inside)
    if weight is not None:
        mean = 0.0
        centred = t
        if LAYER:
            mean = tl.sum(t) / W
            centred = tl.where(inside, t - mean, 0.0)
        inverse = _inverse_rms(tl.sum(centred * centred), W, eps)
        store_form(out, row, group, W, S, _scaled(t, mean, inverse, weight, bias, k, inside, LAYER), FORM)


@triton.jit
def norm_row(
    x,
    residual,
    stream,
    out,
    row,
    weight,
    bias,
    eps,
    post_weight,
    post_eps,
    W,
    S,
    LAYER: tl.constexpr,
    FORM: tl.constexpr,
    GROUPS: tl.constexpr,
    CACHE: tl.constexpr,
):
    """One row of norm_kernel, held in registers: W <= 32 GROUPS. x, residual, stream: the row's first value. CACHE:
    how x is loaded; ".cg" where programs of this launch have written it."""
    k = tl.arange(0, GROUPS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    t = tl.load(x + k, mask=k < W, other=0.0, cache_modifier=CACHE).to(tl.float32)
    by = (weight, bias, eps, post_weight, post_eps)
    norm_held(t, x, residual, stream, out, row, *by, W, S, LAYER, FORM, GROUPS)


@triton.jit
def _norm_long_row(
    x,
    residual,
    stream,
    out,
    row,
    weight,
    bias,
    eps,
    post_weight,
    post_eps,
    W,
    S,
    LAYER: tl.constexpr,
    FORM: tl.constexpr,
):
    """The same for a row of any width, in parts that are computed anew for every sum over the row."""
    start = tl.arange(0, LONG_GROUPS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    inverse_post = 1.0
    if post_weight is not None:
        squares = tl.zeros((LONG_GROUPS, 32), tl.float32)
        for first in range(0, W, LONG_GROUPS * 32):
            t = tl.load(x + first + start, mask=first + start < W, other=0.0).to(tl.float32)
            squares += t * t
        inverse_post = _inverse_rms(tl.sum(squares), W, post_eps)
    mean = 0.0
    if LAYER:
        sums = tl.zeros((LONG_GROUPS, 32), tl.float32)
        for first in range(0, W, LONG_GROUPS * 32):
            k = first + start
            t = tl.load(x + k, mask=k < W, other=0.0).to(tl.float32)
            sums += _streamed(t, residual, inverse_post, post_weight, k, k < W, x)
        mean = tl.sum(sums) / W
    squares = tl.zeros((LONG_GROUPS, 32), tl.float32)
    for first in range(0, W, LONG_GROUPS * 32):
        k = first + start
        t = tl.load(x + k, mask=k < W, other=0.0).to(tl.float32)
        t = _streamed(t, residual, inverse_post, post_weight, k, k < W, x)
        if stream is not None:
            tl.store(stream + k, t.to(stream.dtype.element_ty), mask=k < W)
        t = tl.where(k < W, t - mean, 0.0)
        squares += t * t
    if weight is not None:
        inverse = _inverse_rms(tl.sum(squares), W, eps)
        # Units reach past W.
        for first in range(0, S * 256, LONG_GROUPS * 32):
            k = first + start
            t = tl.load(x + k, mask=k < W, other=0.0).to(tl.float32)
            t = _streamed(t, residual, inverse_post, post_weight, k, k < W, x)
            group = first // 32 + tl.arange(0, LONG_GROUPS)
            store_form(out, row, group, W, S, _scaled(t, mean, inverse, weight, bias, k, k < W, LAYER), FORM)


@triton.jit
def norm_kernel(
    x,
    residual,
    stream,
    out,
    weight,
    bias,
    eps,
    post_weight,
    post_eps,
    W,
    S,
    x_stride,
    residual_stride,
    LAYER: tl.constexpr,
    FORM: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """stream [M, W] = x (its RMSNorm times post_weight) (+ residual); out = norm(stream) * weight (+ bias).

    weight, bias, post_weight: float32 [W] or None; without weight there is no out, without stream it is not stored.
    LAYER: LayerNorm instead of RMSNorm. out: as store_form has it. GROUPS: 0 where the row is longer than registers
    can hold. Grid (M,).
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    if residual is not None:
        residual += row * residual_stride
    if stream is not None:
        stream += row * W
    if GROUPS > 0:
        norm_row(x, residual, stream, out, row, weight, bias, eps, post_weight, post_eps, W, S, LAYER, FORM, GROUPS, "")
    else:
        _norm_long_row(x, residual, stream, out, row, weight, bias, eps, post_weight, post_eps, W, S, LAYER, FORM)


# ---- calls ----


@dataclass(frozen=True, slots=True)
class NextNorm:
    """A norm with what comes before it: y becomes part of the stream, and the norm reads the stream.

    weight, bias: float32 [width]; weight None: there is no norm, y is only added. layer: LayerNorm (with or without a
    bias) instead of RMSNorm. post_weight: float32 [width], y's own RMSNorm before it is added.

    ValueError where they do not fit each other.
    """

    weight: Tensor | None
    eps: float
    bias: Tensor | None = None
    layer: bool = False
    post_weight: Tensor | None = None
    post_eps: float = 0.0

    def __post_init__(self) -> None:
        given = [t for t in (self.weight, self.bias, self.post_weight) if t is not None]
        kinds = {(t.dtype, t.shape, t.device) for t in given}
        if len(kinds) > 1 or any(t.dtype != torch.float32 or t.dim() != 1 or not t.is_contiguous() for t in given):
            found = ", ".join(f"{t.dtype} {list(t.shape)} with strides {t.stride()} on {t.device}" for t in given)
            raise ValueError(f"expected weights float32 [width], contiguous, of one width on one device, found {found}")
        if self.bias is not None and not (self.layer and self.weight is not None):
            raise ValueError("expected a bias beside a LayerNorm's weight, found it elsewhere")

    @property
    def width(self) -> int | None:
        """None where nothing but an addition happens."""
        given = self.weight if self.weight is not None else self.post_weight
        return None if given is None else len(given)


def norm(
    x: Tensor, by: NextNorm, residual: Tensor | None = None, form: Form = "plain"
) -> tuple[Tensor, Tensor | Units | None]:
    """x [m, width], rows with unit stride; residual the same in the same type -> the stream and its norm.

    The stream is x itself where nothing is added and there is no post norm, else a new tensor [m, width]. The norm is
    None where there is no weight. ValueError where tensors do not fit.
    """
    _check(x, by, residual)
    m, width = x.shape
    plain = residual is None and by.post_weight is None
    stream = None if plain else torch.empty(m, width, dtype=x.dtype, device=x.device)
    out = None if by.weight is None else empty_form(m, width, form, x.dtype, x.device)
    if m and not (plain and out is None):
        groups = row_groups(width, form) if width <= MAX_BLOCK else 0
        norm_kernel[m,](
            *(x, residual, stream, out, by.weight, by.bias, by.eps, by.post_weight, by.post_eps),
            *(width, units(width), x.stride(0), 0 if residual is None else residual.stride(0)),
            **{"LAYER": by.layer, "FORM": form, "GROUPS": groups, "num_warps": _warps(groups)},
            enable_fp_fusion=True,
        )
    normed = None if out is None else in_form(out, width, form, x.dtype)
    return x if stream is None else stream, normed


def row_groups(width: int, form: Form) -> int:
    """Groups of 32 that a program holds for a row, a power of two: units reach past the width."""
    return next_power_of_2(cdiv(width, 32) if form == "plain" else 8 * units(width))


def _warps(groups: int) -> int:
    # 16 values per lane of 32; of the widest rows, and of long ones, more.
    return min(16, max(1, groups // 16)) if groups else 8


def _check(x: Tensor, by: NextNorm, residual: Tensor | None) -> None:
    if x.dim() != 2 or by.width not in (None, x.shape[1]) or x.stride(1) != 1 or x.dtype not in FLOATS:
        expected = f"x [m, {by.width or 'width'}] with unit stride, float32, float16 or bfloat16"
        raise ValueError(f"expected {expected}, found {x.dtype} {list(x.shape)} with strides {x.stride()}")
    if residual is not None and (
        (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device) or residual.stride(1) != 1
    ):
        found = f"{residual.dtype} {list(residual.shape)} with strides {residual.stride()} on {residual.device}"
        raise ValueError(f"expected a residual {x.dtype} {list(x.shape)} with unit stride, found {found}")
