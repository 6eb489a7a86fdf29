"""The codebooks as one table of words in device memory, four signed bytes to a word.

IQ4 and E2M1 are the sixteen values of a 4-bit code. IQ1 has its values in eighths, first those with 1/8 added, then
those with 1/8 subtracted.
"""

from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor

from ..quant import codebooks

# Where each codebook begins, in words.
IQ2_XXS: tl.constexpr = tl.constexpr(0)
IQ2_XS: tl.constexpr = tl.constexpr(512)
IQ2_S: tl.constexpr = tl.constexpr(1536)
IQ3_XXS: tl.constexpr = tl.constexpr(3584)
IQ3_S: tl.constexpr = tl.constexpr(3840)
IQ1: tl.constexpr = tl.constexpr(4352)
IQ4: tl.constexpr = tl.constexpr(12544)
E2M1: tl.constexpr = tl.constexpr(12548)


@lru_cache
def table(device: torch.device) -> Tensor:
    """int32 [12552]."""
    names = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
    grids = [codebooks.grid(name, device) for name in names] + [codebooks.ternary_grid(device)]
    sixteens = [torch.tensor(v, dtype=torch.int8).to(device) for v in (codebooks.IQ4_VALUES, codebooks.E2M1_VALUES)]
    words = [entries.view(torch.int32) for entries in (*grids, *sixteens)]
    starts = [start.value for start in (IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1, IQ4, E2M1)]
    assert [sum(map(len, words[:i])) for i in range(len(words))] == starts
    return torch.cat(words)
