"""Every operation in plain torch: the backend of CPU, MPS and XPU, the last resort everywhere, the tests' oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange

from ...loaders.stored import StoredTensor
from ...quant.dequantize import dequantize
from ...quant.floats import FLOAT_DTYPES
from ...quant.formats import Format
from ..batch import Batch
from ..cache import LayerCache
from ..config import Activation, RopePairing
from ..ops import Angles, AttentionParams, Declined, Stream, Weight

if TYPE_CHECKING:
    from ..layers import Attention, Linear, Mlp, Moe, Norm

# Decoded a piece at a time, a matrix needs this much memory on top of its stored form.
WORKSPACE_BYTES = 64 * 2**20
# With more rows than this, a CPU multiplies faster in float32 even after converting a 16-bit matrix to it.
MAX_ROWS_16_BIT = 4


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A matrix, or a stack of them, as ordinary numbers. scale: what each is multiplied with, float32, None for 1."""

    format: Format
    data: torch.Tensor
    copied: bool = True
    scale: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    def expert(self, index: int) -> DenseWeight:
        return DenseWeight(self.format, self.data[index], scale=_scale_of(self.scale, index))

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        return scaled(self.data[start:stop], self.scale).to(dtype)


@dataclass(frozen=True, slots=True)
class QuantWeight:
    """A matrix, or a stack of them, in its stored form: uint8 [..., n_out, row bytes]; decoded when used.

    scale: what each is multiplied with, float32, None for 1.
    """

    format: Format
    shape: tuple[int, ...]
    data: torch.Tensor
    copied: bool = True
    scale: torch.Tensor | None = None

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    def expert(self, index: int) -> QuantWeight:
        return QuantWeight(self.format, self.shape[1:], self.data[index], scale=_scale_of(self.scale, index))

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        if self.scale is None:
            return dequantize(self.data[start:stop], self.format, dtype=dtype)
        return scaled(dequantize(self.data[start:stop], self.format), self.scale).to(dtype)


