"""The steps of llama.cpp's samplers in kernels, over the candidates of one row: runtime/sampling says what each is for.

Where a cut depends on sums, they are made as torch makes them: probabilities and running sums are float32, sums are
added up in float64.
"""

from __future__ import annotations

import numpy as np

from .candidates import (
    ACTS,
    BOUND,
    COUNTS,
    DRAW,
    HEAT,
    IDS,
    LARGEST,
    LOGITS,
    LOWEST,
    MAXIMA,
    MEMORY,
    N_EQUAL,
    N_RECORDS,
    NORMALIZER,
    PLACE,
    PROBS,
    RAW,
    RECORD_ARRAYS,
    RECORDS,
    STRIDE,
    N,
    get,
    param,
    put,
    put_sixteen,
    sixteen,
    turn,
    turn_back,
)
from .doubles import load_double, log_double, part, power_double, store_double
from .language import LANES
from .scalars import load_float, load_int, load_int32, square_root, store_float, store_int, store_int32
from .vectors import all_floats, as_floats, as_ints, below, exp, load_floats, store_floats, sum_floats, sum_ints

# So many float32 are added up before they become part of a float64.
PART = 256
# exp of less is 0.
LEAST = np.float32(-87.3)
MOST = np.float32(np.finfo(np.float32).max)
ZERO = np.float32(0)


@part
def softmax(state):
    """PROBS; DRAW is the sum of the exponentials. After `find_largest`."""
    logits, probs, n, largest = get(state, LOGITS), get(state, PROBS), get(state, N), load_float(state + 8 * LARGEST)
    total = 0.0
    for start in range(0, n, PART):
        sums = all_floats(ZERO)
        for i in range(start, min(start + PART, n), LANES):
            x = load_floats(sixteen(state, logits, i, n)) - largest
            e = as_floats(as_ints(exp(x)) & (below(x, all_floats(LEAST)) ^ -1))
            store_floats(probs + 4 * i, e)
            sums = sums + e
        total += sum_floats(sums)
    for i in range(0, n, LANES):
        store_floats(probs + 4 * i, load_floats(probs + 4 * i) / np.float32(total))
    store_double(state + 8 * DRAW, total)


@part
def normalize(state):
    """What is subtracted from the model's logits for their logarithmic probabilities. After `softmax` of the row."""
    total = log_double(load_double(state + 8 * DRAW))
    store_double(state + 8 * NORMALIZER, load_float(state + 8 * LARGEST) + total)


@part
def copy_row(state):
    """The list becomes a copy, so that the model's row stays as it is."""
    logits, n = get(state, LOGITS), get(state, N)
    out = turn(state)
    put(state, IDS, 0)
    for i in range(0, n, LANES):
        store_floats(out + 4 * i, load_floats(sixteen(state, logits, i, n)))


# ---- edits ----


@part
def add_biases(state, tokens, biases, n):
    """Tokens are int64; the list is the vocabulary."""
    logits = get(state, LOGITS)
    for i in range(n):
        at = logits + 4 * load_int(tokens + 8 * i)
        store_float(at, load_float(at) + load_float(biases + 4 * i))


@part
def penalise(state, history, width, seen, step):
    """history: int32 [width], a ring that has seen so many tokens. step: with the columns of how many count, and of the
    repeat, frequency and presence penalties."""
    logits, ids, counts = get(state, LOGITS), get(state, IDS), get(state, MEMORY) + COUNTS * get(state, STRIDE)
    length = min(min(seen, width), int(param(state, step, 1)))
    repeat, frequency = param(state, step, 2), param(state, step, 3)
    presence = param(state, step, 4)
    for i in range(seen - length, seen):
        count = counts + 4 * load_int32(history + 4 * (i % width))
        store_int32(count, load_int32(count) + 1)
    # Of the whole vocabulary, only the tokens in the history are looked at: once each, since counts go back to 0.
    whole = ids == 0
    for i in range(length if whole else get(state, N)):
        token = load_int32(history + 4 * ((seen - length + i) % width)) if whole else load_int32(ids + 4 * i)
        place = token if whole else i
        count = load_int32(counts + 4 * token)
        if count > 0:
            x = load_float(logits + 4 * place)
            x = x * repeat if x <= ZERO else x / repeat
            store_float(logits + 4 * place, x - (np.float32(count) * frequency + presence))
        if whole:
            store_int32(counts + 4 * token, 0)
    for i in range(seen - length, seen):
        store_int32(counts + 4 * load_int32(history + 4 * (i % width)), 0)


# ---- filters ----


