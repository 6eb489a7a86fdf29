"""Mixtures of experts: which experts each row goes to, and their products.

A pair is a row and one of its experts: pair p belongs to row p // n_used. Pairs are listed by expert, so that the
weights of an expert are read once for all its rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .atomics import next_task
from .kernel import kernel, kernel_family
from .language import LANES
from .product import unit_product
from .scalars import load_float, load_int32, number, store_float, store_int32
from .sinks import gathered_rows, no_sums, scale_sums, store_sums
from .vectors import all_floats, exp, fma, load_floats, max_floats, maximum, store_floats, sum_floats

LOWEST, ZERO = np.float32(-np.inf), np.float32(0)


@kernel
def route(scores, stride, n_rows, n_experts, n_used, least, scale, ids, shares, counter, thread, n_threads):
    """Of router scores [n_rows, n_experts] (a multiple of 16 wide): the n_used largest, first ones first, as int32 ids,
    and the shares of their probabilities, which sum to `scale`; `least` is the smallest sum that is divided by.

    Scores are overwritten.
    """
    while True:
        row = next_task(counter)
        if row >= n_rows:
            return
        here = scores + row * stride
        for i in range(n_experts, (n_experts + 15) // 16 * 16):
            store_float(here + 4 * i, LOWEST)
        highest = all_floats(LOWEST)
        for i in range(0, n_experts, LANES):
            highest = maximum(highest, load_floats(here + 4 * i))
        top = all_floats(max_floats(highest))
        total = all_floats(ZERO)
        for i in range(0, n_experts, LANES):
            share = exp(load_floats(here + 4 * i) - top)
            total = total + share
            store_floats(here + 4 * i, share)
        whole = sum_floats(total)
        chosen = ZERO
        for j in range(n_used):
            best, value = 0, np.float32(-1)
            for i in range(n_experts):
                share = load_float(here + 4 * i)
                if share > value:
                    best, value = i, share
            store_float(here + 4 * best, np.float32(-2))
            store_int32(ids + 4 * (row * n_used + j), best)
            store_float(shares + 4 * (row * n_used + j), value / whole)
            chosen += value / whole
        factor = number(scale) / max(chosen, number(least))
        for j in range(n_used):
            place = shares + 4 * (row * n_used + j)
            store_float(place, load_float(place) * factor)


@kernel
def list_pairs(ids, n_rows, n_used, n_experts, starts, pairs, counter, thread, n_threads):
    """The pairs [n_rows * n_used] by expert, int32: those of expert e are from starts[e] to starts[e + 1] - 1."""
    if next_task(counter) != 0:
        return
    n = n_rows * n_used
    for e in range(n_experts + 1):
        store_int32(starts + 4 * e, 0)
    for p in range(n):
        place = starts + 4 * (load_int32(ids + 4 * p) + 1)
        store_int32(place, load_int32(place) + 1)
    for e in range(n_experts):
        store_int32(starts + 4 * e + 4, load_int32(starts + 4 * e + 4) + load_int32(starts + 4 * e))
    # Filling moves the starts by one expert; they are moved back afterwards.
    for p in range(n):
        place = starts + 4 * load_int32(ids + 4 * p)
        store_int32(pairs + 4 * load_int32(place), p)
        store_int32(place, load_int32(place) + 1)
    for e in range(n_experts, 0, -1):
        store_int32(starts + 4 * e, load_int32(starts + 4 * e - 4))
    store_int32(starts, 0)


@kernel_family
def expert_product(format: str, columns: int, scaled: bool = False) -> Callable[..., None]:
    """For each pair p: row p // share of x times its expert's matrix and scale, to row p of y. scales: of kernels
    that are `scaled`."""
    step, tile_bytes, multiply = unit_product(format)

    def expert_product(
        x,
        x_stride,
        share,
        weights,
        scales,
        n_units,
        n_strips,
        n_experts,
        starts,
        pairs,
        y,
        y_stride,
        chunk,
        counter,
        thread,
        n_threads,
    ):
        n_chunks = (n_strips + chunk - 1) // chunk
        while True:
            task = next_task(counter)
            if task >= n_chunks * n_experts:
                return
            expert, first_strip = task // n_chunks, task % n_chunks * chunk
            first, last = load_int32(starts + 4 * expert), load_int32(starts + 4 * expert + 4)
            if first < last:
                for strip in range(first_strip, min(first_strip + chunk, n_strips)):
                    for pair in range(first, last, columns):
                        to = gathered_rows(x, x_stride, pairs, pair, last, share, columns)
                        tile = weights + (expert * n_strips + strip) * n_units * tile_bytes
                        sums, at = no_sums(columns), 0
                        for _ in range(n_units):
                            sums = multiply(sums, tile, at, to)
                            tile += tile_bytes
                            at += step
                        if scaled:
                            factor = all_floats(load_float(scales + 4 * expert))
                            sums = scale_sums(sums, factor, no_sums(columns))
                        store_sums(sums, gathered_rows(y, y_stride, pairs, pair, last, 1, columns), 64 * strip)

    return expert_product


@kernel
def add_experts(y, y_stride, shares, n_used, x, x_stride, n_rows, width, counter, thread, n_threads):
    """Adds to each row of x its pairs' rows of y times their shares."""
    while True:
        row = next_task(counter)
        if row >= n_rows:
            return
        for i in range(0, width, LANES):
            total = load_floats(x + row * x_stride + 4 * i)
            for p in range(row * n_used, (row + 1) * n_used):
                total = fma(all_floats(load_float(shares + 4 * p)), load_floats(y + p * y_stride + 4 * i), total)
            store_floats(x + row * x_stride + 4 * i, total)
