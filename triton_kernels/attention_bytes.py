"""Bytes of a cache as 16-bit floats, two at a time.

Under the byte 0x64 a byte u is the f16 1024 + u, so that nothing is converted, and arithmetic on two numbers at a time
follows. `bytes16` says what tiles these functions take: NVIDIA's instructions get four bytes of a tile of bytes, AMD's
two of a tile of pairs, since there bytes cannot be operands. ISA: as in words.py.

The compiler looks through what is pure to find out what was loaded. From bytes it would derive how lanes hold what
tensor cores multiply: on NVIDIA with moves for every other register, on AMD with bytes handed on to lanes of which many
then compute the same. So AMD's instructions here are not pure, and `computed_here` stands for that elsewhere.
"""

import triton
import triton.language as tl

SIGNED_PTX: tl.constexpr = tl.constexpr("""{
    .reg .b32 biased;
    xor.b32 biased, $2, 0x80808080;
    prmt.b32 $0, biased, 0x64646464, 0x4140;
    prmt.b32 $1, biased, 0x64646464, 0x4342;
}""")
SIGNED_AMD: tl.constexpr = tl.constexpr("""
    v_xor_b32 $1, 0x80808080, $2
    v_perm_b32 $0, $3, $1, $5
    v_perm_b32 $1, $3, $1, $7
""")
NIBBLES_PTX: tl.constexpr = tl.constexpr("""{
    prmt.b32 $2, $4, 0x64646464, 0x4140;
    prmt.b32 $3, $4, 0x64646464, 0x4342;
    and.b32 $0, $2, 0xFF0FFF0F;
    and.b32 $1, $3, 0xFF0FFF0F;
    and.b32 $2, $2, 0xFFF0FFF0;
    and.b32 $3, $3, 0xFFF0FFF0;
}""")
NIBBLES_AMD: tl.constexpr = tl.constexpr("""
    v_perm_b32 $2, $5, $4, $7
    v_perm_b32 $3, $5, $4, $9
    v_and_b32 $0, 0xFF0FFF0F, $2
    v_and_b32 $1, 0xFF0FFF0F, $3
    v_and_b32 $2, 0xFFF0FFF0, $2
    v_and_b32 $3, 0xFFF0FFF0, $3
""")
# The product brings four bits into four bytes: no two of its terms meet.
FIFTH_PTX: tl.constexpr = tl.constexpr("""{
    .reg .b32 bits, nibbles;
    and.b32 bits, $5, 15;
    mul.lo.u32 bits, bits, 0x02040810;
    and.b32 bits, bits, 0x10101010;
    and.b32 nibbles, $4, 0x0F0F0F0F;
    or.b32 bits, bits, nibbles;
    prmt.b32 $0, bits, 0x64646464, 0x4140;
    prmt.b32 $1, bits, 0x64646464, 0x4342;
    and.b32 bits, $9, 15;
    mul.lo.u32 bits, bits, 0x02040810;
    and.b32 bits, bits, 0x10101010;
    shr.b32 nibbles, $4, 4;
    and.b32 nibbles, nibbles, 0x0F0F0F0F;
    or.b32 bits, bits, nibbles;
    prmt.b32 $2, bits, 0x64646464, 0x4140;
    prmt.b32 $3, bits, 0x64646464, 0x4342;
}""")
FIFTH_AMD: tl.constexpr = tl.constexpr("""
    v_and_b32 $0, 15, $5
    v_mul_u32_u24 $0, 0x00204081, $0
    v_and_b32 $0, 0x01010101, $0
    v_and_b32 $1, 0x0F0F0F0F, $4
    v_lshl_or_b32 $0, $0, 4, $1
    v_and_b32 $2, 15, $7
    v_mul_u32_u24 $2, 0x00204081, $2
    v_and_b32 $2, 0x01010101, $2
    v_lshrrev_b32 $3, 4, $4
    v_and_b32 $3, 0x0F0F0F0F, $3
    v_lshl_or_b32 $2, $2, 4, $3
    v_perm_b32 $1, $9, $0, $13
    v_perm_b32 $0, $9, $0, $11
    v_perm_b32 $3, $9, $2, $13
    v_perm_b32 $2, $9, $2, $11
""")
# As LOOKUP_PTX, but nibbles stay where they are: what is found for them alternates between low and high ones.
LOOKUP_HALVES_PTX: tl.constexpr = tl.constexpr("""{
    .reg .b32 index, select, low, high;
    and.b32 index, $4, 0x77777777;
    shr.b32 select, $4, 1;
    lop3.b32 select, select, 0x44444444, 0x32103210, 0xEA;
    prmt.b32 low, $5, $9, index;
    prmt.b32 high, $13, $17, index;
    prmt.b32 low, low, high, select;
    prmt.b32 $0, low, 0x64646464, 0x4240;
    prmt.b32 $2, low, 0x64646464, 0x4341;
    shr.b32 index, index, 16;
    shr.b32 select, select, 16;
    prmt.b32 low, $5, $9, index;
    prmt.b32 high, $13, $17, index;
    prmt.b32 low, low, high, select;
    prmt.b32 $1, low, 0x64646464, 0x4240;
    prmt.b32 $3, low, 0x64646464, 0x4341;
}""")
LOOKUP_HALVES_AMD: tl.constexpr = tl.constexpr("""
    v_and_b32 $0, 0x07070707, $4
    v_perm_b32 $1, $7, $5, $0
    v_perm_b32 $2, $11, $9, $0
    v_lshrrev_b32 $0, 1, $4
    v_and_b32 $0, 0x04040404, $0
    v_or_b32 $0, 0x03020100, $0
    v_perm_b32 $0, $2, $1, $0
    v_lshrrev_b32 $1, 4, $4
    v_and_b32 $2, 0x07070707, $1
    v_perm_b32 $3, $11, $9, $2
    v_perm_b32 $2, $7, $5, $2
    v_lshrrev_b32 $1, 1, $1
    v_and_b32 $1, 0x04040404, $1
    v_or_b32 $1, 0x03020100, $1
    v_perm_b32 $2, $3, $2, $1
    v_perm_b32 $1, $13, $0, $17
    v_perm_b32 $0, $13, $0, $15
    v_perm_b32 $3, $13, $2, $17
    v_perm_b32 $2, $13, $2, $15
""")
E4M3_PTX: tl.constexpr = tl.constexpr("""{
    .reg .b16 low, high;
    mov.b32 {low, high}, $2;
    cvt.rn.f16x2.e4m3x2 $0, low;
    cvt.rn.f16x2.e4m3x2 $1, high;
}""")
# Exponent and mantissa move to the place of f16's, whose bias is larger by 8; an addition carries the sign to its own.
E4M3_BITS_PTX: tl.constexpr = tl.constexpr("""{
    prmt.b32 $0, $2, 0, 0x1404;
    prmt.b32 $1, $2, 0, 0x3424;
    shr.b32 $0, $0, 1;
    shr.b32 $1, $1, 1;
    add.u32 $0, $0, 0x40004000;
    add.u32 $1, $1, 0x40004000;
    and.b32 $0, $0, 0xBFFFBFFF;
    and.b32 $1, $1, 0xBFFFBFFF;
}""")
E4M3_BITS_AMD: tl.constexpr = tl.constexpr("""
    v_perm_b32 $0, $2, $2, $3
    v_perm_b32 $1, $2, $2, $5
    v_lshrrev_b32 $0, 1, $0
    v_lshrrev_b32 $1, 1, $1
    v_lshl_add_u32 $0, $0, 0, $7
    v_lshl_add_u32 $1, $1, 0, $7
    v_and_b32 $0, 0xBFFFBFFF, $0
    v_and_b32 $1, 0xBFFFBFFF, $1
""")
BIAS: tl.constexpr = tl.constexpr(-0x7F7F7F80)  # 0x80808080
# For v_perm_b32: 0x64 four times, and which of its bytes and of another word's lie beside each other.
SIXTY_FOURS: tl.constexpr = tl.constexpr(0x64646464)
EVEN_BYTES: tl.constexpr = tl.constexpr(0x04020400)
ODD_BYTES: tl.constexpr = tl.constexpr(0x04030401)


