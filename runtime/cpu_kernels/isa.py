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
    weights serves, as many as the registers hold. needs: what a processor must have, under LLVM's names.
    """

    name: str
    dot: Dot
    columns: int
    needs: tuple[str, ...] = ()

    @property
    def lanes(self) -> int:
        """Numbers of 32 bits that a register holds."""
        return {"avx512vnni": 16, "avxvnni": 8, "avx2": 8, "neon": 4, "generic": 16}[self.dot]

    @property
    def unsigned(self) -> bool:
        """Whether codes of 8 bits are multiplied as unsigned numbers, 128 more than they stand for."""
        return self.dot in ("avx512vnni", "avxvnni")


# The best first.
ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512vnni", "avx512vnni", 8, ("avx512f", "avx512bw", "avx512vl", "avx512vnni")),
        Isa("avxvnni", "avxvnni", 4, ("avx2", "fma", "f16c", "avxvnni")),
        Isa("avx2", "avx2", 4, ("avx2", "fma", "f16c")),
        Isa("neon", "neon", 4, ("neon", "dotprod")),
        Isa("generic", "generic", 4),
    )
}
# How the names of those features begin that no later one of ISAS makes use of.
_ONLY = {
    "avx512vnni": ("avx512", "avx10", "amx", "evex"),
    "avxvnni": ("avxvnni", "avxifma"),
    "avx2": ("avx2",),
    "neon": ("dotprod", "i8mm", "sve", "sme"),
}


def find_isa(features: Mapping[str, bool]) -> Isa:
    """The best for a processor with these features, under LLVM's names."""
    return next(isa for isa in ISAS.values() if all(features.get(name) for name in isa.needs))


def features_for(name: str, features: Mapping[str, bool]) -> dict[str, bool]:
    """A processor's features without those that are better than an instruction set. ValueError where it lacks some."""
    if name not in ISAS:
        raise ValueError(f"expected an instruction set of {', '.join(ISAS)}, found {name!r}")
    missing = [need for need in ISAS[name].needs if not features.get(need)]
    if missing:
        raise ValueError(f"this processor cannot run {name}: it has no {', '.join(missing)}")
    names = list(ISAS)
    better = tuple(start for isa in names[: names.index(name)] for start in _ONLY.get(isa, ()))
    return {feature: there and not feature.startswith(better) for feature, there in features.items()}
