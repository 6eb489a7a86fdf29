"""float64 numbers in kernels, with the functions that libm has for others."""

from __future__ import annotations

import math

import llvmlite.ir as ir
from numba import njit, types

from .language import I64, load, op, store

F64 = ir.DoubleType()
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# Of float64's bits: those of the fraction, the exponent of 1.
FRACTION, EXPONENT_OF_ONE = (1 << 52) - 1, 1023

# For functions that kernels share, compiled once for all processors: nothing in them may depend on one. Making `inline`
# ones part of a kernel costs numba more than compiling it, where there are many.
part = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@op(types.int64, types.float64)
def bits_of(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.bitcast(x, I64)


@op(types.float64, types.int64)
def of_bits(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    return b.bitcast(bits, F64)


@op(types.float64, types.intp)
def load_double(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return load(b, address, F64)


@op(types.void, types.intp, types.float64)
def store_double(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    store(b, value, address)


@part
def exp_double(x):
    """e to the power of x, to about 1e-15 of it; 0 below -708 and for NaN.

    2^n times the Taylor series of the rest, which is at most ln(2) / 2.
    """
    result = 0.0
    if x > 709.0:
        result = math.inf
    elif x > -708.0:
        n = int(x * 1.4426950408889634 + (0.5 if x > 0.0 else -0.5))
        r = x - n * LN2_HIGH - n * LN2_LOW
        p = 1.0
        for i in range(14):
            p = 1.0 + p * r / (14.0 - i)
        result = p * of_bits((n + EXPONENT_OF_ONE) << 52)
    return result


@part
def log_double(x):
    """The natural logarithm of x, to about 1e-15; -infinity for 0, NaN for what has none.

    x is m * 2^n with m near 1, and log(m) = 2 artanh(z), z = (m - 1) / (m + 1), as a series.
    """
    result = math.nan
    if x == 0.0:
        result = -math.inf
    elif x == math.inf:
        result = math.inf
    elif x > 0.0:
        small = x < 1e-300
        bits = bits_of(x * 18014398509481984.0 if small else x)
        n = (bits >> 52) - EXPONENT_OF_ONE - (54 if small else 0)
        m = of_bits((bits & FRACTION) | (EXPONENT_OF_ONE << 52))
        if m > 1.4142135623730951:
            m *= 0.5
            n += 1
        z = (m - 1.0) / (m + 1.0)
        square = z * z
        p = 0.0
        for i in range(11):
            p = p * square + 1.0 / (21.0 - 2.0 * i)
        result = n * LN2_HIGH + (2.0 * z * p + n * LN2_LOW)
    return result


@part
def power_double(x, y):
    """x to the power of y, for x that is not below 0."""
    result = 1.0
    if y != 0.0:
        result = exp_double(y * log_double(x))
    return result
