"""A row's candidates while tokens are sampled (sampling.py): lists in memory, their order, their likeliest.

A list is an array of logits, float32, and one of tokens, int32; without the latter (IDS 0) a token is its own place.
It begins as the model's row. What drops or moves candidates writes the other of two sides of a thread's memory, so that
the list before is still there.
"""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
from numba import types

from .doubles import part
from .language import F32, I64, LANES, load, op, store
from .scalars import load_float, load_int, load_int32, scratch, store_float, store_int, store_int32
from .vectors import (
    all_floats,
    all_ints,
    below,
    greater,
    load_floats,
    max_floats,
    not_numbers,
    store_floats,
    store_words,
    sum_ints,
)

# A row's state, in 8 bytes each. The list; PROBS has its probabilities once they were asked for.
(LOGITS, IDS, PROBS, N, SIDE, OLD_LOGITS, OLD_IDS, OLD_N, OLD_SIDE) = range(9)
# float32: the largest logit; the least that `collect` keeps; what logits are divided by. float64: log of the sum of
# the exponentials of the model's row; the random number.
(LARGEST, BOUND, HEAT, NORMALIZER, DRAW) = range(9, 14)
# Of blocks of BLOCK candidates: the largest logits, MAXIMA; whether one is no number, NANS.
(BLOCK, MAXIMA, NANS) = range(14, 17)
# Records of places in order, how many, and room for as many. How many candidates equal to BOUND are kept.
(RECORDS, N_RECORDS, OTHER_RECORDS, N_EQUAL) = range(17, 21)
# Whether the next steps act; the place and the token chosen; the request's slot and parameters.
(ACTS, PLACE, TOKEN, SLOT, PARAMS) = range(21, 26)
# The row's number, the model's logits, the thread's memory, the bytes of an array in it.
(ROW, RAW, MEMORY, STRIDE) = range(26, 30)
# The arguments of a kernel of steps (sampling.py); behind them, 16 float32 for whoever needs some memory.
(STEP, STATE, PLAN, SPARE) = range(30, 34)
STATE_BYTES = 8 * SPARE + 4 * LANES

# A thread's memory, in arrays of STRIDE bytes: two sides of logits, tokens and probabilities, two of records (twice as
# wide), counts of tokens (all 0 between steps), maxima of blocks.
SIDE_ARRAYS, RECORD_ARRAYS, COUNTS, MAXIMA_ARRAY, N_ARRAYS = 3, 6, 10, 11, 12

LOWEST, HIGHEST = np.float32(-np.inf), np.float32(np.inf)
DIGITS, BASE = 4, 256
DIGIT_BYTES = 8 * DIGITS * BASE
KEYS_OF_LOGITS, KEYS_OF_DISTANCES, KEYS_OF_MAXIMA = 0, 1, 2


def _cell(b: ir.IRBuilder, address: ir.Value, i: ir.Value) -> ir.Value:
    return b.add(address, b.shl(i, I64(3)))


# In numba's eyes single operations, which are compiled faster than functions.
@op(types.intp, types.intp, types.intp)
def get(b: ir.IRBuilder, state: ir.Value, field: ir.Value) -> ir.Value:
    """A field of the state, or the i-th of any int64 in memory."""
    return load(b, _cell(b, state, field), I64)


@op(types.void, types.intp, types.intp, types.intp)
def put(b: ir.IRBuilder, state: ir.Value, field: ir.Value, value: ir.Value) -> None:
    store(b, value, _cell(b, state, field))


@op(types.float32, types.intp, types.intp)
def get_float(b: ir.IRBuilder, values: ir.Value, i: ir.Value) -> ir.Value:
    """The i-th of any float32 in memory."""
    return load(b, b.add(values, b.shl(i, I64(2))), F32)


@op(types.float32, types.intp, types.intp, types.intp)
def param(b: ir.IRBuilder, state: ir.Value, step: ir.Value, i: ir.Value) -> ir.Value:
    """The request's parameter whose column is the i-th number of a step."""
    params, column = load(b, _cell(b, state, I64(PARAMS)), I64), load(b, _cell(b, step, i), I64)
    return load(b, b.add(params, b.shl(column, I64(2))), F32)


