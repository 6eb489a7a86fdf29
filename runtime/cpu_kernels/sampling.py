"""Kernels that sample tokens.

What a chain of samplers does is a table of steps in memory, which runtime/sampling/cpu.py writes. `sample_rows` walks
through it for one row of logits after another; the steps are in four more kernels, so that only what is in use has to
be compiled. The table of a call, PLAN, has addresses and sizes, int64 each.
"""

from __future__ import annotations

from . import sampling_steps as steps
from .atomics import call_kernel, next_task
from .candidates import (
    ACTS,
    BOUND,
    DRAW,
    HEAT,
    HIGHEST,
    IDS,
    LARGEST,
    LOWEST,
    MAXIMA,
    MAXIMA_ARRAY,
    MEMORY,
    N_ARRAYS,
    N_EQUAL,
    NANS,
    PARAMS,
    PLACE,
    PLAN,
    PROBS,
    RAW,
    ROW,
    SLOT,
    STATE,
    STATE_BYTES,
    STEP,
    STRIDE,
    TOKEN,
    N,
    collect,
    find_first,
    find_largest,
    follow_records,
    get,
    get_float,
    param,
    put,
    restart,
    sort_records,
    token_at,
    write_keys,
)
from .doubles import load_double, part, store_double
from .kernel import kernel
from .scalars import scratch, store_float, store_int32

# PLAN: the steps; the call's rows: logits float32 [n_rows, n_vocab], slots int64 [n_rows], draws float64
# [n_rows, n_draws]; a slot of n_slots only pads.
(STEPS, N_STEPS, LOGITS_ROWS, N_VOCAB, N_ROWS, SLOTS, N_SLOTS, DRAWS, N_DRAWS) = range(9)
# What requests keep, by slot (State's tensors), with the widths of those whose width differs.
(NUMBERS, N_NUMBERS, SEEN, HISTORY, N_HISTORY, BIASED, BIASES, N_BIASES) = range(9, 17)
(GIVEN, TAKEN, WAITING, N_WAITING) = range(17, 21)
# Results: int64 [n_rows], float32 [n_rows], int64 and float32 [n_rows, n_top]. Threads' memory and its arrays' bytes.
(TOKENS, OWN, TOP_IDS, TOPS, N_TOP, WORKSPACE, ARRAY_BYTES) = range(21, 28)
PLAN_WIDTH = 28

# A step: its code, four operands, and the address of the kernel that has it, int64 each. Columns are NUMBERS' columns.
STEP_WIDTH, STEP_KERNEL = 6, 5
# SKIP(n, unless ACTS) is no kernel's.
SKIP = 0
# scan: FIND_LARGEST(block), CHECK(the token where logits are not numbers).
(FIND_LARGEST, CHECK, FIND_FIRST, TAKE) = range(1, 5)
# narrow: WRITE_KEYS(source), KEEP_BEST(column or -1, k), KEEP_FIRST(column), KEEP_ABOVE(columns of the distance and
# min_keep), KEEP_MASS(columns of p and min_keep, beyond), NEAR_LARGEST(column), SET_HEAT(column).
(WRITE_KEYS, SORT, FOLLOW, COLLECT, KEEP_BEST, KEEP_FIRST, KEEP_ABOVE, KEEP_MASS, NEAR_LARGEST) = range(5, 14)
(SOFTMAX, SET_HEAT, COOL, DRAW_ALWAYS, CHOOSE) = range(14, 19)
# edit: PENALISE(columns).
(COPY, RESTART, ADD_BIASES, PENALISE, NORMALIZE, REPORT_LOGPROBS, REPORT_LOGPROB, REPORT_PROBS) = range(19, 27)
# reshape: UNDO_SCARCE(column), OUTLIERS(column), XTC(columns of the probability and the threshold), DROP_FIRST(column
# of min_keep), FIND_HEAT(columns: lowest, highest, exponent).
(UNDO_SCARCE, FIND_DISTANCES, OUTLIERS, XTC, DROP_FIRST, FIND_HEAT, KEEP_PLACE, DRAW_AMONG) = range(27, 35)


