"""One record per ggml tensor format: id, name, weights per block, and the fields of a block in file order.

Sizes are derived from the fields. All multi-byte fields are little-endian, rows are whole blocks without
padding, and blocks are aligned to nothing wider than their own widest field. In the comments e is the index
of a weight inside its block and "half" means 128 consecutive weights.
"""

from dataclasses import dataclass
from typing import Literal

FieldType = Literal["u8", "i8", "u16", "i16", "u32", "i32", "i64", "f16", "bf16", "f32", "f64"]

ITEM_BYTES: dict[FieldType, int] = {
    "u8": 1,
    "i8": 1,
    "u16": 2,
    "i16": 2,
    "u32": 4,
    "i32": 4,
    "i64": 8,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
}


@dataclass(frozen=True, slots=True)
class Field:
    """`count` consecutive items of one type inside a block."""

    name: str
    dtype: FieldType
    count: int = 1

    @property
    def n_bytes(self) -> int:
        """Bytes that the field takes in a block."""
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Format:
    """How ggml type `id` stores `block_size` consecutive weights of a row."""

    id: int
    name: str
    block_size: int
    fields: tuple[Field, ...]

    @property
    def type_size(self) -> int:
        """Bytes per block."""
        return sum(field.n_bytes for field in self.fields)

    @property
    def is_quantized(self) -> bool:
        """Whether weights share a block, so that none can be read alone."""
        return self.block_size > 1

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes on average, scales included."""
        return 8 * self.type_size / self.block_size

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of n weights. ValueError where n is not a whole number of blocks."""
        if n % self.block_size:
            raise ValueError(f"a row of {self.name} must be a multiple of {self.block_size} weights, found {n}")
        return n // self.block_size * self.type_size


F32 = Format(0, "F32", 1, (Field("value", "f32"),))
F16 = Format(1, "F16", 1, (Field("value", "f16"),))
BF16 = Format(30, "BF16", 1, (Field("value", "bf16"),))
F64 = Format(28, "F64", 1, (Field("value", "f64"),))
I8 = Format(24, "I8", 1, (Field("value", "i8"),))
I16 = Format(25, "I16", 1, (Field("value", "i16"),))
I32 = Format(26, "I32", 1, (Field("value", "i32"),))
I64 = Format(27, "I64", 1, (Field("value", "i64"),))

# Blocks of 32. Byte j of the 16 bytes qs holds weight j in its low and weight j + 16 in its high nibble.
# Bit e of the four bytes qh is bit 4 of weight e.
Q4_0 = Format(2, "Q4_0", 32, (Field("d", "f16"), Field("qs", "u8", 16)))
Q4_1 = Format(3, "Q4_1", 32, (Field("d", "f16"), Field("m", "f16"), Field("qs", "u8", 16)))
Q5_0 = Format(6, "Q5_0", 32, (Field("d", "f16"), Field("qh", "u8", 4), Field("qs", "u8", 16)))
Q5_1 = Format(7, "Q5_1", 32, (Field("d", "f16"), Field("m", "f16"), Field("qh", "u8", 4), Field("qs", "u8", 16)))
Q8_0 = Format(8, "Q8_0", 32, (Field("d", "f16"), Field("qs", "i8", 32)))
# Activations: s is d times the sum of qs.
Q8_1 = Format(9, "Q8_1", 32, (Field("d", "f16"), Field("s", "f16"), Field("qs", "i8", 32)))
# qs are codes of a table of 16 values.
IQ4_NL = Format(20, "IQ4_NL", 32, (Field("d", "f16"), Field("qs", "u8", 16)))
# e is an E8M0 exponent, qs are E2M1 codes.
MXFP4 = Format(39, "MXFP4", 32, (Field("e", "u8"), Field("qs", "u8", 16)))

