"""The layers of a model as parts of programs (cpu_programs.py)."""

from __future__ import annotations

import numpy as np
import torch

from ..batch import Batch
from ..cache import LayerCache
from ..config import RopePairing
from ..cpu_kernels.attention import Attention as AttentionKernel
from ..cpu_kernels.attention_tables import Angles as StepAngles
from ..cpu_kernels.attention_tables import StepTables
from ..cpu_kernels.experts import add_experts, expert_product, list_pairs, route
from ..cpu_kernels.programs import Argument
from ..cpu_kernels.rope import RopeAndWrite
from ..cpu_kernels.rows import rows
from ..cpu_kernels.tiles import n_strips
from ..layers import Attention, Linear, Mlp, Moe, Norm
from ..ops import Angles, AttentionParams, Weight
from .cpu_programs import Builder, Operand, check_weights, scaled, stream, tiled

# llama.cpp's floor under the sum of the chosen experts' probabilities: half precision's smallest normal number.
LEAST_SHARES = 6.103515625e-5


class Steps:
    """What attention is told of a step: once for the layers of a cache group, and for those of a rotation."""

    def __init__(self) -> None:
        self._tables: dict[int, StepTables] = {}
        self._angles: dict[int, StepAngles] = {}

    def tables(self, p: AttentionParams, group: int) -> StepTables:
        """For instructions of the layers of a cache group."""
        if group not in self._tables:
            self._tables[group] = StepTables(p.n_heads, p.head_dim)
        return self._tables[group]

    def angles(self, rope: int) -> StepAngles:
        """For instructions of the layers of a rotation, whatever number stands for it."""
        return self._angles.setdefault(rope, StepAngles())

    def begin(self, batch: Batch, angles: dict[int, Angles]) -> None:
        """Tells all."""
        for group, tables in self._tables.items():
            tables.set(batch.slots[group], batch.starts, batch.lengths, batch.pages[group])
        for rope, turns in angles.items():
            self.angles(rope).set(*turns)


class Product:
    """A product by itself, of x or of its norm, to y."""

    def __init__(self, weight: Weight, bias: torch.Tensor | None, norm: Norm | None = None) -> None:
        self.weight, self.linear, self.norm = tiled(weight), Linear(weight, bias), norm

    def build(self, builder: Builder) -> None:
        weight = self.weight
        x = builder.input(stream(weight.n_in), weight.n_in, weight.format, self.norm)
        builder.product(self.linear, x, Operand("y", 4 * weight.width))


class Rows:
    """Rows `ids` of a matrix, to y."""

    def __init__(self, weight: Weight) -> None:
        self.weight = tiled(weight)

    def build(self, builder: Builder) -> None:
        weight = self.weight
        builder.program.add(
            rows,
            weight.format.name,
            ids="ids",
            n="n_rows",
            weights=weight.data.data_ptr(),
            n_units=weight.n_in // weight.format.block_size,
            y="y",
            y_stride=4 * weight.n_in,
        )


