"""What changes from step to step, in memory that kernels of attention read: their arguments stay the same.

The instructions of a program are given the address of a few int64, and a step changes those.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .language import inline
from .scalars import load_int, load_int32

# A step's part for one cache group, in int64.
N_ROWS, SLOTS, N_SEQUENCES, STARTS, LENGTHS, TABLE, TABLE_WIDTH, PARTIAL = range(8)
# A rotation's angles.
COS, SIN = 0, 1

# Sequences are divided into about so many tasks, but chunks of keys have at least so many pages.
TASKS, CHUNK_PAGES = 64, 8
# Rows (a token's head each) that a task takes: up to FEW, a kernel of its own; the other takes blocks of them.
FEW, BLOCK_ROWS = 16, 64
# Of a partial result in float32: the largest score and the sum of the exponentials, then from RECORD on the values.
LARGEST, TOTAL, RECORD = 0, 1, 16


class StepTables:
    """A step's rows and sequences for the layers of one cache group; `address` is what instructions are given.

    n_heads, head_dim: those of the model, for the memory of partial results.
    """

    def __init__(self, n_heads: int, head_dim: int) -> None:
        self._n_heads, self._record = n_heads, RECORD + head_dim
        self._partial = np.empty(0, np.float32)
        self._keep: tuple[torch.Tensor, ...] = ()
        self.values: npt.NDArray[np.int64] = np.zeros(8, np.int64)
        self.address: int = self.values.ctypes.data

    def set(self, slots: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor) -> None:
        """slots int64 [n_rows]; starts int32 [n_sequences + 1]; lengths int32 [n_sequences]; table int32 [n_sequences,
        width]: as in a Batch, contiguous. They must not change before the step has run."""
        for tensor, dtype in (
            (slots, torch.int64),
            (starts, torch.int32),
            (lengths, torch.int32),
            (table, torch.int32),
        ):
            assert tensor.dtype == dtype and tensor.is_contiguous(), (tensor.dtype, tensor.shape)
        n_rows, n_sequences = len(slots), len(lengths)
        assert len(starts) == n_sequences + 1 and len(table) == n_sequences
        self._keep = (slots, starts, lengths, table)
        self._reserve(n_rows, n_sequences)
        addresses = slots.data_ptr(), n_sequences, starts.data_ptr(), lengths.data_ptr(), table.data_ptr()
        self.values[:] = (n_rows, *addresses, table.shape[1], self._partial.ctypes.data)

    def _reserve(self, n_rows: int, n_sequences: int) -> None:
        """Room for partial results: a row has at most as many as there are chunks of its sequence (`divide`)."""
        n_records = min(n_rows * self._n_heads, n_sequences * BLOCK_ROWS) * TASKS
        if len(self._partial) < n_records * self._record:
            self._partial = np.empty(n_records * self._record, np.float32)


class Angles:
    """A rotation's angles of a step; `address` is what instructions are given."""

    def __init__(self) -> None:
        self._keep: tuple[torch.Tensor, ...] = ()
        self.values: npt.NDArray[np.int64] = np.zeros(2, np.int64)
        self.address: int = self.values.ctypes.data

    def set(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """cos and sin: float32 [n_rows, rope_dim / 2], contiguous. They must not change before the step has run."""
        assert all(a.dtype == torch.float32 and a.is_contiguous() for a in (cos, sin))
        self._keep = (cos, sin)
        self.values[:] = cos.data_ptr(), sin.data_ptr()


@inline
def ceil_div(n, size):
    return (n + size - 1) // size


@inline
def divide(tables, i, group, n_kv_heads, window, page_size):
    """How the work of sequence i is divided: its first row, new tokens, length, first page that is seen and the page
    behind the last, blocks of rows, chunks of keys and pages per chunk.

    It depends on the sequence alone: so do results, whatever else is in the batch and however many threads there are.
    """
    starts = load_int(tables + 8 * STARTS) + 4 * i
    start = load_int32(starts)
    n_new, length = load_int32(starts + 4) - start, load_int32(load_int(tables + 8 * LENGTHS) + 4 * i)
    first = max(0, length - n_new - window + 1) // page_size if window > 0 else 0
    last = ceil_div(length, page_size)
    n_blocks = 1 if n_new * group <= FEW else ceil_div(n_new * group, BLOCK_ROWS)
    n_chunks = max(1, min(TASKS // (n_blocks * n_kv_heads), (last - first) // CHUNK_PAGES))
    chunk_pages = max(1, ceil_div(last - first, n_chunks))
    return start, n_new, length, first, last, n_blocks, max(1, ceil_div(last - first, chunk_pages)), chunk_pages