@part
def bound_to(state, k):
    """BOUND and N_EQUAL so that the k likeliest are kept, perhaps with some more. After sorting the maxima: each of
    the k blocks with the largest has at least one candidate above the bound."""
    from_records, n_records = get(state, RECORDS), get(state, N_RECORDS)
    bound = LOWEST
    if n_records >= k:
        place = load_int(from_records + 8 * (k - 1)) & 0xFFFFFFFF
        bound = load_float(get(state, MAXIMA) + 4 * place)
    store_float(state + 8 * BOUND, bound)
    put(state, N_EQUAL, k)


@part
def undo_scarce(state, least):
    """Takes back `collect` if it left too few; ACTS says so."""
    scarce = get(state, N) < least
    if scarce:
        turn_back(state)
    put(state, ACTS, 1 if scarce else 0)


@part
def keep_above(state, distance, least):
    """Of a sorted list, those not farther than a (negative) distance from the first, but no fewer than `least`."""
    logits, n, kept = get(state, LOGITS), get(state, N), 0
    bound = load_float(logits) + distance
    while kept < n and (kept < least or not load_float(logits + 4 * kept) < bound):
        kept += 1
    put(state, N, max(kept, 1))


@part
def keep_mass(state, p, least, beyond):
    """The first whose probabilities reach p, or exceed it where `beyond`, but no fewer than `least`."""
    probs, n, kept, total = get(state, PROBS), get(state, N), 0, 0.0
    while kept < n:
        running = np.float32(total)
        if kept >= least and (running > p or (running == p and beyond == 0)):
            break
        total += load_float(probs + 4 * kept)
        kept += 1
    put(state, N, max(kept, 1))


@part
def entropy(state, surprises):
    """Of PROBS, as float32. surprises: an address for -log(p) of each, float32, or 0."""
    probs, n, total = get(state, PROBS), get(state, N), 0.0
    for i in range(n):
        p = load_float(probs + 4 * i)
        surprise = np.float32(-log_double(np.float64(p)))
        if p > ZERO:
            total += p * surprise
        if surprises != 0:
            store_float(surprises + 4 * i, surprise)
    return np.float32(total)


@part
def find_distances(state):
    """Of the candidates' surprise from the entropy, negative, where `write_keys` looks for them."""
    at = get(state, MEMORY) + (RECORD_ARRAYS + 2) * get(state, STRIDE)
    mean = entropy(state, at)
    for i in range(get(state, N)):
        distance = abs(load_float(at + 4 * i) - mean)
        store_float(at + 4 * i, -min(distance, MOST))


@part
def rule_out_outliers(state, n_sigma):
    """Candidates more than n standard deviations below the largest get -infinity. After `find_largest`."""
    logits, n = get(state, LOGITS), get(state, N)
    count, total, squares, mean = 0, 0.0, 0.0, ZERO
    for step in range(2):
        for start in range(0, n, PART):
            sums = all_floats(ZERO)
            for i in range(start, min(start + PART, n), LANES):
                x = load_floats(sixteen(state, logits, i, n))
                real = below(all_floats(LOWEST), x)
                x = x - mean
                x = x * x if step == 1 else x
                sums = sums + as_floats(as_ints(x) & real)
                count -= sum_ints(real) * (1 - step)
            if step == 0:
                total += sum_floats(sums)
            else:
                squares += sum_floats(sums)
        mean = np.float32(total / max(count, 1))
    deviation = square_root(np.float32(squares / max(count, 1)))
    limits = all_floats(load_float(state + 8 * LARGEST) - n_sigma * deviation)
    for i in range(0, n, LANES):
        x = load_floats(sixteen(state, logits, i, n))
        out = below(x, limits)
        ruled_out = (as_ints(x) & (out ^ -1)) | (as_ints(all_floats(LOWEST)) & out)
        put_sixteen(state, logits, i, n, as_floats(ruled_out))


@part
def has_several(state):
    """1 if there is a choice, else 0."""
    return min(get(state, N) - 1, 1)


@part
def count_likely(state, threshold):
    """N_EQUAL is how many candidates are at least as probable, less one."""
    probs, n, count = get(state, PROBS), get(state, N), 0
    for i in range(n):
        if load_float(probs + 4 * i) >= threshold:
            count += 1
    put(state, N_EQUAL, count - 1)


@part
def drop_first(state, least):
    """The first N_EQUAL candidates, if at least so many are left."""
    n, n_dropped = get(state, N), get(state, N_EQUAL)
    if n_dropped > 0 and n - n_dropped >= least:
        put(state, LOGITS, get(state, LOGITS) + 4 * n_dropped)
        put(state, IDS, get(state, IDS) + 4 * n_dropped)
        put(state, N, n - n_dropped)


