"""Products of weights whose codes lie in words of 8, 5, 4 or fewer bits: decoded where they are multiplied.

A span is some groups of 32 weights that share words. What is live at a time is small, so that it stays in registers: a
word of 16 rows is loaded, its codes are multiplied with all columns, the next one follows. A single column takes two
groups together, which share words; several take one group after another, as many sums as columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir
from numba.core import cgutils
from numba.extending import intrinsic

from .instructions import Partial, byte_table, emit_lookup
from .language import F32, I32, I64, LANES, const, current_isa, fused, load, parts, splat, whole
from .records import FULL, RECORD, SCALE, SUMS
from .scalars import emit_prefetch
from .words import biased

WORDS = 8
# How far ahead weights are asked for, in bytes: what processors ask for by themselves comes late.
AHEAD = 4096


@dataclass(frozen=True, slots=True)
class Words:
    """Words of some of the 16 rows: `lanes` of them, from number part * lanes on.

    asked: which have been asked for, AHEAD of being loaded; None asks for none. A few at a time, between products: when
    a whole block is asked for at once, processors wait for memory before they go on. n_lines: see Codes.
    """

    b: ir.IRBuilder
    places: Sequence[ir.Value]
    lanes: int
    part: int
    asked: set[tuple[int, int]] | None = None
    n_lines: int = 0

    def load(self, place: int, word: int) -> ir.Value:
        """Vector `word` of those at places[place]."""
        if self.asked is not None and (place, word) not in self.asked:
            # One line behind the other, whatever the order of words: memory wants to be read from end to end.
            line = self.places[-1] if self.n_lines else self.places[place]
            at = len(self.asked) if self.n_lines else word
            self.asked.add((place, word))
            if not self.n_lines or at < self.n_lines:
                emit_prefetch(self.b, self.b.add(line, I64(4 * LANES * at + AHEAD)))
        offset = 4 * LANES * word + 4 * self.lanes * self.part
        return load(self.b, self.b.add(self.places[place], I64(offset)), ir.VectorType(I32, self.lanes))

    def value(self, number: int) -> ir.Constant:
        return const(ir.VectorType(I32, self.lanes), number)

    def field(self, words: ir.Value, shift: int, mask: int, up: int = 0) -> ir.Value:
        """The bits `mask` << shift of each byte, moved to bit `up`."""
        b, by = self.b, shift - up
        if by > 0:
            words = b.lshr(words, self.value(by))
        elif by < 0:
            words = b.shl(words, self.value(-by))
        return b.and_(words, self.value(mask << up))

    def looked_up(self, table: Sequence[int], codes: ir.Value) -> ir.Value:
        """Entries of 16 signed bytes for codes from 0 to 15, as the processor multiplies them."""
        return emit_lookup(self.b, byte_table(table, self.lanes), codes)

    def full(self, words: ir.Value) -> ir.Value:
        """Signed bytes as the processor multiplies them: see FULL."""
        return biased(self.b, words)


@dataclass(frozen=True, slots=True)
class Codes:
    """What the words of a span hold.

    emit(words, word, group): the codes of weights 4 * word … 4 * word + 3 of a group. groups: how many there are, one
    record behind the other. zero: the code that stands for 0, or FULL where codes are signed. largest: the largest
    code there is, or its absolute value. order: of the eight words, so that those which share memory are neighbours.
    apart: how far apart the groups are that share most. n_lines: of 64 bytes that are asked for where words lie in
    several places of a tile, the first of them at the last place; 0 where words are asked for as they lie.
    """

    emit: Callable[[Words, int, int], ir.Value]
    groups: int
    zero: int
    largest: int
    order: tuple[int, ...] = tuple(range(WORDS))
    apart: int = 1
    n_lines: int = 0

    def together(self, n_columns: int) -> list[list[int]]:
        """The groups that are taken at a time; always in the same order, so that float32 sums are the same."""
        if self.groups == 1:
            return [[0]]
        firsts = [group for group in range(self.groups) if not group // self.apart % 2]
        pairs = [[group, group + self.apart] for group in firsts]
        return pairs if n_columns == 1 else [[group] for pair in pairs for group in pair]


def _fence(b: ir.IRBuilder) -> None:
    """Loads stay on their side: otherwise LLVM would keep words for the next group, in memory."""
    b.asm(ir.FunctionType(ir.VoidType(), ()), "", "~{memory}", (), True)


def _column_sums(
    codes: Codes, words: Sequence[Words], columns: Sequence[ir.Value], groups: Sequence[int], n: int
) -> dict[tuple[int, int, int, int], ir.Value]:
    """Exact sums of products of codes and activations, int32, by (column, group, half, part); n halves (1 or 2)."""
    isa, b, n_parts = current_isa(), words[0].b, len(words)
    signed = codes.zero == FULL and not isa.unsigned
    sums: dict[tuple[int, int, int, int], Partial] = {}
    for i, word in enumerate(codes.order):
        half = word * n // WORDS
        found = {(g, w.part): codes.emit(w, word, g) for w in words for g in groups}
        for c, column in enumerate(columns):
            for g in groups:
                x = splat(b, load(b, b.add(column, I64(RECORD * g + 4 * word)), I32), isa.lanes)
                for part in range(n_parts):
                    key = c, g, half, part
                    if key not in sums:
                        sums[key] = Partial(codes.largest, signed=signed)
                    sums[key].add(b, found[g, part], x)
        if i % 2:
            _fence(b)
    return {key: partial.total(b) for key, partial in sums.items()}


def dot_span(codes: Codes) -> Any:
    """span(state, at, to, places, scales): adds the products of a span, as Sink.group does; a scale for each group or
    two, one for each half."""
    value = codes.zero
    if value == FULL:
        value = 0

    @intrinsic
    def span(context: Any, state: Any, at: Any, to: Any, places: Any, scales: Any) -> Any:
        n, n_halves = state.count, scales.count // codes.groups

        def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            isa = current_isa()
            zero = 128 if codes.zero == FULL and isa.unsigned else value
            n_parts, lanes = LANES // isa.lanes, isa.lanes
            floats = ir.VectorType(F32, lanes)
            totals = [parts(b, total, n_parts) for total in cgutils.unpack_tuple(b, args[0], n)]
            columns = [b.add(column, args[1]) for column in cgutils.unpack_tuple(b, args[2], n)]
            factors = [parts(b, scale, n_parts) for scale in cgutils.unpack_tuple(b, args[4])]
            where, asked = cgutils.unpack_tuple(b, args[3]), set[tuple[int, int]]()
            words = [Words(b, where, lanes, part, asked, codes.n_lines) for part in range(n_parts)]

            def scalar(column: ir.Value, group: int, offset: int, kind: ir.Type) -> ir.Value:
                return splat(b, load(b, b.add(column, I64(RECORD * group + offset)), kind), lanes)

            for groups in codes.together(n):
                sums = _column_sums(codes, words, columns, groups, n_halves)
                for g in groups:
                    for c, column in enumerate(columns):
                        minus = []
                        if zero:
                            by = const(ir.VectorType(I32, lanes), zero.bit_length() - 1)
                            places_ = [SUMS + 4 * h for h in ((0, 1) if n_halves == 2 else (2,))]
                            minus = [b.shl(scalar(column, g, place, I32), by) for place in places_]
                        scale = scalar(column, g, SCALE, F32)
                        for part in range(n_parts):
                            numbers = []
                            for half in range(n_halves):
                                total = sums[c, g, half, part]
                                total = b.add(total, minus[half]) if zero else total
                                numbers.append(b.sitofp(total, floats))
                            own = [factors[n_halves * g + half][part] for half in range(n_halves)]
                            if n_halves == 1:
                                factor = b.fmul(own[0], scale)
                                totals[c][part] = fused(b, numbers[0], factor, totals[c][part])
                            else:
                                both = fused(b, numbers[1], own[1], b.fmul(numbers[0], own[0]))
                                totals[c][part] = fused(b, both, scale, totals[c][part])
            return cgutils.pack_array(b, [whole(b, total) for total in totals])

        return state(state, at, to, places, scales), code

    return span
