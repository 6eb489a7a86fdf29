"""What processors do in ways of their own, for the one that is being compiled for."""

from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from .language import (
    BITS,
    I32,
    I64,
    INTS,
    LANES,
    call,
    const,
    current_isa,
    load,
    parts,
    whole,
)
from .records import LARGEST_CODE


def emit_dot(b: ir.IRBuilder, acc: ir.Value, weights: ir.Value, x: ir.Value, *, signed: bool) -> ir.Value:
    """acc + the sum of four products of bytes in each lane; weights are unsigned unless `signed`, x is signed.

    For 16 lanes, or as many as a register has.
    """
    n = acc.type.count // current_isa().lanes
    if n > 1:
        triples = zip(*(parts(b, v, n) for v in (acc, weights, x)), strict=True)
        return whole(b, [emit_dot(b, *triple, signed=signed) for triple in triples])
    kind, words = current_isa().dot, acc.type
    if kind in ("avx512vnni", "avxvnni"):
        return call(b, f"llvm.x86.avx512.vpdpbusd.{32 * words.count}", words, acc, weights, x)
    if kind == "avx2":
        return b.add(acc, _quads(b, _pairs(b, weights, x, signed=signed)))
    if kind == "neon":
        bytes4 = ir.VectorType(BITS[8], 16)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return call(b, name, words, acc, b.bitcast(weights, bytes4), b.bitcast(x, bytes4))
    return _dot_generic(b, acc, weights, x, signed=signed)


def _pairs(b: ir.IRBuilder, weights: ir.Value, x: ir.Value, *, signed: bool) -> ir.Value:
    """Products of bytes, two added up to 16 bits, which signed weights would overflow: their signs go over to x."""
    bytes32, words16 = ir.VectorType(BITS[8], 32), ir.VectorType(BITS[16], 16)
    w, y = b.bitcast(weights, bytes32), b.bitcast(x, bytes32)
    if signed:
        y = call(b, "llvm.x86.avx2.psign.b", bytes32, y, w)
        w = call(b, "llvm.abs.v32i8", bytes32, w, ir.IntType(1)(0))
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", words16, w, y)


def _quads(b: ir.IRBuilder, pairs: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), pairs, const(pairs.type, 1))


def _dot_generic(b: ir.IRBuilder, acc: ir.Value, weights: ir.Value, x: ir.Value, *, signed: bool) -> ir.Value:
    words = acc.type
    for byte in range(4):
        shift, eight = const(words, 24 - 8 * byte), const(words, 24)
        w = b.shl(weights, shift)
        w = b.ashr(w, eight) if signed else b.lshr(w, eight)
        acc = b.add(acc, b.mul(w, b.ashr(b.shl(x, shift), eight)))
    return acc


# How inline assembly calls registers of vectors.
REGISTERS = {"avx512vnni": "v", "avxvnni": "x", "avx2": "x", "neon": "w"}


def here(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same value, computed at this place of the code and not where LLVM would have it: it loads all words of a
    block before it multiplies any, and has no registers for them."""
    register = REGISTERS.get(current_isa().dot)
    if register is None:
        return value
    return b.asm(ir.FunctionType(value.type, [value.type]), "", f"={register},0", (value,), True)


class Partial:
    """A sum of products that grows, for as many lanes as a register has. largest: of the weights, without their signs.

    AVX2 adds two products to 16 bits, which leave room for more: 8 times two with weights up to 15, since
    8 * 2 * 15 * 127 < 2^15, 4 times with 31, twice with 63. Only then it pays for 32 bits.
    """

    def __init__(self, largest: int, *, signed: bool) -> None:
        self.signed = signed
        self.room = max(1, (2**15 - 1) // (2 * largest * LARGEST_CODE))
        self.n, self.pairs, self.sum = 0, None, None

    def add(self, b: ir.IRBuilder, weights: ir.Value, x: ir.Value) -> None:
        if current_isa().dot != "avx2":
            self.sum = here(b, emit_dot(b, self.sum or const(weights.type, 0), weights, x, signed=self.signed))
            return
        pairs = _pairs(b, weights, x, signed=self.signed)
        self.pairs, self.n = here(b, b.add(self.pairs, pairs) if self.pairs else pairs), self.n + 1
        if self.n == self.room:
            self._widen(b)

    def _widen(self, b: ir.IRBuilder) -> None:
        quads = _quads(b, self.pairs)
        self.sum, self.pairs, self.n = here(b, b.add(self.sum, quads) if self.sum else quads), None, 0

    def total(self, b: ir.IRBuilder) -> ir.Value:
        if self.pairs:
            self._widen(b)
        return self.sum


def emit_lookup(b: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
    """For bytes from 0 to 15, those of a table, which stands in every four lanes; for 16 lanes, or a register's."""
    words, isa = codes.type, current_isa()
    n = words.count // isa.lanes
    if n > 1:
        pairs = zip(parts(b, table, n), parts(b, codes, n), strict=True)
        return whole(b, [emit_lookup(b, *pair) for pair in pairs])
    kind = ir.VectorType(BITS[8], 4 * words.count)
    table, codes = b.bitcast(table, kind), b.bitcast(codes, kind)
    if isa.dot == "avx512vnni":
        found = call(b, "llvm.x86.avx512.pshuf.b.512", kind, table, codes)
    elif isa.dot in ("avx2", "avxvnni"):
        found = call(b, "llvm.x86.avx2.pshuf.b", kind, table, codes)
    elif isa.dot == "neon":
        found = call(b, "llvm.aarch64.neon.tbl1.v16i8", kind, table, codes)
    else:
        found = ir.Constant(kind, ir.Undefined)
        for i in range(kind.count):
            code = b.and_(b.extract_element(codes, I32(i)), BITS[8](15))
            found = b.insert_element(found, b.extract_element(table, code), I32(i))
    return b.bitcast(found, words)


def byte_table(values: Sequence[int], n: int) -> ir.Constant:
    """16 signed bytes as `emit_lookup` wants them and the processor multiplies them, for n lanes."""
    shift = 128 if current_isa().unsigned else 0
    codes = bytes((value + shift) & 255 for value in values)
    words = [int.from_bytes(codes[i : i + 4], "little", signed=True) for i in range(0, 16, 4)]
    return ir.Constant(ir.VectorType(I32, n), words * (n // 4))


def emit_entries(b: ir.IRBuilder, address: ir.Value, index: ir.Value, size: int) -> list[ir.Value]:
    """For each lane, the entry of a table of 4 or 8 bytes an entry: its words."""
    # Loads one by one: gathering instructions take longer, twice as long where their leak was mended.
    kind, n = BITS[8 * size], 64 // size
    found = []
    for first in range(0, LANES, n):
        vector = ir.Constant(ir.VectorType(kind, n), ir.Undefined)
        for lane in range(n):
            i = b.zext(b.extract_element(index, I32(first + lane)), I64)
            entry = load(b, b.add(address, b.mul(i, I64(size))), kind)
            vector = b.insert_element(vector, entry, I32(lane))
        found.append(b.bitcast(vector, INTS))
    if size == 4:
        return found
    both, undefined = whole(b, found), ir.Constant(ir.VectorType(I32, 2 * LANES), ir.Undefined)
    orders = (ir.Constant(INTS, [2 * i + half for i in range(LANES)]) for half in (0, 1))
    return [b.shuffle_vector(both, undefined, order) for order in orders]