def scaled(values: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """values times the scale [1] of their matrix, in float32; as they are where there is none."""
    return values if scale is None else values.float() * scale


def _scale_of(scale: torch.Tensor | None, index: int) -> torch.Tensor | None:
    return None if scale is None else scale[index : index + 1]


class TorchOps:
    """The operations on one device.

    weight_dtype: what quantised matrices are decoded to when they are loaded; None keeps their stored form.
    fused_attention: use torch's fused attention kernels; without them, scores are computed in the open.
    """

    name = "torch"

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        weight_dtype: torch.dtype | None,
        *,
        fused_attention: bool = True,
    ) -> None:
        self.device, self.dtype, self.weight_dtype = device, dtype, weight_dtype
        self.fused_attention = fused_attention

    def load(self, tensor: StoredTensor, scale: torch.Tensor | None = None) -> Weight:
        stored_dtype = FLOAT_DTYPES.get(tensor.format)
        if self.weight_dtype is None or stored_dtype in (self.weight_dtype, torch.float32):
            return self.load_stored(tensor, scale)
        data = dequantize(tensor.bytes(), tensor.format, dtype=self.weight_dtype).to(self.device)
        return DenseWeight(tensor.format, data, scale=None if scale is None else scale.to(self.device))

    def load_stored(self, tensor: StoredTensor, scale: torch.Tensor | None = None) -> Weight:
        """Keeps a matrix as the file has it; on the CPU without a copy."""
        scale = None if scale is None else scale.to(self.device)
        stored, copied = tensor.bytes().to(self.device), self.device.type != "cpu"
        dtype = FLOAT_DTYPES.get(tensor.format)
        if dtype is None:
            return QuantWeight(tensor.format, tensor.shape, stored, copied, scale)
        # A damaged directory or an odd alignment may leave numbers at odd addresses, which torch cannot view.
        aligned = stored if stored.data_ptr() % dtype.itemsize == 0 else stored.clone()
        return DenseWeight(tensor.format, aligned.view(dtype), copied or aligned is not stored, scale)

    def load_embedding(self, tensor: StoredTensor) -> Weight:
        """As it is stored: decoding a few rows costs little."""
        return self.load_stored(tensor)

    def rows(self, weight: Weight, ids: torch.Tensor) -> torch.Tensor:
        if isinstance(weight, QuantWeight):
            return dequantize(weight.data[ids], weight.format, dtype=self.dtype)
        if isinstance(weight, DenseWeight):
            return weight.data[ids].to(self.dtype)
        return torch.cat([weight.dense(i, i + 1, self.dtype) for i in ids.tolist()])

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        y = self._matmul(x, weight)
        return y if bias is None else y + bias.to(y.dtype)

    def _matmul(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        if isinstance(weight, DenseWeight) and (
            weight.data.dtype == x.dtype or self.device.type != "cpu" or len(x) <= MAX_ROWS_16_BIT
        ):
            return scaled(F.linear(x.to(weight.data.dtype), weight.data), weight.scale).to(self.dtype)
        n_out, n_in = weight.shape
        y = x.new_empty(len(x), n_out)
        step = max(1, WORKSPACE_BYTES // (n_in * x.dtype.itemsize))
        for start in range(0, n_out, step):
            stop = min(start + step, n_out)
            y[:, start:stop] = F.linear(x, weight.dense(start, stop, x.dtype))
        return y

    def logits(self, x: torch.Tensor, norm: Norm, output: Linear) -> torch.Tensor:
        return self.linear(self.norm(x, norm.weight, norm.eps), output.weight, output.bias).float()

    def experts(self, x: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor, moe: Moe) -> torch.Tensor:
        y = torch.zeros_like(x)
        for index in sorted(set(ids.flatten().tolist())):
            row, place = (ids == index).nonzero(as_tuple=True)
            chosen = x[row]
            gate = self._matmul(chosen, moe.ffn_gate_exps.expert(index))
            up = self._matmul(chosen, moe.ffn_up_exps.expert(index))
            out = self._matmul(self.glu(gate, up, moe.activation), moe.ffn_down_exps.expert(index))
            y.index_add_(0, row, out * shares[row, place, None].to(out.dtype))
        return y

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)

    def rope(self, x: torch.Tensor, angles: Angles, pairing: RopePairing) -> torch.Tensor:
        cos, sin = (a[:, None, :] for a in angles)
        dim = 2 * cos.shape[-1]
        turned = x[..., :dim].float()
        if pairing is RopePairing.NORM:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        else:
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        return torch.cat((turned.to(x.dtype), x[..., dim:]), dim=-1)

    def glu(self, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        if activation is Activation.SILU:
            return F.silu(gate) * up
        return F.gelu(gate, approximate="tanh") * up

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: LayerCache,
        batch: Batch,
        params: AttentionParams,
    ) -> torch.Tensor:
        slots = batch.slots[cache.group]
        cache.k.write(slots, k)
        cache.v.write(slots, v)
        out = torch.empty_like(q)
        # On a GPU a loop over sequences costs a copy from it; a step of single tokens needs none.
        if all(n == 1 for n in batch.new) and (len(batch.new) > 1 or self.device.type != "cpu"):
            return self._attend_singles(q, cache, batch, params)
        for sequence in batch.sequences:
            rows = slice(sequence.start, sequence.stop)
            n_new = sequence.stop - sequence.start
            hidden = max(0, sequence.length - n_new - params.window + 1) if params.window else 0
            first = hidden // cache.k.page_size
            last = -(-sequence.length // cache.k.page_size)
            pages, n_tokens = sequence.pages[cache.group][first:last], sequence.length - first * cache.k.page_size
            keys, values = cache.k.read(pages, n_tokens, q.dtype), cache.v.read(pages, n_tokens, q.dtype)
            out[rows] = attend(q[rows], keys, values, params, fused=self.fused_attention)
        return out

    def _attend_singles(
        self, q: torch.Tensor, cache: LayerCache, batch: Batch, params: AttentionParams
    ) -> torch.Tensor:
        """One new token of each sequence: sequences of like lengths side by side, as many as the workspace holds."""
        table, lengths = batch.pages[cache.group], batch.lengths.long()
        page_size = cache.k.page_size
        width = table.shape[1]
        row_bytes = 2 * page_size * params.n_kv_heads * params.head_dim * q.itemsize
        on_cpu = self.device.type == "cpu"
        order = lengths.argsort() if on_cpu else torch.arange(len(lengths), device=self.device)
        out = torch.empty_like(q)
        start = len(order)
        while start:
            # Backwards, from the longest, whose pages say how many sequences the workspace holds.
            if on_cpu:
                width = -(-int(lengths[order[start - 1]]) // page_size)
            if params.window:
                width = min(width, -(-params.window // page_size) + 1)
            first_row = max(0, start - max(1, WORKSPACE_BYTES // (width * row_bytes)))
            rows, start = order[first_row:start], first_row
            first = (lengths[rows] - params.window).clamp_min(0) // page_size if params.window else lengths[rows] * 0
            places = first[:, None] + torch.arange(width, device=self.device)
            pages = table[rows].gather(1, places.clamp_max(table.shape[1] - 1)).long()
            # Behind its end a table may name pages of others; page 0 holds finite numbers.
            pages = pages * (places * page_size < lengths[rows, None])
            keys, values = cache.k.read_table(pages, q.dtype), cache.v.read_table(pages, q.dtype)
            position = (places[:, :, None] * page_size + torch.arange(page_size, device=self.device)).flatten(1)
            seen = position < lengths[rows, None]
            if params.window:
                seen &= position >= lengths[rows, None] - params.window
            tail = torch.arange(page_size, device=self.device) > (lengths[rows, None] - 1) % page_size
            for part in (keys, values):
                _clear(part, (lengths[rows] - 1) // page_size - first, tail)
            out[rows] = attend_singles(q[rows], keys, values, seen, params, fused=self.fused_attention)
        return out

    def layers(self, *args: object) -> Declined:
        return Declined("composed of single operations")

    def attention_block(
        self, block: Attention, stream: Stream, following: Mlp | Moe, angles: Angles, cache: LayerCache, batch: Batch
    ) -> Declined:
        return Declined("composed of single operations")

    def mlp_block(self, block: Mlp | Moe, stream: Stream, following: Attention | None) -> Declined:
        return Declined("composed of single operations")

    def describe(self) -> list[str]:
        form = "as stored" if self.weight_dtype is None else f"as {str(self.weight_dtype).split('.')[1]}"
        attention = "torch's fused attention" if self.fused_attention else "attention in the open"
        return [f"torch: weights {form}, {attention}"]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, params: AttentionParams, *, fused: bool = True
) -> torch.Tensor:
    """Attention of a sequence's last n tokens: q [n, n_heads, head_dim], k and v [length, n_kv_heads, head_dim].

    The heads that share a kv head are laid beside each other as rows, so keys and values are never repeated.
    """
    n, length = len(q), len(k)
    packed = rearrange(q, "n (kv group) dim -> kv (group n) dim", kv=params.n_kv_heads)
    mask = _mask(n, length, params.window, q.device)
    if mask is not None:
        mask = mask.repeat(params.n_heads // params.n_kv_heads, 1)
    out = _attended(packed[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], mask, params, fused=fused)[0]
    result: torch.Tensor = rearrange(out, "kv (group n) dim -> n (kv group) dim", n=n)
    return result


def _clear(part: torch.Tensor, last: torch.Tensor, tail: torch.Tensor) -> None:
    """Zeros for what others have left in the last page of each sequence: nothing, times infinity, would count.

    part: [n, width * page_size, n_kv_heads, head_dim]. last: [n], which page that is. tail: [n, page_size], true where
    it holds nothing of the sequence. (Behind it lies page 0, which holds finite numbers.)
    """
    pages, row = part.unflatten(1, (-1, tail.shape[1])), torch.arange(len(part), device=part.device)
    pages[row, last] = pages[row, last].masked_fill(tail[:, :, None, None], 0.0)


def attend_singles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    params: AttentionParams,
    *,
    fused: bool = True,
) -> torch.Tensor:
    """Attention of one token of each of n sequences: q [n, n_heads, head_dim], k and v [n, length, n_kv_heads,
    head_dim], of which each sees those that `seen` [n, length] names."""
    packed = rearrange(q, "n (kv group) dim -> n kv group dim", kv=params.n_kv_heads)
    out = _attended(packed, k.transpose(1, 2), v.transpose(1, 2), seen[:, None, None], params, fused=fused)
    return out.flatten(1, 2)


def _attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    params: AttentionParams,
    *,
    fused: bool,
) -> torch.Tensor:
    """q [n, n_kv_heads, rows, head_dim], k and v [n, n_kv_heads, length, head_dim] -> as q. mask: true where seen."""
    if params.softcap == 0 and fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=params.scale)
    scores = q.float() @ k.transpose(-1, -2).float() * params.scale
    if params.softcap > 0:
        scores = torch.tanh(scores / params.softcap) * params.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def _mask(n: int, length: int, window: int, device: torch.device) -> torch.Tensor | None:
    """True where a query may look: [n, length], or None where it may look everywhere."""
    if n == 1 and not 0 < window < length:
        return None
    query = torch.arange(length - n, length, device=device)[:, None]
    key = torch.arange(length, device=device)[None]
    seen = key <= query
    return seen & (key > query - window) if window > 0 else seen
