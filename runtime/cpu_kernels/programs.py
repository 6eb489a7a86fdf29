"""Programs: lists of kernels that a team of threads walks through together.

Every thread calls every instruction's kernel; they share its work by taking numbers from the instruction's counter
(`next_task`) or by their own number. Behind an instruction with a barrier nobody goes on before all are done.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from .kernel import Compiler, Kernel

# A number, or the name of a variable.
Argument = int | float | str

# An instruction, in int64: these, then its arguments.
WIDTH = 32
KERNEL, BARRIER, COUNTER, ARGUMENTS = 0, 1, 2, 3


def float_bits(value: float) -> int:
    """A float32 as kernels take it: `vectors.number` makes it one again."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


class Program:
    """Instructions in memory.

    An argument is a number, or the name of a variable that `set` gives a value before a run. keep: whatever must live
    as long as the program, since it knows addresses only.
    """

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self.keep: list[Any] = []
        self.code = np.zeros((0, WIDTH), np.int64)
        self._places: dict[str, list[int]] = {}
        self._values: dict[str, int] = {}

    def add(self, kernel: Kernel, *constants: Any, barrier: Argument = True, **arguments: Argument) -> None:
        """An instruction. barrier: whether the next one needs what this one leaves."""
        names = kernel.parameters(*constants)
        assert set(names) == set(arguments), (kernel.name, set(names) ^ set(arguments))
        row = np.zeros(WIDTH, np.int64)
        row[[KERNEL, BARRIER]] = self.compiler.address(kernel, *constants), bool(barrier)
        for i, name in enumerate(names, ARGUMENTS):
            value = arguments[name]
            if isinstance(value, str):
                self._places.setdefault(value, []).append(len(self.code) * WIDTH + i)
            else:
                row[i] = float_bits(value) if isinstance(value, float) else value
        self.code = np.vstack((self.code, row))
        self._values.clear()

    def set(self, **values: int) -> None:
        """Gives variables their values; those that no instruction uses are ignored."""
        code = self.code.reshape(-1)
        for name, value in values.items():
            if self._values.get(name) != value:
                self._values[name] = value
                if name in self._places:
                    code[self._places[name]] = value