@part
def restart(state, n):
    """The list is the model's row."""
    put(state, LOGITS, get(state, RAW))
    put(state, IDS, 0)
    put(state, N, n)
    put(state, SIDE, 1)
    put(state, PROBS, get(state, MEMORY) + 5 * get(state, STRIDE))


@part
def turn(state):
    """The address of the other side, which becomes the list's."""
    put(state, OLD_LOGITS, get(state, LOGITS))
    put(state, OLD_IDS, get(state, IDS))
    put(state, OLD_N, get(state, N))
    put(state, OLD_SIDE, get(state, SIDE))
    side, stride = 1 - get(state, SIDE), get(state, STRIDE)
    start = get(state, MEMORY) + SIDE_ARRAYS * side * stride
    put(state, LOGITS, start)
    put(state, IDS, start + stride)
    put(state, PROBS, start + 2 * stride)
    put(state, SIDE, side)
    return start


@part
def turn_back(state):
    """The list becomes what it was before `turn`."""
    put(state, LOGITS, get(state, OLD_LOGITS))
    put(state, IDS, get(state, OLD_IDS))
    put(state, N, get(state, OLD_N))
    put(state, SIDE, get(state, OLD_SIDE))
    start = get(state, MEMORY) + SIDE_ARRAYS * get(state, SIDE) * get(state, STRIDE)
    put(state, PROBS, start + 2 * get(state, STRIDE))


@part
def token_at(ids, place):
    token = place
    if ids != 0:
        token = load_int32(ids + 4 * place)
    return token


@part
def sixteen(state, values, i, n):
    """The address of 16 values from place i on, -infinity behind the n-th."""
    at = values + 4 * i
    if i + LANES > n:
        spare = state + 8 * SPARE
        store_floats(spare, all_floats(LOWEST))
        for j in range(n - i):
            store_int32(spare + 4 * j, load_int32(at + 4 * j))
        at = spare
    return at


@part
def put_sixteen(state, values, i, n, new):
    """Writes 16 values to place i on, none behind the n-th."""
    if i + LANES <= n:
        store_floats(values + 4 * i, new)
    else:
        spare = state + 8 * SPARE
        store_floats(spare, new)
        for j in range(n - i):
            store_int32(values + 4 * (i + j), load_int32(spare + 4 * j))


@part
def find_largest(state, block):
    """LARGEST, and MAXIMA of blocks, whose size is a multiple of 16. NaNs do not count."""
    logits, n, maxima = get(state, LOGITS), get(state, N), get(state, MAXIMA)
    largest, nans, at = LOWEST, all_ints(0), maxima
    for start in range(0, n, block):
        best = all_floats(LOWEST)
        for i in range(start, min(start + block, n), LANES):
            x = load_floats(sixteen(state, logits, i, n))
            best = greater(x, best)
            nans = nans | not_numbers(x)
        found = max_floats(best)
        store_float(at, found)
        largest = max(largest, found)
        at += 4
    put(state, BLOCK, block)
    put(state, NANS, sum_ints(nans))
    store_float(state + 8 * LARGEST, largest)


@part
def find_first(state):
    """PLACE of the first of the largest; of the first NaN where there is one, as torch has it. After `find_largest`."""
    logits, n, block, place = get(state, LOGITS), get(state, N), get(state, BLOCK), 0
    if get(state, NANS) != 0:
        while place < n - 1 and load_float(logits + 4 * place) == load_float(logits + 4 * place):
            place += 1
    else:
        largest, at = load_float(state + 8 * LARGEST), get(state, MAXIMA)
        while place + block < n and load_float(at) != largest:
            place += block
            at += 4
        while place < n - 1 and load_float(logits + 4 * place) != largest:
            place += 1
    put(state, PLACE, place)