class AttentionHalf:
    """Norm; q, k and v; head norms, rotation and cache; attention; output with the residual."""

    def __init__(
        self, block: Attention, cache: LayerCache, tables: StepTables, angles: StepAngles, rope_dim: int
    ) -> None:
        p, norms = block.params, (block.attn_q_norm, block.attn_k_norm)
        self.block, self.cache, self.tables, self.angles = block, cache, tables, angles
        parts = [block.attn_qkv] if block.attn_qkv is not None else [block.attn_q, block.attn_k, block.attn_v]
        self.linears = [part for part in parts if part is not None]
        check_weights(*(linear.weight for linear in (*self.linears, block.attn_output)))
        self.rope = RopeAndWrite(
            *(p.n_heads, p.n_kv_heads, p.head_dim),
            rope_dim=rope_dim,
            pairing="neox" if block.pairing is RopePairing.NEOX else "norm",
            k_type=cache.k.type,
            v_type=cache.v.type,
            q_norm=norms[0].weight if norms[0] else None,
            k_norm=norms[1].weight if norms[1] else None,
            eps=norms[0].eps if norms[0] else 0.0,
        )
        self.attention = AttentionKernel(p, cache.k.type, cache.v.type, cache.k.page_size)

    def build(self, builder: Builder) -> None:
        block, p, planes = self.block, self.block.params, (self.cache.k.planes, self.cache.v.planes)
        width, x = p.n_heads * p.head_dim, stream(block.attn_output.weight.shape[-2])
        q, k, v = builder.side_by_side("wide", [n * p.head_dim for n in (p.n_heads, p.n_kv_heads, p.n_kv_heads)])
        outs = [q] if block.attn_qkv is not None else [q, k, v]
        # All read the same x, but formats of plain numbers in another form.
        inputs: dict[bool, Operand] = {}
        for linear in self.linears:
            fmt = tiled(linear.weight).format
            if fmt.is_quantized not in inputs:
                inputs[fmt.is_quantized] = builder.input(x, x.stride // 4, fmt, block.attn_norm)
        for linear, out in zip(self.linears, outs, strict=True):
            form = inputs[tiled(linear.weight).format.is_quantized]
            builder.product(linear, form, out, barrier=linear is self.linears[-1])
        places, strides = (q.address, k.address, v.address), (q.stride, k.stride, v.stride)
        self.rope.add(builder.program, places, strides, self.tables, self.angles, *planes)
        heads = builder.rows("heads", width)
        self.attention.add(builder.program, *(q.address, q.stride, heads.address, heads.stride), self.tables, *planes)
        y = builder.input(heads, width, tiled(block.attn_output.weight).format, None)
        builder.finish(block.attn_output, y, block.post_attention_norm)


class MlpHalf:
    """Norm; gate and up; their gated product; down with the residual."""

    def __init__(self, block: Mlp) -> None:
        self.block = block
        self.linears = [linear for linear in (block.ffn_gate, block.ffn_up) if linear is not None]
        check_weights(*(linear.weight for linear in (*self.linears, block.ffn_down)))
        check_alike(*(linear.weight for linear in self.linears))

    def build(self, builder: Builder) -> None:
        block, down = self.block, tiled(self.block.ffn_down.weight)
        x = builder.input(stream(down.n_out), down.n_out, tiled(block.ffn_up.weight).format, block.ffn_norm)
        gate, up = builder.side_by_side("wide", (down.n_in, down.n_in))
        for linear, out in zip(self.linears, (gate, up), strict=False):
            builder.product(linear, x, out, barrier=linear is block.ffn_up)
        hidden = builder.gated(block.activation, gate, up, down.n_in, down.format)
        builder.finish(block.ffn_down, hidden, block.post_ffw_norm)


class MoeHalf:
    """Norm; router; gate and up of the chosen experts; their gated product; down; shares of it and the residual.

    Rows of experts are pairs (cpu_kernels/experts.py).
    """

    def __init__(self, block: Moe) -> None:
        self.block = block
        check_weights(block.ffn_gate_exps, block.ffn_up_exps, block.ffn_down_exps)
        check_alike(block.ffn_gate_exps, block.ffn_up_exps)
        self.router = tiled(block.ffn_gate_inp.weight)

    def build(self, builder: Builder) -> None:
        block, c, router = self.block, self.block.config, self.router
        up, down, n_used = tiled(block.ffn_up_exps), tiled(block.ffn_down_exps), block.config.n_used
        x, scores = stream(up.n_in), builder.rows("scores", router.width)
        numbers = builder.input(x, up.n_in, router.format, block.ffn_norm)
        builder.product(block.ffn_gate_inp, numbers, scores)
        shares, listed = self.routed(builder, scores)
        form = numbers
        if up.format.is_quantized != router.format.is_quantized:
            form = builder.input(x, up.n_in, up.format, block.ffn_norm)
        gate, upward = builder.rows("gate", n_used * down.n_in), builder.rows("up", n_used * down.n_in)
        gate, upward = Operand(gate.address, 4 * down.n_in), Operand(upward.address, 4 * down.n_in)
        self.experts(builder, block.ffn_gate_exps, form, n_used, gate, listed, barrier=False)
        self.experts(builder, up, form, n_used, upward, listed)
        hidden = builder.gated(block.activation, gate, upward, down.n_in, down.format, n_used)
        y = Operand(builder.buffer("pair_rows", 4 * n_used * down.n_out), 4 * down.n_out)
        self.experts(builder, down, hidden, 1, y, listed)
        sizes: dict[str, Argument] = {"n_used": c.n_used, "n_rows": "n_rows", "width": down.n_out}
        builder.program.add(add_experts, **y.named("y"), shares=shares, **x.named("x"), **sizes)

    def routed(self, builder: Builder, scores: Operand) -> tuple[str, dict[str, Argument]]:
        """The experts of every row: their shares, and the pairs by expert."""
        c = self.block.config
        ids, shares, pairs = (builder.buffer(name, 4 * c.n_used) for name in ("ids", "shares", "pairs"))
        starts = np.zeros(c.n_experts + 1, np.int32)
        builder.program.keep.append(starts)
        sizes: dict[str, Argument] = {"n_rows": "n_rows", "n_experts": c.n_experts, "n_used": c.n_used}
        builder.program.add(
            route,
            scores=scores.address,
            stride=scores.stride,
            **sizes,
            least=LEAST_SHARES,
            scale=float(c.weights_scale),
            ids=ids,
            shares=shares,
        )
        listed: dict[str, Argument] = {"starts": starts.ctypes.data, "pairs": pairs}
        builder.program.add(list_pairs, ids=ids, **sizes, **listed)
        return shares, listed

    def experts(
        self,
        builder: Builder,
        stack: Weight,
        x: Operand,
        share: int,
        y: Operand,
        listed: dict[str, Argument],
        *,
        barrier: bool = True,
    ) -> None:
        """For each pair, row pair // share of x times its expert's matrix."""
        weight = tiled(stack)
        strips = n_strips(weight.n_out)
        builder.n_bytes += weight.n_bytes * self.block.config.n_used // weight.shape[0]
        builder.program.add(
            expert_product,
            weight.format.name,
            builder.columns,
            *scaled(weight),
            barrier=barrier,
            **x.named("x"),
            share=share,
            weights=weight.data.data_ptr(),
            scales=0 if weight.scale is None else weight.scale.data_ptr(),
            n_units=weight.n_in // weight.format.block_size,
            n_strips=strips,
            n_experts=weight.shape[0],
            **listed,
            **y.named("y"),
            chunk=builder.chunk(strips),
        )


def check_alike(*weights: Weight) -> None:
    """ValueError where some weights are quantised and others not, so that they do not read the same x."""
    if len({tiled(weight).format.is_quantized for weight in weights}) > 1:
        raise ValueError("of gate and up, one alone is quantised")