# d are UE4M3 scales of four groups of 16; group g owns qs[8g:8g+8], nibbles j and j + 8 in byte j.
NVFP4 = Format(40, "NVFP4", 64, (Field("d", "u8", 4), Field("qs", "u8", 32)))
# Weight e is bit e % 8 of qs[e / 8].
Q1_0 = Format(41, "Q1_0", 128, (Field("d", "f16"), Field("qs", "u8", 16)))
# Weight e is the two bits 2 (e % 4) of qs[e / 4].
Q2_0 = Format(42, "Q2_0", 64, (Field("d", "f16"), Field("qs", "u8", 16)))

# Blocks of 256 with two-level scales. "2 bits of qs" of weight e means bits 2 (e % 128 / 32) of
# qs[32 (e / 128) + e % 32].
Q2_K = Format(
    10,
    "Q2_K",
    256,
    (
        Field("scales", "u8", 16),  # per 16 weights: scale in the low, minimum in the high nibble
        Field("qs", "u8", 64),  # 2 bits
        Field("d", "f16"),
        Field("dmin", "f16"),
    ),
)
Q3_K = Format(
    11,
    "Q3_K",
    256,
    (
        Field("hmask", "u8", 32),  # bit e / 32 of byte e % 32, 1 where 4 is not to be subtracted
        Field("qs", "u8", 64),  # low 2 bits
        Field("scales", "u8", 12),  # sixteen of 6 bits, biased by 32: 8 bytes of nibbles, 4 of top bits
        Field("d", "f16"),
    ),
)
Q4_K = Format(
    12,
    "Q4_K",
    256,
    (
        Field("d", "f16"),
        Field("dmin", "f16"),
        Field("scales", "u8", 12),  # eight scales and eight minima of 6 bits, per 32 weights
        Field("qs", "u8", 128),  # group i of 32: low (even i) or high (odd i) nibbles of qs[32 (i / 2):]
    ),
)
Q5_K = Format(
    13,
    "Q5_K",
    256,
    (
        Field("d", "f16"),
        Field("dmin", "f16"),
        Field("scales", "u8", 12),  # as in Q4_K
        Field("qh", "u8", 32),  # bit e / 32 of byte e % 32 is bit 4 of weight e
        Field("qs", "u8", 128),  # low 4 bits, as in Q4_K
    ),
)
Q6_K = Format(
    14,
    "Q6_K",
    256,
    (
        Field("ql", "u8", 128),  # 64 bytes per half: low nibbles are its first 64 weights
        Field("qh", "u8", 64),  # top 2 bits, in the order of Q2_K's qs
        Field("scales", "i8", 16),  # per 16 weights
        Field("d", "f16"),
    ),
)
# Activations: bsums are sums of 16 qs.
Q8_K = Format(15, "Q8_K", 256, (Field("d", "f32"), Field("qs", "i8", 256), Field("bsums", "i16", 16)))

# Ternary. A byte of TQ1_0 is five base-3 digits as a fixed-point fraction, first digit on top.
TQ1_0 = Format(
    34,
    "TQ1_0",
    256,
    (
        Field("qs", "u8", 48),  # digit n of the first 32 bytes: e = 32 n + byte; then 16 bytes of 160 + 16 n
        Field("qh", "u8", 4),  # four digits each, e = 240 + 4 n + byte
        Field("d", "f16"),
    ),
)
TQ2_0 = Format(35, "TQ2_0", 256, (Field("qs", "u8", 64), Field("d", "f16")))  # qs in the order of Q2_K

