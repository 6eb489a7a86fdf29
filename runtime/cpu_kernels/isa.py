"""What a processor can do that kernels make use of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Dot = Literal["avx512vnni", "avxvnni", "avx2", "neon", "generic"]


@dataclass(frozen=True, slots=True)
class Isa:
    """How kernels are compiled.

    dot: the instructions that multiply bytes and add four products to an int32. columns: activations that one pass over
    weights serves, as many as the registers hold.
    """

    name: str
    dot: Dot
    columns: int

    @property
    def unsigned(self) -> bool:
        """Whether codes of 8 bits are multiplied as unsigned numbers, 128 more than they stand for."""
        return self.dot in ("avx512vnni", "avxvnni")


ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512vnni", "avx512vnni", 8),
        Isa("avxvnni", "avxvnni", 4),
        Isa("avx2", "avx2", 4),
        Isa("neon", "neon", 4),
        Isa("generic", "generic", 4),
    )
}


def find_isa(features: Mapping[str, bool]) -> Isa:
    """The best for a processor with these features, under LLVM's names."""

    def has(*names: str) -> bool:
        return all(features.get(name) for name in names)

    if has("avx512f", "avx512bw", "avx512vl", "avx512vnni"):
        return ISAS["avx512vnni"]
    if has("avx2", "fma", "f16c", "avxvnni"):
        return ISAS["avxvnni"]
    if has("avx2", "fma", "f16c"):
        return ISAS["avx2"]
    if has("neon", "dotprod"):
        return ISAS["neon"]
    return ISAS["generic"]
