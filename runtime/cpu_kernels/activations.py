"""Activations on their way to a product: quantised to 8 bits in groups of 32, as records (sinks.py).

code = round(x / d), d = max |x| / 127 of the group: llama.cpp's Q8_0 with a float32 scale.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .atomics import next_task
from .kernel import kernel, kernel_family
from .language import LANES, inline
from .records import RECORD, SCALE, SCALED_SUMS, SUMS
from .scalars import number, square_root, store_float, store_int32
from .vectors import (
    all_floats,
    exp,
    fma,
    largest_size,
    load_floats,
    rounded,
    store_bytes,
    store_floats,
    sum_floats,
    sum_ints,
    to_ints,
)

ZERO, ONE, LARGEST_CODE, PER_CODE = np.float32(0), np.float32(1), np.float32(127), np.float32(1 / 127)
# Below, 127 / x would not be finite.
TINY = np.float32(1e-36)
GELU_LINE, GELU_CUBE = np.float32(0.7978845608), np.float32(0.7978845608 * 0.044715)
# Values of a row that one task takes, where a row need not be seen whole.
PIECE = 512


def record_bytes(n_in: int) -> int:
    """Bytes of the records of a row."""
    assert n_in % 32 == 0
    return n_in // 32 * RECORD


@inline
def store_record(record, first, second):
    """32 values as a record. A NaN or an infinity among them makes a scale that is none: it must not be lost."""
    largest = largest_size(first, second)
    scale = largest * PER_CODE
    inverse = LARGEST_CODE / largest if largest > TINY else ZERO
    a, b = to_ints(rounded(first * inverse)), to_ints(rounded(second * inverse))
    store_bytes(record, a)
    store_bytes(record + 16, b)
    sum_a, sum_b = sum_ints(a), sum_ints(b)
    store_float(record + SCALE, scale)
    store_int32(record + SUMS, -sum_a)
    store_int32(record + SUMS + 4, -sum_b)
    store_int32(record + SUMS + 8, -sum_a - sum_b)
    store_float(record + SCALED_SUMS, -scale * np.float32(sum_a))
    store_float(record + SCALED_SUMS + 4, -scale * np.float32(sum_b))
    store_float(record + SCALED_SUMS + 8, -scale * np.float32(sum_a + sum_b))


@inline
def rms(x, width, eps):
    """1 / the root of the mean square of a row, + eps."""
    squares = all_floats(ZERO)
    for i in range(0, width, LANES):
        value = load_floats(x + 4 * i)
        squares = fma(value, value, squares)
    return ONE / square_root(sum_floats(squares) / np.float32(width) + eps)


@inline
def silu(x):
    return x / (exp(x * -1.0) + 1.0)


@inline
def gelu(x):
    """The approximation by tanh, as x times a logistic function: 0.5 (1 + tanh(z)) = 1 / (1 + e^-2z)."""
    z = x * fma(x * x, all_floats(GELU_CUBE), all_floats(GELU_LINE))
    return x / (exp(z * -2.0) + 1.0)


GATES = {"silu": silu, "gelu": gelu}


@kernel
def quantise(x, x_stride, records, records_stride, n_rows, width, counter, thread, n_threads):
    """Rows of float32 as records."""
    pieces = (width + PIECE - 1) // PIECE
    while True:
        task = next_task(counter)
        if task >= n_rows * pieces:
            return
        row, start = task // pieces, task % pieces * PIECE
        source, target = x + row * x_stride, records + row * records_stride
        for i in range(start, min(start + PIECE, width), 32):
            store_record(target + RECORD // 32 * i, load_floats(source + 4 * i), load_floats(source + 4 * i + 64))


@kernel
def norm_quantise(x, x_stride, weight, eps, records, records_stride, n_rows, width, counter, thread, n_threads):
    """RMSNorm of rows, times `weight`, as records."""
    while True:
        row = next_task(counter)
        if row >= n_rows:
            return
        source, target = x + row * x_stride, records + row * records_stride
        factor = all_floats(rms(source, width, number(eps)))
        for i in range(0, width, 32):
            first = load_floats(source + 4 * i) * factor * load_floats(weight + 4 * i)
            second = load_floats(source + 4 * i + 64) * factor * load_floats(weight + 4 * i + 64)
            store_record(target + RECORD // 32 * i, first, second)


@kernel
def norm_rows(x, x_stride, weight, eps, add, add_stride, y, y_stride, n_rows, width, counter, thread, n_threads):
    """RMSNorm of rows, times `weight`, plus the rows at `add` unless that is 0; y may be any of the others."""
    while True:
        row = next_task(counter)
        if row >= n_rows:
            return
        source, target = x + row * x_stride, y + row * y_stride
        factor = all_floats(rms(source, width, number(eps)))
        for i in range(0, width, LANES):
            value = load_floats(source + 4 * i) * factor * load_floats(weight + 4 * i)
            if add != 0:
                value = value + load_floats(add + row * add_stride + 4 * i)
            store_floats(target + 4 * i, value)


@kernel_family
def gate_quantise(activation: str) -> Callable[..., None]:
    """activation(gate) * up as records."""
    gate_of = GATES[activation]

    def gate_quantise(
        gate, gate_stride, up, up_stride, records, records_stride, n_rows, width, counter, thread, n_threads
    ):
        pieces = (width + PIECE - 1) // PIECE
        while True:
            task = next_task(counter)
            if task >= n_rows * pieces:
                return
            row, start = task // pieces, task % pieces * PIECE
            a, b = gate + row * gate_stride, up + row * up_stride
            target = records + row * records_stride
            for i in range(start, min(start + PIECE, width), 32):
                first = gate_of(load_floats(a + 4 * i)) * load_floats(b + 4 * i)
                second = gate_of(load_floats(a + 4 * i + 64)) * load_floats(b + 4 * i + 64)
                store_record(target + RECORD // 32 * i, first, second)

    return gate_quantise


@kernel_family
def gate_rows(activation: str) -> Callable[..., None]:
    """activation(gate) * up; y may be one of them."""
    gate_of = GATES[activation]

    def gate_rows(gate, gate_stride, up, up_stride, y, y_stride, n_rows, width, counter, thread, n_threads):
        while True:
            row = next_task(counter)
            if row >= n_rows:
                return
            for i in range(0, width, LANES):
                value = gate_of(load_floats(gate + row * gate_stride + 4 * i))
                store_floats(y + row * y_stride + 4 * i, value * load_floats(up + row * up_stride + 4 * i))

    return gate_rows