@part
def streamed(state, plan, place, column, needed):
    """The next number of the row's stream at a place (State.sequence), by the draw in that column."""
    cell = 2 * get(state, SLOT) + place
    draw = load_double(get(plan, DRAWS) + 8 * (get(state, ROW) * get(plan, N_DRAWS) + column))
    given, taken = get(plan, GIVEN) + 8 * cell, get(plan, TAKEN) + 8 * cell
    n_waiting = get(plan, N_WAITING)
    return steps.next_draw(given, taken, get(plan, WAITING) + 8 * n_waiting * cell, n_waiting, draw, needed)


@part
def check(state, plan, no_token):
    """ACTS is 0 where the model's logits are not numbers, and no_token the row's token. After their `find_largest`."""
    largest = get_float(state + 8 * LARGEST, 0)
    sound = get(state, NANS) == 0 and largest > LOWEST and largest < HIGHEST
    put(state, ACTS, 1 if sound else 0)
    if not sound:
        put(get(plan, TOKENS), get(state, ROW), no_token)


@part
def take(state, plan):
    """The chosen token becomes the row's, and part of its history."""
    row, slot, width = get(state, ROW), get(state, SLOT), get(plan, N_HISTORY)
    token = token_at(get(state, IDS), get(state, PLACE))
    put(state, TOKEN, token)
    put(get(plan, TOKENS), row, token)
    if get(plan, OWN) != 0:
        store_float(get(plan, OWN) + 4 * row, get_float(get(state, PROBS), get(state, PLACE)))
    if width > 0:
        n = get(get(plan, SEEN), slot)
        store_int32(get(plan, HISTORY) + 4 * (slot * width + n % width), token)
        put(get(plan, SEEN), slot, n + 1)


@kernel
def scan(step, state, plan, counter, thread, n_threads):
    """Steps that greedy chains need."""
    code = get(step, 0)
    if code == FIND_LARGEST:
        find_largest(state, get(step, 1))
    elif code == CHECK:
        check(state, plan, get(step, 1))
    elif code == FIND_FIRST:
        find_first(state)
    elif code == TAKE:
        take(state, plan)


@kernel
def narrow(step, state, plan, counter, thread, n_threads):
    """Steps that most other chains need."""
    code = get(step, 0)
    if code == WRITE_KEYS:
        write_keys(state, get(step, 1))
    elif code == SORT:
        sort_records(state)
    elif code == FOLLOW:
        follow_records(state)
    elif code == COLLECT:
        collect(state)
    elif code == KEEP_BEST:
        k = get(step, 2)
        if get(step, 1) >= 0:
            k = int(param(state, step, 1))
        steps.bound_to(state, k)
    elif code == KEEP_FIRST:
        put(state, N, min(get(state, N), int(param(state, step, 1))))
    elif code == KEEP_ABOVE:
        steps.keep_above(state, param(state, step, 1), int(param(state, step, 2)))
    elif code == KEEP_MASS:
        steps.keep_mass(state, param(state, step, 1), int(param(state, step, 2)), get(step, 3))
    elif code == NEAR_LARGEST:
        store_float(state + 8 * BOUND, get_float(state + 8 * LARGEST, 0) + param(state, step, 1))
        put(state, N_EQUAL, get(state, N))
    elif code == SOFTMAX:
        steps.softmax(state)
    elif code == SET_HEAT:
        store_float(state + 8 * HEAT, param(state, step, 1))
    elif code == COOL:
        steps.cool(state)
    elif code == DRAW_ALWAYS:
        last = (get(state, ROW) + 1) * get(plan, N_DRAWS) - 1
        put(state, DRAW, get(get(plan, DRAWS), last))
    elif code == CHOOSE:
        steps.choose(state)