# Codebook formats. A code selects 8 (IQ1, IQ2) or 4 (IQ3) consecutive weights. A 7-bit sign index stands for
# 8 sign bits, the last of which makes the number of minus signs even. Nibbles of scales: even groups low.
IQ2_XXS = Format(
    16,
    "IQ2_XXS",
    256,
    (
        Field("d", "f16"),
        # Per 32 weights two words: four codes of 8 bits; four sign indices of 7 bits and a scale of 4 bits.
        Field("qs", "u32", 16),
    ),
)
IQ2_XS = Format(
    17,
    "IQ2_XS",
    256,
    (
        Field("d", "f16"),
        Field("qs", "u16", 32),  # per 8 weights: code in 9 bits, sign index in 7
        Field("scales", "u8", 8),  # nibble per 16 weights
    ),
)
IQ2_S = Format(
    22,
    "IQ2_S",
    256,
    (
        Field("d", "f16"),
        Field("qs", "u8", 32),  # per 8 weights: low 8 bits of the code
        Field("signs", "u8", 32),  # a bit per weight
        Field("qh", "u8", 8),  # per 8 weights: top 2 bits of the code
        Field("scales", "u8", 8),  # nibble per 16 weights
    ),
)
IQ3_XXS = Format(
    18,
    "IQ3_XXS",
    256,
    (
        Field("d", "f16"),
        Field("qs", "u8", 64),  # code per 4 weights
        Field("signs_scales", "u32", 8),  # per 32 weights: four sign indices of 7 bits, a scale of 4 bits
    ),
)
IQ3_S = Format(
    21,
    "IQ3_S",
    256,
    (
        Field("d", "f16"),
        Field("qs", "u8", 64),  # per 4 weights: low 8 bits of the code
        Field("qh", "u8", 8),  # per 4 weights: top bit of the code
        Field("signs", "u8", 32),  # a bit per weight
        Field("scales", "u8", 4),  # nibble per 32 weights
    ),
)
IQ4_XS = Format(
    23,
    "IQ4_XS",
    256,
    (
        Field("d", "f16"),
        Field("scales_h", "u16"),  # per 32 weights: top 2 bits of a scale biased by 32
        Field("scales_l", "u8", 4),  # per 32 weights: its low nibble
        Field("qs", "u8", 128),  # per 32 weights 16 bytes, as in IQ4_NL
    ),
)
IQ1_S = Format(
    19,
    "IQ1_S",
    256,
    (
        Field("d", "f16"),
        Field("qs", "u8", 32),  # per 8 weights: low 8 bits of the code
        Field("qh", "u16", 8),  # per 32 weights: top 3 bits of four codes, a scale of 3 bits, sign of delta
    ),
)
IQ1_M = Format(
    29,
    "IQ1_M",
    256,
    (
        Field("qs", "u8", 32),  # per 8 weights: low 8 bits of the code
        Field("qh", "u8", 16),  # per 8 weights a nibble: top 3 bits of the code, sign of delta
        Field("scales", "u16", 4),  # four scales of 3 bits each; the top nibbles are the f16 scale d
    ),
)

FORMATS: tuple[Format, ...] = (
    *(F32, F16, BF16, F64, I8, I16, I32, I64),
    *(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, MXFP4, NVFP4, Q1_0, Q2_0),
    *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, TQ1_0, TQ2_0),
    *(IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS),
)

# Ids that old files may carry; ggml removed their decoders.
RETIRED: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

# Names that people use for a format that ggml calls otherwise.
ALIASES: dict[str, str] = {"IQ4_XXS": "IQ4_XS"}

_BY_ID = {fmt.id: fmt for fmt in FORMATS}
_BY_NAME = {fmt.name: fmt for fmt in FORMATS}


def format_by_id(id: int) -> Format:
    """The format of a ggml type id. ValueError for a retired or an unknown one."""
    if id in RETIRED:
        raise ValueError(_retired(RETIRED[id]))
    if id not in _BY_ID:
        raise ValueError(f"unknown tensor format id {id}, expected one of {sorted(_BY_ID)}")
    return _BY_ID[id]


def format_by_name(name: str) -> Format:
    """The format of a ggml type name in any case. ValueError for a retired or an unknown one."""
    upper = name.upper()
    if upper in RETIRED.values():
        raise ValueError(_retired(upper))
    upper = ALIASES.get(upper, upper)
    if upper not in _BY_NAME:
        raise ValueError(f"unknown tensor format {name!r}, expected one of {', '.join(_BY_NAME)}")
    return _BY_NAME[upper]


def _retired(name: str) -> str:
    return f"tensor format {name} was retired from ggml: requantise the model from its original weights"
