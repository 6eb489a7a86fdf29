"""Bytes of any ggml tensor format to floats, in bounded memory."""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from . import formats, iquants, kquants, legacy, small
from .blocks import Quants
from .floats import plain
from .formats import Format

# uint8 [n, type_size] -> the integers and scales of n blocks
BlockDecoder = Callable[[Tensor], Quants]

BLOCK_DECODERS: dict[int, BlockDecoder] = {
    **{fmt.id: partial(plain, fmt=fmt) for fmt in formats.FORMATS if not fmt.is_quantized},
    formats.Q4_0.id: legacy.q4_0,
    formats.Q4_1.id: legacy.q4_1,
    formats.Q5_0.id: legacy.q5_0,
    formats.Q5_1.id: legacy.q5_1,
    formats.Q8_0.id: legacy.q8_0,
    formats.Q8_1.id: legacy.q8_1,
    formats.MXFP4.id: small.mxfp4,
    formats.NVFP4.id: small.nvfp4,
    formats.Q1_0.id: small.q1_0,
    formats.Q2_0.id: small.q2_0,
    formats.Q2_K.id: kquants.q2_k,
    formats.Q3_K.id: kquants.q3_k,
    formats.Q4_K.id: kquants.q4_k,
    formats.Q5_K.id: kquants.q5_k,
    formats.Q6_K.id: kquants.q6_k,
    formats.Q8_K.id: kquants.q8_k,
    formats.TQ1_0.id: small.tq1_0,
    formats.TQ2_0.id: small.tq2_0,
    formats.IQ1_S.id: iquants.iq1_s,
    formats.IQ1_M.id: iquants.iq1_m,
    formats.IQ2_XXS.id: iquants.iq2_xxs,
    formats.IQ2_XS.id: iquants.iq2_xs,
    formats.IQ2_S.id: iquants.iq2_s,
    formats.IQ3_XXS.id: iquants.iq3_xxs,
    formats.IQ3_S.id: iquants.iq3_s,
    formats.IQ4_NL.id: iquants.iq4_nl,
    formats.IQ4_XS.id: iquants.iq4_xs,
}

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Large enough to hide the cost of starting an operation, small enough for caches.
CHUNK_WEIGHTS = 1 << 20


def dequantize(data: Tensor, fmt: Format, *, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """The weights that the rows `data` of format fmt hold.

    data: uint8 [..., bytes per row] on any device, strided as it likes. The result is [..., n] in dtype (one
    of OUTPUT_DTYPES; float32 where neither dtype nor out says otherwise) and is written into out if given.
    Weights are computed in float32 in ggml's order of operations, then rounded to dtype. ValueError where
    dtypes or shapes do not fit.
    """
    shape = _result_shape(data, fmt)
    dtype = dtype or (torch.float32 if out is None else out.dtype)
    if dtype not in OUTPUT_DTYPES:
        raise ValueError(f"can decode to {OUTPUT_DTYPES}, found {dtype}")
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=data.device)
    elif out.shape != shape or out.dtype != dtype or out.device != data.device:
        raise ValueError(
            f"out must be {dtype} {list(shape)} on {data.device}, found {out.dtype} {list(out.shape)} on {out.device}"
        )
    if out.numel():
        _decode_rows(data, fmt, out)
    return out


def _result_shape(data: Tensor, fmt: Format) -> torch.Size:
    if data.dtype != torch.uint8 or data.dim() == 0:
        raise ValueError(f"expected uint8 [..., row bytes], found {data.dtype} {list(data.shape)}")
    *leading, row_bytes = data.shape
    if row_bytes % fmt.type_size:
        raise ValueError(f"a row of {fmt.name} must be a multiple of {fmt.type_size} bytes, found {row_bytes}")
    return torch.Size((*leading, row_bytes // fmt.type_size * fmt.block_size))


def _decode_rows(data: Tensor, fmt: Format, out: Tensor) -> None:
    if data.is_contiguous() and out.is_contiguous():
        data, out = data.view(1, -1), out.view(1, -1)
    elif data.dim() == 1:
        data, out = data[None], out[None]
    blocks = data.unflatten(-1, (-1, fmt.type_size))
    weights = out.unflatten(-1, (-1, fmt.block_size))
    # Matrix by matrix: the leading dimensions of a strided tensor need not merge into one.
    for index in product(*map(range, blocks.shape[:-3])):
        _decode_matrix(blocks[index], fmt, weights[index])


def _decode_matrix(blocks: Tensor, fmt: Format, weights: Tensor) -> None:
    """blocks uint8 [rows, n, type_size] into weights [rows, n, block_size], a bounded chunk at a time."""
    decode = BLOCK_DECODERS[fmt.id]
    n_rows, n_blocks, _ = blocks.shape
    wide = min(n_blocks, max(1, CHUNK_WEIGHTS // fmt.block_size))
    tall = min(n_rows, max(1, CHUNK_WEIGHTS // fmt.block_size // n_blocks))
    scratch = torch.empty(tall * wide, fmt.block_size, device=blocks.device)
    for row, column in product(range(0, n_rows, tall), range(0, n_blocks, wide)):
        chunk = blocks[row : row + tall, column : column + wide]
        target = weights[row : row + tall, column : column + wide]
        _store(decode(chunk.reshape(-1, fmt.type_size)), target, scratch)


def _store(quants: Quants, target: Tensor, scratch: Tensor) -> None:
    """Computes the weights in target [rows, n, block_size] where it can hold them, else in scratch first."""
    q, scale, offset = quants
    if scale is None:
        target.copy_(q.view(target.shape))
        return
    in_place = target.dtype == torch.float32 and target.is_contiguous()
    weights = target.view(q.shape) if in_place else scratch[: len(q)]
    weights.copy_(q)
    runs = weights.unflatten(1, (scale.shape[1], -1))
    runs.mul_(scale.unsqueeze(-1))
    if offset is not None:
        runs.add_(offset.unsqueeze(-1))
    if not in_place:
        target.copy_(weights.view(target.shape))