# ---- temperatures ----


@part
def find_heat(state, low, high, exponent):
    """HEAT by the entropy of PROBS; ACTS says whether it is so low that only the likeliest is left."""
    n, heat = get(state, N), np.float32(1)
    if n > 1:
        relative = np.float64(entropy(state, 0) / np.float32(log_double(np.float64(n))))
        heat = low + (high - low) * np.float32(power_double(max(relative, 0.0), np.float64(exponent)))
    store_float(state + 8 * HEAT, heat)
    put(state, ACTS, 0 if heat > ZERO else 1)


@part
def cool(state):
    """Divides by HEAT."""
    heat = load_float(state + 8 * HEAT)
    if heat > ZERO:
        logits, n = get(state, LOGITS), get(state, N)
        for i in range(0, n, LANES):
            put_sixteen(state, logits, i, n, load_floats(sixteen(state, logits, i, n)) / heat)


@part
def keep_place(state):
    """Candidates other than PLACE get -infinity."""
    logits, place = get(state, LOGITS), get(state, PLACE)
    x = load_float(logits + 4 * place)
    for i in range(0, get(state, N), LANES):
        put_sixteen(state, logits, i, get(state, N), all_floats(LOWEST))
    store_float(logits + 4 * place, x)


# ---- choices ----


@part
def choose(state):
    """PLACE is the first where the running sum of PROBS reaches DRAW of the whole; some place for NaNs."""
    probs, n, share = get(state, PROBS), get(state, N), load_double(state + 8 * DRAW)
    blocks = get(state, MEMORY) + RECORD_ARRAYS * get(state, STRIDE)
    total, at = 0.0, blocks
    for start in range(0, n, PART):
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        i, stop = start, min(start + PART, n)
        while i + 4 <= stop:
            a += load_float(probs + 4 * i)
            b += load_float(probs + 4 * i + 4)
            c += load_float(probs + 4 * i + 8)
            d += load_float(probs + 4 * i + 12)
            i += 4
        while i < stop:
            a += load_float(probs + 4 * i)
            i += 1
        total += (a + b) + (c + d)
        store_double(at, total)
        at += 8
    target = share * total
    place, running, at = 0, 0.0, blocks
    while place + PART < n and load_double(at) < target:
        running = load_double(at)
        place += PART
        at += 8
    while place < n - 1:
        running += load_float(probs + 4 * place)
        if running >= target:
            break
        place += 1
    put(state, PLACE, place)


@part
def next_draw(given, taken, waiting, n_waiting, draw, needed):
    """The next number of a stream (State.sequence): the host's draw waits behind those not taken yet."""
    n_given, n_taken = load_int(given), load_int(taken)
    store_double(waiting + 8 * (n_given % n_waiting), draw)
    store_int(given, n_given + 1)
    store_int(taken, n_taken + needed)
    return load_double(waiting + 8 * (n_taken % n_waiting))


# ---- what callers asked for besides the token ----


@part
def report_logprobs(state, ids, values, m):
    """The first m candidates and their logarithmic probabilities, of a sorted list of the model's logits."""
    tokens, logits, normalizer = get(state, IDS), get(state, LOGITS), load_double(state + 8 * NORMALIZER)
    for i in range(m):
        store_int(ids + 8 * i, load_int32(tokens + 4 * i))
        store_float(values + 4 * i, np.float32(load_float(logits + 4 * i) - normalizer))


@part
def logprob_of(state, token):
    """A token's logarithmic probability by the model."""
    return np.float32(load_float(get(state, RAW) + 4 * token) - load_double(state + 8 * NORMALIZER))


@part
def report_probs(state, ids, values, m):
    """The first m candidates of a sorted list and their probabilities; where it is shorter, tokens that are not in it,
    with 0."""
    tokens, probs, n = get(state, IDS), get(state, PROBS), get(state, N)
    counts = get(state, MEMORY) + COUNTS * get(state, STRIDE)
    for i in range(n):
        store_int32(counts + 4 * load_int32(tokens + 4 * i), 1)
    other = 0
    for i in range(m):
        if i < n:
            store_int(ids + 8 * i, load_int32(tokens + 4 * i))
            store_float(values + 4 * i, load_float(probs + 4 * i))
        else:
            while load_int32(counts + 4 * other) != 0:
                other += 1
            store_int(ids + 8 * i, other)
            store_float(values + 4 * i, ZERO)
            other += 1
    for i in range(n):
        store_int32(counts + 4 * load_int32(tokens + 4 * i), 0)