@kernel
def edit(step, state, plan, counter, thread, n_threads):
    """Steps that change single logits, and those that report more than the token."""
    code, row, slot, n_top = get(step, 0), get(state, ROW), get(state, SLOT), get(plan, N_TOP)
    top_ids, tops, own = get(plan, TOP_IDS) + 8 * row * n_top, get(plan, TOPS) + 4 * row * n_top, get(plan, OWN)
    if code == COPY:
        steps.copy_row(state)
    elif code == RESTART:
        restart(state, get(plan, N_VOCAB))
    elif code == ADD_BIASES:
        n = get(plan, N_BIASES)
        steps.add_biases(state, get(plan, BIASED) + 8 * slot * n, get(plan, BIASES) + 4 * slot * n, n)
    elif code == PENALISE:
        width = get(plan, N_HISTORY)
        steps.penalise(state, get(plan, HISTORY) + 4 * slot * width, width, get(get(plan, SEEN), slot), step)
    elif code == NORMALIZE:
        steps.normalize(state)
    elif code == REPORT_LOGPROBS:
        steps.report_logprobs(state, top_ids, tops, n_top)
    elif code == REPORT_LOGPROB:
        store_float(own + 4 * row, steps.logprob_of(state, get(state, TOKEN)))
    elif code == REPORT_PROBS:
        steps.report_probs(state, top_ids, tops, n_top)


@kernel
def reshape(step, state, plan, counter, thread, n_threads):
    """Steps of the rarer filters."""
    code = get(step, 0)
    if code == UNDO_SCARCE:
        steps.undo_scarce(state, int(param(state, step, 1)))
    elif code == FIND_DISTANCES:
        steps.find_distances(state)
    elif code == OUTLIERS:
        steps.rule_out_outliers(state, param(state, step, 1))
    elif code == XTC:
        several = steps.has_several(state)
        chance = streamed(state, plan, 0, 0, several)
        put(state, ACTS, several if chance <= param(state, step, 1) else 0)
        steps.count_likely(state, param(state, step, 2))
    elif code == DROP_FIRST:
        steps.drop_first(state, int(param(state, step, 1)))
    elif code == FIND_HEAT:
        steps.find_heat(state, param(state, step, 1), param(state, step, 2), param(state, step, 3))
    elif code == KEEP_PLACE:
        steps.keep_place(state)
    elif code == DRAW_AMONG:
        last = get(plan, N_DRAWS) - 1
        store_double(state + 8 * DRAW, streamed(state, plan, 1, last, steps.has_several(state)))


# The kernels that have the steps, each from its first code on.
STEP_KERNELS = {FIND_LARGEST: scan, WRITE_KEYS: narrow, COPY: edit, UNDO_SCARCE: reshape}


@kernel
def sample_rows(plan, counter, thread, n_threads):
    """A token for each row that is no padding, and what requests remember of it."""
    state = scratch(STATE_BYTES)
    stride, n_vocab = get(plan, ARRAY_BYTES), get(plan, N_VOCAB)
    end = get(plan, STEPS) + 8 * STEP_WIDTH * get(plan, N_STEPS)
    put(state, MEMORY, get(plan, WORKSPACE) + N_ARRAYS * stride * thread)
    put(state, STRIDE, stride)
    put(state, MAXIMA, get(state, MEMORY) + MAXIMA_ARRAY * stride)
    put(state, STATE, state)
    put(state, PLAN, plan)
    row = next_task(counter)
    while row < get(plan, N_ROWS):
        slot = get(get(plan, SLOTS), row)
        put(state, RAW, get(plan, LOGITS_ROWS) + 4 * row * n_vocab)
        restart(state, n_vocab)
        put(state, ROW, row)
        put(state, SLOT, slot)
        put(state, PARAMS, get(plan, NUMBERS) + 4 * slot * get(plan, N_NUMBERS))
        step = get(plan, STEPS) if slot < get(plan, N_SLOTS) else end
        while step < end:
            if get(step, 0) == SKIP:
                step += 8 * STEP_WIDTH * get(step, 1) * (1 - get(state, ACTS))
            else:
                put(state, STEP, step)
                call_kernel(get(step, STEP_KERNEL), state + 8 * STEP, counter, thread, n_threads)
            step += 8 * STEP_WIDTH
        row = next_task(counter)
