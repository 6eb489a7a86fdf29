"""One block per quantised format worked out by hand from ggml's layouts, as a witness beside its own code.

A block is zero but for the bytes listed by their offset. Scales d are powers of two where nothing else is said:
1.0 is 00 3C, 0.5 is 00 38, 2.0 is 00 40, 4.0 is 00 44 (f16, low byte first).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Witness:
    """`block`: offset to bytes; `weights`: index to value; every other weight is `rest`."""

    format: str
    block: dict[int, bytes]
    weights: dict[int, float]
    rest: float


HALF, ONE, TWO, FOUR = b"\x00\x38", b"\x00\x3c", b"\x00\x40", b"\x00\x44"


def span(start: int, stop: int, value: float) -> dict[int, float]:
    return dict.fromkeys(range(start, stop), value)


def listed(start: int, values: tuple[float, ...]) -> dict[int, float]:
    return dict(enumerate(values, start))


WITNESSES = (
    # Byte 3 of qs: low nibble 5 is weight 3, high nibble 10 is weight 19.
    Witness("Q4_0", {0: ONE, 5: b"\xa5"}, {3: -3.0, 19: 2.0}, -8.0),
    Witness("Q4_1", {0: TWO, 2: HALF, 19: b"\x71"}, {15: 2.5, 31: 14.5}, 0.5),
    # Bit 20 of qh is bit 4 of bytes 2..5's third; byte 4 of qs: weights 4 (12) and 20 (3 + 16).
    Witness("Q5_0", {0: ONE, 4: b"\x10", 10: b"\x3c"}, {4: -4.0, 20: 3.0}, -16.0),
    Witness("Q5_1", {0: ONE, 2: b"\x00\xbc", 4: b"\x02", 9: b"\xf0"}, {1: 15.0, 17: 14.0}, -1.0),
    Witness("Q8_0", {0: HALF, 2: b"\x7f", 33: b"\x80"}, {0: 63.5, 31: -64.0}, 0.0),
    # The sum s takes no part, even where it is infinite.
    Witness("Q8_1", {0: HALF, 2: b"\x00\x7c", 5: b"\xff"}, {1: -0.5}, 0.0),
    # Group 5: scale 3, minimum 2 halves. Weight 80 is bits 4-5 of qs[16].
    Witness("Q2_K", {5: b"\x23", 32: b"\x20", 80: ONE, 82: HALF}, {**span(80, 96, -1.0), 80: 5.0}, 0.0),
    # Group 9 has scale 35 - 32: 3 in the high nibble of scales[1], 2 in bits 4-5 of scales[9]; all others -32.
    # Weight 150: low bits of qs[54], bit 4 of hmask[22].
    Witness(
        "Q3_K",
        {22: b"\x10", 86: b"\x01", 97: b"\x30", 105: b"\x20", 108: ONE},
        {**span(144, 160, -12.0), 150: 3.0},
        128.0,
    ),
    # Group 6: scale 1 + 16 and minimum 2 + 48, from scales[10], scales[2] and scales[6]. Weight 200: qs[104].
    Witness(
        "Q4_K",
        {0: ONE, 2: HALF, 6: b"\x40", 10: b"\xc0", 14: b"\x21", 120: b"\x09"},
        {**span(192, 224, -25.0), 200: 128.0},
        0.0,
    ),
    # Group 1: scale 5, minimum 2. Weight 33: high nibble 7 of qs[1], bit 1 of qh[1].
    Witness(
        "Q5_K",
        {0: ONE, 2: HALF, 5: b"\x05", 9: b"\x02", 17: b"\x02", 49: b"\x70"},
        {**span(32, 64, -1.0), 33: 114.0},
        0.0,
    ),
    # Group 12: scale -2. Weight 205: high nibble 9 of ql[77], bits 4-5 (3) of qh[45].
    Witness(
        "Q6_K",
        {77: b"\x90", 173: b"\x30", 204: b"\xfe", 208: ONE},
        {**span(192, 208, 64.0), 205: -50.0},
        0.0,
    ),
    Witness("Q8_K", {0: b"\x00\x00\x80\x3e", 259: b"\xf8"}, {255: -2.0}, 0.0),
    # 200 * 3 / 256 = 2.3; the fraction goes on as 88, 8, 24, 72: digits 2 1 0 0 0.
    Witness(
        "TQ1_0",
        {3: b"\xc8", 37: b"\xc8", 50: b"\xc8", 52: ONE},
        {3: 1.0, 35: 0.0, 165: 1.0, 181: 0.0, 242: 1.0, 246: 0.0},
        -1.0,
    ),
    # Weight 161: bits 2-3 of qs[33].
    Witness("TQ2_0", {33: b"\x0c", 64: TWO}, {161: 4.0}, -2.0),
    # Weight 23 is bit 7 of qs[2]; d = 1.5.
    Witness("Q1_0", {0: b"\x00\x3e", 4: b"\x80"}, {23: 1.5}, -1.5),
    # 0xB4 is 0, 1, 3, 2 from its low end.
    Witness("Q2_0", {0: ONE, 5: b"\xb4"}, {13: 0.0, 14: 2.0, 15: 1.0}, -1.0),
    Witness("MXFP4", {0: b"\x80", 16: b"\xe7"}, {15: 12.0, 31: -8.0}, 0.0),
    Witness("MXFP4", {0: b"\x00", 1: b"\x01", 2: b"\x02"}, {0: 2.0**-128, 1: 2.0**-127}, 0.0),
    Witness("MXFP4", {0: b"\x01", 1: b"\x09"}, {0: -(2.0**-127)}, 0.0),
    Witness("MXFP4", {0: b"\xff", 1: b"\x71"}, {0: 2.0**127, 16: float("inf")}, 0.0),
    # Group 2: scale 1 / 2. Byte 17 of qs: weights 33 and 41.
    Witness("NVFP4", {2: b"\x38", 21: b"\x5f"}, {33: -6.0, 41: 3.0}, 0.0),
    # Scale 0x01 is half of 2^-9, scale 0x7F is 0, scale 0x09 half of 9/8 * 2^-6.
    Witness("NVFP4", {0: b"\x01\x7f\x09", 4: b"\x02", 12: b"\x07", 20: b"\x01"}, {0: 2.0**-9, 32: 9 * 2.0**-10}, 0.0),
    Witness("IQ4_NL", {0: ONE, 4: b"\x9f"}, {2: 113.0, 18: 13.0}, -127.0),
    # Group 3: scale 1 + 32 - 32; all others -32.
    Witness(
        "IQ4_XS",
        {0: ONE, 2: b"\x80", 5: b"\x10", 57: b"\x8f"},
        {**span(96, 128, -127.0), 97: 113.0, 113: 1.0},
        4064.0,
    ),
    # Codebook entry 0 is all 8, entry 1 is 43 8 8 8 8 8 8 8. Group 2: scale 3; weights 72.. have sign index 1,
    # which negates the first and, for parity, the last.
    Witness(
        "IQ2_XXS",
        {0: FOUR, 19: b"\x01", 22: b"\x80\x00\x00\x30"},
        {**span(64, 96, 28.0), 72: -150.5, 79: -28.0},
        4.0,
    ),
    # Weights 40..47: code 1, sign index 2; their 16 have scale 1.
    Witness(
        "IQ2_XS",
        {0: FOUR, 12: b"\x01\x04", 67: b"\x01"},
        {**span(32, 48, 12.0), 40: 64.5, 41: -12.0, 47: -12.0},
        4.0,
    ),
    # Weights 24..31: code 768, which is 8 43 8 25 8 8 43 25; first and last negative; their 16 have scale 2.
    Witness(
        "IQ2_S",
        {0: FOUR, 37: b"\x81", 66: b"\xc0", 74: b"\x20"},
        {**span(16, 24, 20.0), **listed(24, (-20.0, 107.5, 20.0, 62.5, 20.0, 20.0, 107.5, -62.5))},
        4.0,
    ),
    # Entry 0 is all 4, entry 1 is 20 4 4 4. Weights 68..71: code 1, signs of bits 4 and 7; group 2: scale 1.
    Witness(
        "IQ3_XXS",
        {0: TWO, 19: b"\x01", 74: b"\x10\x00\x00\x10"},
        {**span(64, 96, 6.0), 68: -30.0, 71: -6.0},
        2.0,
    ),
    # Entry 0 is all 1, entry 256 is 7 5 9 5. Weights 40..43: code 256, first negative; group 1: scale 2 * 2 + 1.
    Witness(
        "IQ3_S",
        {0: ONE, 67: b"\x04", 79: b"\x01", 106: b"\x20"},
        {**span(32, 64, 5.0), **listed(40, (-35.0, 25.0, 45.0, 25.0))},
        1.0,
    ),
    # Entry 0 is all -1, entry 256 is -1 0 1 0 1 -1 0 -1. Group 1: scale 5, delta -1/8; weights 48..55: code 256.
    Witness(
        "IQ1_S",
        {0: ONE, 36: b"\x40\xa0"},
        {
            **span(32, 64, -5.625),
            **listed(48, (-5.625, -0.625, 4.375, -0.625, 4.375, -5.625, -0.625, -5.625)),
        },
        -0.875,
    ),
    # d = 1.0 from the top nibbles 0 0 C 3. Group 5: scale 3; weights 88..95: code 256, delta -1/8.
    Witness(
        "IQ1_M",
        {37: b"\x90", 50: b"\x08", 53: b"\xc0", 55: b"\x30"},
        {
            **span(80, 88, -2.625),
            **listed(88, (-3.375, -0.375, 2.625, -0.375, 2.625, -3.375, -0.375, -3.375)),
        },
        -0.875,
    ),
)