@triton.jit
def bytes16(data, at, ISA: tl.constexpr):
    """The 16 bytes at data + at [L]: uint8 [L, 16], or int16 [L, 8] with two in each."""
    if ISA == "ptx" or ISA == "portable":
        return tl.load(data + at[:, None] + tl.arange(0, 16)[None, :])
    else:
        return tl.load(data.to(tl.pointer_type(tl.int16)) + (at // 2)[:, None] + tl.arange(0, 8)[None, :])


@triton.jit
def _sixteen(even, odd):
    """Numbers of even and of odd bytes, [L, 8] each -> [L, 16]."""
    return tl.reshape(tl.join(even, odd), (even.shape[0], 16))


@tl.core.builtin
def _has_e4m3(_semantic=None) -> tl.constexpr:
    """Whether the architecture that is compiled for has instructions for float8_e4m3fn."""
    return tl.constexpr("fp8e4nv" in _semantic.builder.options.supported_fp8_dtypes)


@triton.jit
def half_at(v, high: tl.constexpr):
    """The f16 in the low or high half of words."""
    bits = (v >> 16) if high else v
    return bits.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def signed_halves(v, ISA: tl.constexpr):
    """Signed bytes e -> 1152 + e, f16 [L, 16]."""
    if ISA == "ptx":
        return tl.inline_asm_elementwise(SIGNED_PTX, "=&r,=r,r", [v], dtype=tl.float16, is_pure=True, pack=4)
    elif ISA == "portable":
        return (v ^ 0x80).to(tl.float16) + 1024.0
    else:
        even, odd = tl.inline_asm_elementwise(
            SIGNED_AMD,
            "=&v,=&v" + ",v" * 7,
            [v, SIXTY_FOURS, EVEN_BYTES, ODD_BYTES],
            dtype=(tl.float16, tl.float16),
            is_pure=False,
            pack=2,
        )
        return _sixteen(even, odd)


@triton.jit
def nibble_halves(v, ISA: tl.constexpr):
    """The low and the high nibbles n of bytes -> 1024 + n, 1024 + 16 n, f16 [L, 16] each."""
    if ISA == "portable":
        return (v & 15).to(tl.float16) + 1024.0, (v & 0xF0).to(tl.float16) + 1024.0
    elif ISA == "ptx":
        low, high = tl.inline_asm_elementwise(
            NIBBLES_PTX, "=&r,=&r,=&r,=&r,r", [v], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
        return low, high
    else:
        low0, low1, high0, high1 = tl.inline_asm_elementwise(
            NIBBLES_AMD,
            "=&v,=&v,=&v,=&v" + ",v" * 7,
            [v, SIXTY_FOURS, EVEN_BYTES, ODD_BYTES],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=False,
            pack=2,
        )
        return _sixteen(low0, low1), _sixteen(high0, high1)


@triton.jit
def fifth_halves(v, fifth, ISA: tl.constexpr):
    """Nibbles of bytes with a fifth bit -> 1024 + n of the low ones and of the high ones, f16 [L, 16] each.

    fifth: int32 [L], bit i that of low nibble i, bit 16 + i that of high nibble i.
    """
    fifth = fifth[:, None]
    if ISA == "portable":
        i = tl.arange(0, 16)[None, :]
        low = (v & 15).to(tl.int32) | (((fifth >> i) & 1) << 4)
        high = (v >> 4).to(tl.int32) | (((fifth >> (16 + i)) & 1) << 4)
        return low.to(tl.float16) + 1024.0, high.to(tl.float16) + 1024.0
    elif ISA == "ptx":
        # The same for four bytes, so that they are shifted once.
        first = tl.arange(0, 16)[None, :] // 4 * 4
        low, high = tl.inline_asm_elementwise(
            FIFTH_PTX,
            "=&r,=&r,=&r,=&r" + ",r" * 9,
            [v, fifth >> first, fifth >> (16 + first)],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
        return low, high
    else:
        first = tl.arange(0, 8)[None, :] // 2 * 4
        low0, low1, high0, high1 = tl.inline_asm_elementwise(
            FIFTH_AMD,
            "=&v,=&v,=&v,=&v" + ",v" * 11,
            [v, fifth >> first, fifth >> (16 + first), SIXTY_FOURS, EVEN_BYTES, ODD_BYTES],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=False,
            pack=2,
        )
        return _sixteen(low0, low1), _sixteen(high0, high1)


@triton.jit
def lookup_halves(v, table, u, ISA: tl.constexpr):
    """The values e (signed) of the codes in low and in high nibbles of bytes -> 1152 + e, f16 [L, 16] each.

    table, u [L]: as lookup16 takes them.
    """
    at = table + tl.where(u < 0, 4, 0)[:, None]
    t0, t1 = tl.load(at) ^ BIAS, tl.load(at + 1) ^ BIAS
    t2, t3 = tl.load(at + 2) ^ BIAS, tl.load(at + 3) ^ BIAS
    if ISA == "portable":
        return _entry(v & 15, t0, t1, t2, t3), _entry(v >> 4, t0, t1, t2, t3)
    elif ISA == "ptx":
        low, high = tl.inline_asm_elementwise(
            LOOKUP_HALVES_PTX,
            "=&r,=&r,=&r,=&r" + ",r" * 17,
            [v, t0, t1, t2, t3],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
        return low, high
    else:
        low0, low1, high0, high1 = tl.inline_asm_elementwise(
            LOOKUP_HALVES_AMD,
            "=&v,=&v,=&v,=&v" + ",v" * 15,
            [v, t0, t1, t2, t3, SIXTY_FOURS, EVEN_BYTES, ODD_BYTES],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=False,
            pack=2,
        )
        return _sixteen(low0, low1), _sixteen(high0, high1)


@triton.jit
def _entry(code, t0, t1, t2, t3):
    word = tl.where(code < 8, tl.where(code < 4, t0, t1), tl.where(code < 12, t2, t3))
    return ((word >> (8 * (code.to(tl.int32) & 3))) & 0xFF).to(tl.float16) + 1024.0


@triton.jit
def e4m3_halves(v, ISA: tl.constexpr):
    """Bytes of float8_e4m3fn -> f16 [L, 16]. What is not a number may read as 480."""
    if ISA == "portable":
        bits = (v & 0x7F).to(tl.int16) << 7 | (v & 0x80).to(tl.int16) << 8
        return bits.to(tl.float16, bitcast=True) * 256.0
    elif ISA != "ptx":
        even, odd = tl.inline_asm_elementwise(
            E4M3_BITS_AMD,
            "=&v,=&v" + ",v" * 7,
            [v, 0x020C000C, 0x030C010C, 0x40004000],
            dtype=(tl.float16, tl.float16),
            is_pure=False,
            pack=2,
        )
        return _sixteen(even, odd) * 256.0
    elif _has_e4m3():
        return tl.inline_asm_elementwise(E4M3_PTX, "=&r,=r,r", [v], dtype=tl.float16, is_pure=True, pack=4)
    else:
        bits = tl.inline_asm_elementwise(E4M3_BITS_PTX, "=&r,=&r,r", [v], dtype=tl.float16, is_pure=True, pack=4)
        return bits * 256.0


@triton.jit
def computed_here(v, ISA: tl.constexpr):
    """v, of 16 bits, as it is: an instruction that is not pure, though it is none."""
    if ISA == "portable":
        return v
    elif ISA == "ptx":
        return tl.inline_asm_elementwise("", "=r,0", [v], dtype=v.dtype, is_pure=False, pack=2)
    else:
        return tl.inline_asm_elementwise("", "=v,0", [v], dtype=v.dtype, is_pure=False, pack=2)
