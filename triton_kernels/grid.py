"""Sizes of grids and blocks, which the host computes at every launch. Triton's functions of these names go through what
its compiler calls functions with, which takes an eighth of a launch."""


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up, of positive integers."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n; 1 for n < 2."""
    return 1 << max(0, n - 1).bit_length()
