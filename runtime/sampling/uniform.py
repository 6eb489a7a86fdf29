"""Random numbers as C++'s generators and libstdc++'s distributions make them, one stream per sampler of a request."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from .params import RANDOM_SEED

BLOCK = 64


class Uniform:
    """The numbers in [0, 1) of a std::uniform_real_distribution<double> over a std::mt19937, in its order.

    single: of the distribution over float, which takes one output of the generator per number instead of two.
    seed: -1 and 0xFFFFFFFF for a random one.
    """

    def __init__(self, seed: int, single: bool = False) -> None:
        seed = secrets.randbits(32) if seed in (-1, RANDOM_SEED) else seed
        # RandomState's Mersenne twister is seeded as C++'s std::mt19937 is.
        self.generator = np.random.RandomState(seed)
        self.single = single
        self.ready: list[float] = []

    def next(self) -> float:
        if not self.ready:
            self.ready = self._block()[::-1].tolist()
        return self.ready.pop()

    def _block(self) -> npt.NDArray[np.float64]:
        """The next numbers. What rounds to one becomes the largest number below it, as in generate_canonical."""
        words = np.frombuffer(self.generator.bytes((4 if self.single else 8) * BLOCK), "<u4")
        if self.single:
            largest = float(np.nextafter(np.float32(1), np.float32(0)))
            numbers: npt.NDArray[np.float64] = (words.astype(np.float32) / np.float32(2.0**32)).astype(np.float64)
        else:
            largest = float(np.nextafter(1.0, 0.0))
            low, high = words.astype(np.float64).reshape(BLOCK, 2).T
            numbers = (low + high * 2.0**32) / 2.0**64
        return np.minimum(numbers, largest)
