"""What happens to a sum before it is stored: activation of a gated pair, bias, residual."""

import triton
import triton.language as tl


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    """silu, or gelu in its tanh form, of float32."""
    if ACTIVATION == "silu":
        return v / (1.0 + tl.exp(-v))
    else:
        tl.static_assert(ACTIVATION == "gelu", "the activation is silu or gelu")
        # tanh(t) = 1 - 2 / (exp(2 t) + 1) holds at both ends, where exp gives infinity and zero.
        t = 0.7978845608028654 * (v + 0.044715 * v * v * v)
        return 0.5 * v * (2.0 - 2.0 / (tl.exp(2.0 * t) + 1.0))


@triton.jit
def finish(acc, y, bias, residual, start, n, column, total_n, first, M, R: tl.constexpr, BM: tl.constexpr):
    """Stores rows [first, first + BM) of columns [start, start + R) of a matrix of n outputs that begins at `column`
    of y [M, total_n], with bias and residual added where there are any. acc: BM tensors [R]."""
    o = start + tl.arange(0, R)
    inside = o < n
    for m in tl.static_range(BM):
        value = acc[m]
        mask = o < tl.where(first + m < M, n, 0)
        at = (first + m).to(tl.int64) * total_n + column + o
        if bias is not None:
            value += tl.load(bias + column + o, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            value += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)
