"""The types of a key/value cache: how a head's keys or values of one token lie in memory.

Plain numbers are one plane, [..., head_dim]. The others are blocks of 32 values with ggml's bits, but quants and scales
lie in planes of their own, so that every plane is aligned and can be loaded in wide words:

    data    uint8 [..., head_dim] (fp8, q8_0) or [..., head_dim / 2]: per block of 32 the 16 bytes of 4-bit quants,
            low nibbles first
    high    int32 [..., head_dim / 32]: the fifth bits, bit i that of value i
    scales  float16 [..., head_dim / 32], or [..., head_dim / 16] with scale and minimum of a block beside each other

Encoding follows ggml's reference quantisers; fp8 is float8_e4m3fn, saturated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache_names import CACHE_TYPE_NAMES
from .codebooks import IQ4_VALUES

BLOCK = 32
FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class CacheType:
    """name: as -ctk and -ctv take it. dtype: of plain numbers. bits: of a quant, 0 for plain numbers."""

    name: str
    dtype: torch.dtype | None = None
    bits: int = 0
    has_minimum: bool = False

    @property
    def bits_per_value(self) -> float:
        if self.dtype is not None:
            return 8.0 * self.dtype.itemsize
        return self.bits + (32 if self.has_minimum else 16) / BLOCK

    def planes(self, head_dim: int) -> tuple[tuple[int, torch.dtype], ...]:
        """Width and dtype of every plane: data, then high and scales where there are any.

        ValueError where blocks do not fit the heads.
        """
        if self.dtype is not None:
            return ((head_dim, torch.uint8 if self.dtype is torch.float8_e4m3fn else self.dtype),)
        if head_dim % BLOCK:
            raise ValueError(f"a {self.name} cache needs heads of a multiple of {BLOCK} values, found {head_dim}")
        n_blocks = head_dim // BLOCK
        data = (n_blocks * (32 if self.bits == 8 else 16), torch.uint8)
        high = ((n_blocks, torch.int32),) if self.bits == 5 else ()
        return (data, *high, (n_blocks * (1 + self.has_minimum), torch.float16))

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        """Numbers [..., head_dim] as planes."""
        if self.dtype is torch.float8_e4m3fn:
            return (values.float().clamp(-FP8_MAX, FP8_MAX).to(self.dtype).view(torch.uint8),)
        if self.dtype is not None:
            return (values.to(self.dtype),)
        blocks = values.float().unflatten(-1, (-1, BLOCK))
        q, scales = _asymmetric(blocks, self.bits) if self.has_minimum else _SYMMETRIC[self.name](blocks)
        scales = scales.half().flatten(-2)
        if self.bits == 8:
            return q.to(torch.int8).view(torch.uint8).flatten(-2), scales
        low = (q & 15)[..., :16] | (q & 15)[..., 16:] << 4
        data = low.to(torch.uint8).flatten(-2)
        if self.bits == 4:
            return data, scales
        places = torch.arange(BLOCK, device=q.device)
        return data, ((q >> 4).long() << places).sum(-1).to(torch.int32), scales

    def decode(self, planes: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Planes as numbers [..., head_dim]."""
        data = planes[0]
        if self.dtype is torch.float8_e4m3fn:
            return data.view(self.dtype).to(dtype)
        if self.dtype is not None:
            return data.to(dtype)
        scales = planes[-1].float().unflatten(-1, (-1, 1 + self.has_minimum))
        if self.bits == 8:
            q = data.view(torch.int8).unflatten(-1, (-1, BLOCK))
        else:
            packed = data.unflatten(-1, (-1, 16))
            q = torch.cat((packed & 15, packed >> 4), -1)
        if self.bits == 5:
            places = torch.arange(BLOCK, device=data.device)
            q = q | ((planes[1].unsqueeze(-1) >> places) & 1).to(torch.uint8) << 4
        if self.name == "iq4_nl":
            numbers = torch.tensor(IQ4_VALUES, dtype=torch.float32, device=data.device)[q.int()]
        else:
            numbers = q.float() - _CENTER.get(self.name, 0)
        scaled: Tensor = numbers * scales[..., :1]
        if self.has_minimum:
            scaled = scaled + scales[..., 1:]
        return scaled.flatten(-2).to(dtype)


def _asymmetric(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., 32] is about q d + m, from the smallest value to the largest: q [..., 32], (d, m) [..., 2]."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    d = (high - low) / (2**bits - 1)
    return _integers((x - low) * _inverse(d) + 0.5, 2**bits - 1), torch.cat((d, low), -1)


def _q8_0(x: Tensor) -> tuple[Tensor, Tensor]:
    d = x.abs().amax(-1, keepdim=True) / 127
    scaled = x * _inverse(d)
    return (scaled + torch.where(scaled < 0, -0.5, 0.5)).nan_to_num().clamp(-127, 127).int(), d


def _centered(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., 32] is about (q - 2^(bits-1)) d, where q = 0 stands for the value of the largest magnitude."""
    center = 2 ** (bits - 1)
    d = _largest(x) / -center
    return _integers(x * _inverse(d) + (center + 0.5), 2**bits - 1), d


def _iq4_nl(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest entries of the codebook, then the scale that fits them best, larger values counting for more."""
    codebook = torch.tensor(IQ4_VALUES, dtype=torch.float32, device=x.device)
    d = _largest(x) / IQ4_VALUES[0]
    scaled = x * _inverse(d)
    # Halfway between two entries the upper one is taken.
    q = torch.bucketize(scaled, (codebook[1:] + codebook[:-1]) / 2, right=True)
    values, weights = codebook[q], x * x
    norm = (weights * values * values).sum(-1, keepdim=True)
    fitted = (weights * values * x).sum(-1, keepdim=True) / norm
    return q, torch.where(norm > 0, fitted, d)


def _largest(x: Tensor) -> Tensor:
    """The value of the largest magnitude, the first of several: [..., 1]."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, 0.0, 1 / d)


def _integers(x: Tensor, largest: int) -> Tensor:
    """Rounded towards zero, within 0 … largest; what is not a number becomes 0."""
    return x.nan_to_num().clamp(0, largest).int()


_CENTER = {"q4_0": 8, "q5_0": 16}
_SYMMETRIC: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "q8_0": _q8_0,
    "q4_0": lambda x: _centered(x, 4),
    "q5_0": lambda x: _centered(x, 5),
    "iq4_nl": _iq4_nl,
}

CACHE_TYPES = dict(
    zip(
        CACHE_TYPE_NAMES,
        (
            CacheType("f32", torch.float32),
            CacheType("f16", torch.float16),
            CacheType("bf16", torch.bfloat16),
            CacheType("fp8", torch.float8_e4m3fn),
            CacheType("q8_0", bits=8),
            CacheType("q4_0", bits=4),
            CacheType("q4_1", bits=4, has_minimum=True),
            CacheType("q5_0", bits=5),
            CacheType("q5_1", bits=5, has_minimum=True),
            CacheType("iq4_nl", bits=4),
        ),
        strict=True,
    )
)
assert all(name == t.name for name, t in CACHE_TYPES.items())


def cache_type(name: str) -> CacheType:
    """The type of that name; ValueError for another."""
    if name not in CACHE_TYPES:
        raise ValueError(f"a cache type is one of {', '.join(CACHE_TYPES)}, found {name!r}")
    return CACHE_TYPES[name]


def plain_type(dtype: torch.dtype) -> str:
    """The name of the type that keeps numbers of a dtype as they are."""
    return next(t.name for t in CACHE_TYPES.values() if t.dtype is dtype)
