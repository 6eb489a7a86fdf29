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

# Keys of a tile of the softmax. Tiles, and the chunks that are made of them, lie at fixed places of a sequence, so that
# a row's result is put together in the same way whatever is computed beside it.
TILE = 64
# Keys of the first chunks; without a window, chunks double in size each time there are this many of a size, so that
# long sequences have few.
CHUNK, CHUNKS = 256, 16
# A sequence's chunks are tasks of their own where there are fewer tasks than so many for each thread, and as long as
# all partial results are not more than so many.
TASKS_PER_THREAD, MOST_RECORDS = 4, 1 << 16
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
        # `len` of a tensor is Python code, and this runs for every token.
        n_rows, n_sequences = slots.shape[0], lengths.shape[0]
        assert starts.shape[0] == n_sequences + 1 and table.shape[0] == n_sequences
        self._keep = (slots, starts, lengths, table)
        if n_sequences:
            self._reserve(n_rows, n_sequences, int(lengths.max()))
        addresses = slots.data_ptr(), n_sequences, starts.data_ptr(), lengths.data_ptr(), table.data_ptr()
        self.values[:] = (n_rows, *addresses, table.shape[1], self._partial.ctypes.data)

    def _reserve(self, n_rows: int, n_sequences: int, length: int) -> None:
        """Room for partial results: as many for a row as its sequence has chunks (`divide`)."""
        n_records = min(n_rows * self._n_heads * (length // CHUNK + 1), n_sequences * MOST_RECORDS)
        if len(self._partial) < n_records * self._record:
            # Memory that is not written to costs nothing.
            self._partial = np.empty(2 * n_records * self._record, np.float32)


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
def chunk_of(key, window):
    """The chunk that a key lies in."""
    n, doubled = key // CHUNK, 0
    if window == 0:
        while n >= 2 * CHUNKS:
            n >>= 1
            doubled += 1
    return n + CHUNKS * doubled


@inline
def chunk_begin(chunk, window):
    """The first key of a chunk."""
    if window > 0 or chunk < CHUNKS:
        return CHUNK * chunk
    return CHUNK * (CHUNKS + chunk % CHUNKS) << (chunk // CHUNKS - 1)


@inline
def oldest_key(position, window):
    """The first key that a position sees."""
    return max(0, position - window + 1) if window > 0 else 0


@inline
def divide(tables, i, group, n_kv_heads, window, n_threads):
    """How the work of sequence i is divided: its first row, new tokens, length, blocks of rows, first chunk of keys and
    the chunk behind the last, and whether each chunk is a task of its own, which leaves partial results."""
    starts = load_int(tables + 8 * STARTS) + 4 * i
    start = load_int32(starts)
    n_new, length = load_int32(starts + 4) - start, load_int32(load_int(tables + 8 * LENGTHS) + 4 * i)
    first = chunk_of(oldest_key(length - n_new, window), window)
    last = chunk_of(max(0, length - 1), window) + 1
    n_blocks = 1 if n_new * group <= FEW else ceil_div(n_new * group, BLOCK_ROWS)
    is_few = n_blocks * n_kv_heads < TASKS_PER_THREAD * n_threads
    n_records = n_new * group * n_kv_heads * (last - first)
    return start, n_new, length, n_blocks, first, last, last - first > 1 and is_few and n_records <= MOST_RECORDS
