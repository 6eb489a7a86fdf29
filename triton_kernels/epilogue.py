"""What happens to sums before they are stored: the activation of a gated pair, bias, residual."""

import triton
import triton.language as tl


@triton.jit
def glu(gate, up, ACTIVATION: tl.constexpr):
    """activation(gate) * up in float32: silu, gelu (its tanh form), gelu_erf, relu2 (the square of relu) or swiglu_oai.

    swiglu_oai is that of gpt-oss: both sides are clamped, and up is one larger.
    """
    if ACTIVATION == "swiglu_oai":
        gate = tl.minimum(gate, 7.0)
        up = tl.minimum(tl.maximum(up, -7.0), 7.0)
        return gate / (1.0 + tl.exp(-1.702 * gate)) * (up + 1.0)
    else:
        return _activate(gate, ACTIVATION) * up


@triton.jit
def _activate(v, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return v / (1.0 + tl.exp(-v))
    elif ACTIVATION == "gelu":
        # tanh(t) = 1 - 2 / (exp(2 t) + 1) holds at both ends, where exp gives infinity and zero.
        t = 0.7978845608028654 * (v + 0.044715 * v * v * v)
        return 0.5 * v * (2.0 - 2.0 / (tl.exp(2.0 * t) + 1.0))
    elif ACTIVATION == "gelu_erf":
        return 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "relu2", "the activation is silu, gelu, gelu_erf, relu2 or swiglu_oai")
        positive = tl.maximum(v, 0.0)
        return positive * positive


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
