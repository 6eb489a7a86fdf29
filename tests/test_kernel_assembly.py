"""Inline assembly, run by hand: the interpreter takes the portable twins, so nothing else executes it without a GPU."""

import re
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from naiad.quant.codebooks import E2M1_VALUES, IQ4_VALUES
from naiad.triton_kernels import attention_bytes
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


def v_perm(a: int, b: int, selector: int) -> int:
    """AMD's ISA documents, v_perm_b32: a byte of the selector picks one of eight bytes, 12 stands for zero."""
    source = (a << 32 | b).to_bytes(8, "little") + bytes(8)
    return int.from_bytes(bytes(source[i] for i in selector.to_bytes(4, "little")), "little")


def lop3(a: int, b: int, c: int, table: int) -> int:
    """PTX ISA, lop3.b32: bit (a, b, c) of the table for every bit position."""
    return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))


OPERATIONS: dict[str, Callable[..., int]] = {
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "shr.b32": lambda a, b: a >> b,
    "add.u32": lambda a, b: a + b,
    "mul.lo.u32": lambda a, b: a * b,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "v_and_b32": lambda a, b: a & b,
    "v_or_b32": lambda a, b: a | b,
    "v_xor_b32": lambda a, b: a ^ b,
    "v_lshrrev_b32": lambda a, b: b >> a,
    "v_lshl_or_b32": lambda a, b, c: a << b | c,
    "v_lshl_add_u32": lambda a, b, c: (a << b) + c,
    "v_mul_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_perm_b32": v_perm,
}


def execute(assembly: str, operands: dict[str, int]) -> dict[str, int]:
    """The registers after the instructions of a block have run on 32-bit operands."""
    registers = dict(operands)
    for line in re.findall(r"^\s*([a-z]\S* [^;\n]*);?$", assembly, re.M):
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


@pytest.mark.parametrize(
    ("flip", "kept", "magic", "selector", "step", "bias", "bytes"),
    [
        (0x80808080, MASK, 0x47000000, 0x7404, 4, 32896.0, (-128, -127, -1, 0, 1, 126, 127)),
        (0x40404040, 0x7F7F7F7F, 0x43000000, 0x7044, 8, 192.0, (-64, -63, -1, 0, 1, 31, 62, 63)),
    ],
    ids=["any byte", "small bytes"],
)
def test_a_byte_becomes_a_number_with_a_bias(
    flip: int, kept: int, magic: int, selector: int, step: int, bias: float, bytes: tuple[int, ...]
) -> None:
    """The constants of words._biased_floats and words.weights16."""
    for i in range(4):
        for byte in bytes:
            biased = ((0x11223344 & ~(0xFF << 8 * i) | (byte & 0xFF) << 8 * i) ^ flip) & kept
            bits = prmt(biased, magic, selector + (i << step))
            assert torch.tensor(bits, dtype=torch.int32).view(torch.float32).item() - bias == byte


def four_bytes(isa: str, name: str, outputs: int, word: int, *others: int) -> list[list[float]]:
    """What an instruction of attention_bytes.py makes of four bytes: for each tensor four f16 in their order."""
    # A tensor of 32 bits has a register for each of the elements that are packed.
    packed = 4 if isa == "PTX" else 2
    if isa == "AMD" and name != "E4M3_BITS":
        others += tuple(getattr(attention_bytes, k).value for k in ("SIXTY_FOURS", "EVEN_BYTES", "ODD_BYTES"))
    operands = {f"${outputs}": word} | {f"${outputs + 1 + packed * i}": value for i, value in enumerate(others)}
    registers = execute(getattr(attention_bytes, f"{name}_{isa}").value, operands)
    words = torch.tensor([registers[f"${i}"] for i in range(outputs)]).to(torch.int32)
    halves = words.view(torch.float16).view(-1, 2, 2)
    return (halves if isa == "PTX" else halves.mT).flatten(1).tolist()


@pytest.mark.parametrize("isa", ["PTX", "AMD"])
def test_bytes_become_halves(isa: str) -> None:
    table = torch.tensor(IQ4_VALUES, dtype=torch.int8)
    biased = [(word ^ 0x80808080) & MASK for word in table.view(torch.int32).tolist()]
    for _ in range(200):
        v = torch.randint(0, 256, (4,), dtype=torch.uint8)
        word, low, high = int.from_bytes(v.tolist(), "little"), v & 15, v >> 4
        first, second = torch.randint(0, 2**31, (2,)).tolist()
        bits = [torch.tensor([x >> i & 1 for i in range(4)]) << 4 for x in (first, second)]
        assert four_bytes(isa, "SIGNED", 2, word) == [(v.view(torch.int8) + 1152.0).tolist()]
        assert four_bytes(isa, "NIBBLES", 4, word) == [(low + 1024.0).tolist(), (16.0 * high + 1024).tolist()]
        fifth = [(x + b + 1024.0).tolist() for x, b in zip((low, high), bits, strict=True)]
        assert four_bytes(isa, "FIFTH", 4, word, first, second) == fifth
        looked_up = [(table[x.int()] + 1152.0).tolist() for x in (low, high)]
        assert four_bytes(isa, "LOOKUP_HALVES", 4, word, *biased) == looked_up


@pytest.mark.parametrize("isa", ["PTX", "AMD"])
def test_float8_becomes_halves(isa: str) -> None:
    selectors = () if isa == "PTX" else (0x020C000C, 0x030C010C, 0x40004000)
    for first in range(0, 256, 4):
        v = torch.arange(first, first + 4, dtype=torch.uint8)
        expected = torch.where(v & 0x7F == 0x7F, 480.0, v.view(torch.float8_e4m3fn).float())
        expected = expected.copysign(v.view(torch.int8).float() + 0.5)
        found = four_bytes(isa, "E4M3_BITS", 2, int.from_bytes(v.tolist(), "little"), *selectors)
        assert [256 * x for x in found[0]] == expected.tolist()
