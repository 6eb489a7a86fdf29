"""What processors do in ways of their own, for the one that is being compiled for."""

from __future__ import annotations

import llvmlite.ir as ir

from .language import (
    BITS,
    BYTES,
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


def emit_dot(b: ir.IRBuilder, acc: ir.Value, weights: ir.Value, x: ir.Value, *, signed: bool) -> ir.Value:
    """acc + the sum of four products of bytes in each lane; weights are unsigned unless `signed`, x is signed."""
    kind = current_isa().dot
    if kind == "avx512vnni":
        return call(b, "llvm.x86.avx512.vpdpbusd.512", INTS, acc, weights, x)
    if kind == "avxvnni":
        half = ir.VectorType(I32, 8)
        triples = zip(*(parts(b, v, 2) for v in (acc, weights, x)), strict=True)
        return whole(b, [call(b, "llvm.x86.avx512.vpdpbusd.256", half, *triple) for triple in triples])
    if kind == "avx2":
        return _dot_avx2(b, acc, weights, x, signed=signed)
    if kind == "neon":
        bytes4, words4 = ir.VectorType(BITS[8], 16), ir.VectorType(I32, 4)
        triples = zip(*(parts(b, v, 4) for v in (acc, weights, x)), strict=True)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return whole(b, [call(b, name, words4, a, b.bitcast(w, bytes4), b.bitcast(y, bytes4)) for a, w, y in triples])
    return _dot_generic(b, acc, weights, x, signed=signed)


def _dot_avx2(b: ir.IRBuilder, acc: ir.Value, weights: ir.Value, x: ir.Value, *, signed: bool) -> ir.Value:
    """vpmaddubsw adds pairs to 16 bits, which signed weights would overflow: their signs go over to x."""
    bytes32, words16, ones = ir.VectorType(BITS[8], 32), ir.VectorType(BITS[16], 16), ir.VectorType(BITS[16], 16)
    sums = []
    for a, w, y in zip(*(parts(b, v, 2) for v in (acc, weights, x)), strict=True):
        w, y = b.bitcast(w, bytes32), b.bitcast(y, bytes32)
        if signed:
            zero = const(bytes32, 0)
            y = b.select(b.icmp_signed("<", w, zero), b.sub(zero, y), y)
            w = call(b, "llvm.abs.v32i8", bytes32, w, ir.IntType(1)(0))
        pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", words16, w, y)
        quads = call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), pairs, const(ones, 1))
        sums.append(b.add(a, quads))
    return whole(b, sums)


def _dot_generic(b: ir.IRBuilder, acc: ir.Value, weights: ir.Value, x: ir.Value, *, signed: bool) -> ir.Value:
    for byte in range(4):
        shift, eight = const(INTS, 24 - 8 * byte), const(INTS, 24)
        w = b.shl(weights, shift)
        w = b.ashr(w, eight) if signed else b.lshr(w, eight)
        acc = b.add(acc, b.mul(w, b.ashr(b.shl(x, shift), eight)))
    return acc


def emit_lookup(b: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
    dot, table, codes = current_isa().dot, b.bitcast(table, BYTES), b.bitcast(codes, BYTES)
    if dot == "avx512vnni":
        found = [call(b, "llvm.x86.avx512.pshuf.b.512", BYTES, table, codes)]
    elif dot in ("avx2", "avxvnni"):
        half = ir.VectorType(BITS[8], 32)
        pairs = zip(parts(b, table, 2), parts(b, codes, 2), strict=True)
        found = [call(b, "llvm.x86.avx2.pshuf.b", half, *pair) for pair in pairs]
    elif dot == "neon":
        quad = ir.VectorType(BITS[8], 16)
        pairs = zip(parts(b, table, 4), parts(b, codes, 4), strict=True)
        found = [call(b, "llvm.aarch64.neon.tbl1.v16i8", quad, *pair) for pair in pairs]
    else:
        vector = ir.Constant(BYTES, ir.Undefined)
        for i in range(4 * LANES):
            code = b.and_(b.extract_element(codes, I32(i)), BITS[8](15))
            vector = b.insert_element(vector, b.extract_element(table, code), I32(i))
        found = [vector]
    return b.bitcast(whole(b, found), INTS)


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
