"""Four signed bytes in a word: loads from packed planes, bit fields, look-ups and dot products.

Tiles are [L, 4] int32: L lanes, each with the four words (16 bytes) that it loads at once. `base` is the number of
units of the matrix, `u` [L] the index of the unit that a lane decodes.

ISA, a compile-time constant, says which instructions may be written out: "ptx" (NVIDIA), "gfx9" (CDNA), "gfx11"
(RDNA 3 and 4), or "portable": plain Triton, the twin of the others and what the interpreter runs.
"""

import triton
import triton.language as tl

# ---- loads ----


@triton.jit
def vector(w, base, u, index: tl.constexpr):
    """The 16 bytes at 16 * index of the lanes' units: [L, 4]."""
    return tl.load(w + base * (4 * index) + (u * 4)[:, None] + tl.arange(0, 4)[None, :])


@triton.jit
def pair(w, base, u, at: tl.constexpr):
    """The two words at byte `at`, each [L]."""
    words = tl.load(w + base * (at // 4) + (u * 2)[:, None] + tl.arange(0, 2)[None, :])
    first = tl.arange(0, 2)[None, :] == 0
    return tl.sum(tl.where(first, words, 0), 1), tl.sum(tl.where(first, 0, words), 1)


@triton.jit
def word(w, base, u, at: tl.constexpr):
    """The word at byte `at`: [L]."""
    return tl.load(w + base * (at // 4) + u)


@triton.jit
def half_float(w, base, u, at: tl.constexpr):
    """The f16 at byte `at` as float32 [L]."""
    return tl.load((w + base * (at // 4)).to(tl.pointer_type(tl.float16)) + base * (at % 4 // 2) + u).to(tl.float32)


# ---- fields ----


@triton.jit
def pick(v, i: tl.constexpr):
    """Word i of vectors: [L, 4] -> [L]. The lane has it in a register, so this costs nothing."""
    return tl.sum(tl.where(tl.arange(0, 4)[None, :] == i, v, 0), 1)


@triton.jit
def shifted(v, left: tl.constexpr):
    """v << left, or v >> -left, whose top bits the caller masks off."""
    if left > 0:
        return v << left
    elif left < 0:
        return v >> -left
    else:
        return v


@triton.jit
def signed_byte(v, i: tl.constexpr):
    """Byte i of words as a signed integer."""
    return (v << (24 - 8 * i)) >> 24


@triton.jit
def float16_at(v, high: tl.constexpr):
    """The f16 in the low or high half of words, as float32."""
    bits = (v >> 16) if high else v
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _byte_floats(v, i, ISA: tl.constexpr):
    """Bytes i of words as signed numbers; i is a tensor of constants that broadcasts with v."""
    biased = v ^ -0x7F7F7F80  # 0x80808080: signed to biased by 128
    if ISA == "ptx":
        # A byte becomes the low mantissa bits of 2^23: converting integers runs at a fraction of the rate of this.
        magic = tl.full(v.shape, 0x4B000000, tl.int32)
        bits = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [biased, magic, 0x7440 + i], dtype=tl.int32, is_pure=True, pack=1
        )
        return bits.to(tl.float32, bitcast=True) - 8388736.0
    else:
        # AMD converts any byte of a register in one instruction.
        return ((biased >> (8 * i)) & 0xFF).to(tl.float32) - 128.0


@triton.jit
def floats(v, ISA: tl.constexpr):
    """The signed bytes of vectors as numbers: [L, 4] -> [L, 16] float32."""
    return tl.reshape(_byte_floats(v[:, :, None], tl.arange(0, 4)[None, None, :], ISA), (v.shape[0], 16))


@triton.jit
def four_floats(v, i: tl.constexpr, ISA: tl.constexpr):
    """The four signed bytes of word i of vectors as numbers: [L, 4] -> [L, 4] float32."""
    return _byte_floats(pick(v, i)[:, None], tl.arange(0, 4)[None, :], ISA)


@triton.jit
def four_of(v, i: tl.constexpr):
    """Numbers 4 i … 4 i + 3 of sixteen: [L, 16] float32 -> [L, 4]. Like `pick`, this costs nothing."""
    bits = tl.reshape(v.to(tl.int32, bitcast=True), (v.shape[0], 4, 4))
    chosen = tl.where((tl.arange(0, 4) == i)[None, :, None], bits, 0)
    return tl.sum(chosen, 1).to(tl.float32, bitcast=True)


@triton.jit
def weights(low, high, scales, offsets, ISA: tl.constexpr):
    """What a decoder returns as numbers: the 16 weights of either half, [L, 16] float32."""
    if len(scales) == 0:
        return low, high
    else:
        w_low = floats(low, ISA) * scales[0][:, None]
        w_high = floats(high, ISA) * scales[len(scales) - 1][:, None]
        if len(offsets) > 0:
            w_low += offsets[0][:, None]
            w_high += offsets[len(offsets) - 1][:, None]
        return w_low, w_high


@triton.jit
def weights16(low, high, scales, offsets, ISA: tl.constexpr):
    """As `weights`, for numbers that are rounded to 16 bits: with an instruction less for each.

    The bias that makes numbers of bytes is taken off by the offset, whose rounding errors are of 2^-9 of a byte's unit
    where the bytes fill their range, 2^-17 where there are offsets, whose bytes are of -64 … 63.
    """
    if len(scales) == 0:
        return low, high
    else:
        NARROW: tl.constexpr = len(offsets) > 0
        BIAS: tl.constexpr = 128.0 if ISA != "ptx" else (192.0 if NARROW else 32896.0)
        offset_low = scales[0] * -BIAS
        offset_high = scales[len(scales) - 1] * -BIAS
        if NARROW:
            offset_low += offsets[0]
            offset_high += offsets[len(offsets) - 1]
        w_low = _biased_floats(low, NARROW, ISA) * scales[0][:, None] + offset_low[:, None]
        w_high = _biased_floats(high, NARROW, ISA) * scales[len(scales) - 1][:, None] + offset_high[:, None]
        return w_low, w_high


@triton.jit
def _biased_floats(v, NARROW: tl.constexpr, ISA: tl.constexpr):
    """The signed bytes of vectors plus the bias of `weights16`: [L, 4] -> [L, 16] float32."""
    i = tl.arange(0, 4)[None, None, :]
    if ISA == "ptx":
        # A byte becomes mantissa bits of 2^7 or 2^15, where its lowest bit stands for 1.
        biased = (v ^ 0x40404040) & 0x7F7F7F7F if NARROW else v ^ -0x7F7F7F80
        magic = tl.full((v.shape[0], 4, 4), 0x43000000 if NARROW else 0x47000000, tl.int32)
        selector = 0x7044 + (i << 8) if NARROW else 0x7404 + (i << 4)
        bits = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [biased[:, :, None], magic, selector],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        numbers = bits.to(tl.float32, bitcast=True)
    else:
        numbers = (((v ^ -0x7F7F7F80)[:, :, None] >> (8 * i)) & 0xFF).to(tl.float32)
    return tl.reshape(numbers, (v.shape[0], 16))


# ---- look-ups in 16 entries ----

# Two look-ups of four codes each: `prmt` takes its four indices from the low 16 bits of a word. An index has three
# bits, so either half of the table is searched, and bit 3 of the code selects the answer.
LOOKUP_PTX: tl.constexpr = tl.constexpr("""{
    .reg .b32 index, select, low, high;
    and.b32 index, $2, 0x77777777;
    shr.b32 select, $2, 1;
    lop3.b32 select, select, 0x44444444, 0x32103210, 0xEA;
    prmt.b32 low, $3, $4, index;
    prmt.b32 high, $5, $6, index;
    prmt.b32 $0, low, high, select;
    shr.b32 index, index, 16;
    shr.b32 select, select, 16;
    prmt.b32 low, $3, $4, index;
    prmt.b32 high, $5, $6, index;
    prmt.b32 $1, low, high, select;
}""")


@triton.jit
def lookup16(v, table, u, ISA: tl.constexpr):
    """Words of eight codes -> words of the values of the four low codes and of the four high ones.

    table: pointer to four words of four values each. Every lane loads them, from an address that depends on its unit
    u >= 0 as far as the compiler can tell: constants, and what is the same in all lanes, NVIDIA's compiler keeps out
    of the lanes' registers and copies there again for every look-up.
    """
    entries = tl.load(table + tl.where(u < 0, 4, 0)[:, None] + tl.arange(0, 4)[None, :])
    t0, t1, t2, t3 = (
        pick(entries, 0)[:, None],
        pick(entries, 1)[:, None],
        pick(entries, 2)[:, None],
        pick(entries, 3)[:, None],
    )
    if ISA == "ptx":
        low, high = tl.inline_asm_elementwise(
            LOOKUP_PTX,
            "=&r,=&r,r,r,r,r,r",
            [v, t0, t1, t2, t3],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
        return low, high
    else:
        return _lookup4(v, t0, t1, t2, t3, ISA), _lookup4(v >> 16, t0, t1, t2, t3, ISA)


@triton.jit
def _lookup4(v, t0, t1, t2, t3, ISA: tl.constexpr):
    codes = v & 0xFFFF
    codes = (codes | (codes << 8)) & 0x00FF00FF
    codes = (codes | (codes << 4)) & 0x0F0F0F0F
    index = codes & 0x07070707
    upper = ((codes >> 3) & 0x01010101) * 255
    return (_permute(index, t0, t1, ISA) & ~upper) | (_permute(index, t2, t3, ISA) & upper)


@triton.jit
def _permute(index, t0, t1, ISA: tl.constexpr):
    """For every byte of index (0..7) the byte of the table t0, t1 that it names."""
    if ISA == "gfx9" or ISA == "gfx11":
        return tl.inline_asm_elementwise(
            "v_perm_b32 $0, $1, $2, $3", "=v,v,v,v", [t1, t0, index], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        result = tl.zeros(index.shape, tl.int32)
        for i in tl.static_range(4):
            code = (index >> (8 * i)) & 7
            entry = tl.where(code < 4, t0, t1) >> (8 * (code & 3))
            result |= (entry & 0xFF) << (8 * i)
        return result


# ---- dot products ----


@triton.jit
def dot4(a, b, acc, ISA: tl.constexpr):
    """acc plus the sum of the products of the four signed bytes of a and b."""
    if ISA == "ptx":
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, acc], dtype=tl.int32, is_pure=True, pack=1
        )
    elif ISA == "gfx9":
        return tl.inline_asm_elementwise(
            "v_dot4_i32_i8 $0, $1, $2, $3", "=v,v,v,v", [a, b, acc], dtype=tl.int32, is_pure=True, pack=1
        )
    elif ISA == "gfx11":
        return tl.inline_asm_elementwise(
            "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]",
            "=v,v,v,v",
            [a, b, acc],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        for i in tl.static_range(4):
            acc += signed_byte(a, i) * signed_byte(b, i)
        return acc