@part
def collect(state):
    """Drops what is less than BOUND, and all but the first N_EQUAL of those equal to it. After `find_largest`."""
    logits, ids, n = get(state, LOGITS), get(state, IDS), get(state, N)
    bound, n_equal, block = load_float(state + 8 * BOUND), get(state, N_EQUAL), get(state, BLOCK)
    out, ids_out, n_out, at_block = turn(state), get(state, IDS), 0, get(state, MAXIMA)
    limits = all_floats(bound)
    for start in range(0, n, block):
        largest = load_float(at_block)
        at_block += 4
        if largest < bound:
            continue
        for i in range(start, min(start + block, n), LANES):
            at = sixteen(state, logits, i, n)
            if sum_ints(below(load_floats(at), limits)) == -LANES:
                continue
            for j in range(min(LANES, n - i)):
                x = load_float(at + 4 * j)
                if x < bound:
                    continue
                if x == bound:
                    if n_equal == 0:
                        continue
                    n_equal -= 1
                store_float(out + 4 * n_out, x)
                store_int32(ids_out + 4 * n_out, token_at(ids, i + j))
                n_out += 1
    put(state, N, n_out)


@part
def write_keys(state, source):
    """Records that in ascending order are values in descending order, equal ones by place: the value's bits in the
    upper half, its place in the lower. NaN comes first."""
    values, n = get(state, LOGITS), get(state, N)
    records = get(state, MEMORY) + RECORD_ARRAYS * get(state, STRIDE)
    others = records + 2 * get(state, STRIDE)
    if source == KEYS_OF_DISTANCES:
        values = others
    elif source == KEYS_OF_MAXIMA:
        block = get(state, BLOCK)
        values, n = get(state, MAXIMA), (n + block - 1) // block
    for i in range(n):
        bits = load_int32(values + 4 * i)
        if bits == -(1 << 31):
            bits = 0
        elif (bits & 0x7FFFFFFF) > 0x7F800000:
            bits = 0x7FFFFFFF
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        store_int(records + 8 * i, ((-1 - key) << 32) | i)
    put(state, RECORDS, records)
    put(state, OTHER_RECORDS, others)
    put(state, N_RECORDS, n)


@part
def digit(record, d):
    """Of the upper half of a record, whose last digit has the sign."""
    value = (record >> (32 + 8 * d)) & (BASE - 1)
    if d == DIGITS - 1:
        value ^= BASE // 2
    return value


@part
def sort_records(state):
    """RECORDS in ascending order: a stable sort by one digit after another; what all have in common is left out."""
    records, others, n = get(state, RECORDS), get(state, OTHER_RECORDS), get(state, N_RECORDS)
    counts = scratch(DIGIT_BYTES)
    for i in range(0, DIGIT_BYTES, 4 * LANES):
        store_words(counts + i, all_ints(0))
    for i in range(n):
        record = load_int(records + 8 * i)
        for d in range(DIGITS):
            at = counts + 8 * (BASE * d + digit(record, d))
            store_int(at, load_int(at) + 1)
    for d in range(DIGITS):
        table = counts + 8 * BASE * d
        if load_int(table + 8 * digit(load_int(records), d)) == n:
            continue
        place = 0
        for i in range(BASE):
            count = load_int(table + 8 * i)
            store_int(table + 8 * i, place)
            place += count
        for i in range(n):
            record = load_int(records + 8 * i)
            at = table + 8 * digit(record, d)
            place = load_int(at)
            store_int(at, place + 1)
            store_int(others + 8 * place, record)
        records, others = others, records
    put(state, RECORDS, records)


@part
def follow_records(state):
    """Puts candidates, with their probabilities, in the order of RECORDS."""
    logits, ids, probs, n = get(state, LOGITS), get(state, IDS), get(state, PROBS), get(state, N)
    records, out = get(state, RECORDS), turn(state)
    ids_out, probs_out = get(state, IDS), get(state, PROBS)
    for i in range(n):
        place = load_int(records + 8 * i) & 0xFFFFFFFF
        store_int32(out + 4 * i, load_int32(logits + 4 * place))
        store_int32(ids_out + 4 * i, token_at(ids, place))
        store_int32(probs_out + 4 * i, load_int32(probs + 4 * place))
