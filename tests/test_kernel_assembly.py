"""Inline PTX, run by hand: the interpreter takes the portable twins, so nothing else executes it without a GPU."""

import re
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from naiad.quant.codebooks import E2M1_VALUES, IQ4_VALUES
from naiad.triton_kernels.words import LOOKUP_PTX

MASK = 0xFFFFFFFF


def prmt(a: int, b: int, selector: int) -> int:
    """PTX ISA, prmt.b32 in its default mode: a nibble picks one of eight bytes, its top bit replicates the sign."""
    source = (b << 32 | a).to_bytes(8, "little")
    result = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = source[nibble & 7]
        result |= ((0xFF if byte & 0x80 else 0) if nibble & 8 else byte) << 8 * i
    return result


def lop3(a: int, b: int, c: int, table: int) -> int:
    """PTX ISA, lop3.b32: bit (a, b, c) of the table for every bit position."""
    return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))


OPERATIONS: dict[str, Callable[..., int]] = {
    "and.b32": lambda a, b: a & b,
    "shr.b32": lambda a, b: a >> b,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
}


def execute(assembly: str, operands: dict[str, int]) -> dict[str, int]:
    """The registers after the instructions of a block have run on 32-bit operands."""
    registers = dict(operands)
    for line in re.findall(r"^\s*([a-z]\S*\.b32 .*);", assembly, re.M):
        name, target, *arguments = re.split(r",?\s+", line)
        values = [registers[a] if a in registers else int(a, 0) for a in arguments]
        registers[target] = OPERATIONS[name](*values) & MASK
    return registers


@pytest.mark.parametrize("values", [IQ4_VALUES, E2M1_VALUES], ids=["IQ4", "E2M1"])
def test_lookup_of_eight_codes(values: tuple[int, ...]) -> None:
    packed = torch.tensor(values, dtype=torch.int8).view(torch.int32).tolist()
    table = {f"${3 + i}": word & MASK for i, word in enumerate(packed)}
    for _ in range(200):
        codes = torch.randint(0, 16, (8,)).tolist()
        word = sum(code << 4 * i for i, code in enumerate(codes))
        found = execute(LOOKUP_PTX.value, {"$2": word, **table})
        expected = b"".join(values[code].to_bytes(1, "little", signed=True) for code in codes)
        assert found["$0"].to_bytes(4, "little") + found["$1"].to_bytes(4, "little") == expected


def test_a_byte_becomes_the_low_bits_of_two_to_the_23() -> None:
    for i in range(4):
        for byte in (-128, -1, 0, 1, 127):
            biased = (0x11223344 & ~(0xFF << 8 * i) | (byte & 0xFF) << 8 * i) ^ 0x80808080
            bits = prmt(biased, 0x4B000000, 0x7440 + i)
            number = torch.tensor(bits, dtype=torch.int32).view(torch.float32) - 8388736.0
            assert number.item() == byte
