"""Codebooks for a machine without the gguf package, which holds those of the IQ formats.

Kernels read a table of all codebooks, whatever their format. Other entries of the same kind cost the same time, and
results are still compared with twins that decode with the same entries.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from naiad.quant import codebooks

# Codes, weights per code, and what a weight may be.
GRIDS = {
    "IQ1_S": (2048, 8, (-1, 0, 1)),
    "IQ2_XXS": (256, 8, (8, 25, 43)),
    "IQ2_XS": (512, 8, (8, 25, 43)),
    "IQ2_S": (1024, 8, (8, 25, 43)),
    "IQ3_XXS": (256, 4, (4, 12, 20, 28, 36, 44, 52, 62)),
    "IQ3_S": (512, 4, (1, 3, 5, 7, 9, 11, 13, 15)),
}


def random_grid(name: str) -> Tensor:
    """Integers [codes, weights per code]."""
    n_codes, width, values = GRIDS[name]
    generator = torch.Generator().manual_seed(n_codes + width)
    return torch.tensor(values, dtype=torch.int8)[torch.randint(len(values), (n_codes, width), generator=generator)]


def needed() -> bool:
    return find_spec("gguf") is None


def install() -> None:
    """Where there is no gguf package, codebooks are random from here on, in this process."""
    if needed():
        codebooks._grid_values = random_grid
