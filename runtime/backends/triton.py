"""CUDA and ROCm: the operations on the kernels of triton_kernels/.

A half layer is served whole: what its kernels need is put together when the half is first run, as an `AttentionPlan`,
an `MlpPlan` or a `MoePlan`, and kept. At few rows the attention half is four launches (q, k and v; norms, rotation and
cache; attention; output, residual and the next norm), a dense MLP half two, one with experts three.

A plan hands the next half its norm, in the form that its first product reads, through `Stream.normed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch

from ...loaders.stored import StoredTensor
from ...triton_kernels.activations import Form, Units
from ...triton_kernels.attention import Attention as AttentionKernel
from ...triton_kernels.attention import AttentionShape, PageTables
from ...triton_kernels.decode import DECODERS
from ...triton_kernels.experts import Experts
from ...triton_kernels.gates import Activation as Gate
from ...triton_kernels.gates import glu
from ...triton_kernels.linear import Linear as LinearKernel
from ...triton_kernels.linear import Route
from ...triton_kernels.norms import NextNorm, norm
from ...triton_kernels.packing import FACTORED
from ...triton_kernels.rope import RopeAndWrite
from ...triton_kernels.router import Router, Routing
from ...triton_kernels.tuning import Tuning, arch_of, tuning
from ...triton_kernels.weights import PackedWeight
from ..batch import Batch
from ..cache import LayerCache
from ..config import Activation, RopePairing
from ..layers import Attention, Linear, Mlp, Moe, Norm
from ..ops import Angles, AttentionParams, Declined, Stream, Weight

GATES: dict[Activation, Gate] = {Activation.SILU: "silu", Activation.GELU_TANH: "gelu"}


class TritonOps:
    """The operations on one device.

    route: "int8" quantises activations to 8 bits where that is faster, "exact" never does. batch_invariant: a row's
    result does not depend on what else is in the batch. decoded: weights are to be decoded while loading, which is left
    to torch. fused_attention: without it, attention is left to torch. table: kernels and tiles; by default those of the
    device.
    """

    name = "triton"

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        route: Route = "int8",
        batch_invariant: bool = False,
        decoded: bool = False,
        fused_attention: bool = True,
        table: Tuning | None = None,
    ) -> None:
        self.device, self.dtype, self.decoded = device, dtype, decoded
        self.fused_attention = fused_attention
        self.table = table or tuning(arch_of(device))
        self.kernel_options: dict[str, Any] = {
            "route": route,
            "batch_invariant": batch_invariant,
            "table": self.table,
        }
        self._plans: dict[tuple[object, ...], Any] = {}
        # With what they are made of, so that nothing else can come to have its id.
        self._linears: dict[tuple[int, ...], tuple[LinearKernel, object]] = {}
        self._norms: dict[tuple[int, int], tuple[NextNorm, object]] = {}

    # ---- weights ----

    def load(self, tensor: StoredTensor, scale: torch.Tensor | None = None) -> Weight | Declined:
        if self.decoded:
            return Declined("weights are decoded while loading")
        if tensor.format.id not in DECODERS:
            return Declined(f"no kernel decodes {tensor.format.name}")
        if scale is not None and tensor.format not in FACTORED:
            return Declined(f"kernels have no scale for matrices in {tensor.format.name}")
        *rows, _ = tensor.shape
        stored = tensor.bytes().view(*rows, -1).to(self.device)
        return PackedWeight.pack(stored, tensor.format, tensor.shape, scale)

    def load_embedding(self, tensor: StoredTensor) -> Weight | Declined:
        return self.load(tensor)

    def linear_kernel(
        self, weights: Sequence[Weight], biases: Sequence[torch.Tensor | None], gate: Gate | None = None
    ) -> LinearKernel | Declined:
        """One launch for matrices side by side, or for a gated pair; made once."""
        key = tuple(map(id, (*weights, *biases, gate)))
        if key not in self._linears:
            packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
            if len(packed) < len(weights):
                return Declined("the weights are kept by torch")
            made = LinearKernel(packed, bias=_joined(biases, packed), activation=gate, **self.kernel_options)
            self._linears[key] = made, (weights, biases)
        return self._linears[key][0]

    def next_norm(self, by: Norm | None, post: Norm | None = None) -> NextNorm:
        """A norm, or None for none, after a product that has its own norm `post` where there is one; made once."""
        key = id(by), id(post)
        if key not in self._norms:
            made = NextNorm(
                weight=by.weight if by is not None else None,
                eps=by.eps if by is not None else 0.0,
                post_weight=post.weight if post is not None else None,
                post_eps=post.eps if post is not None else 0.0,
            )
            self._norms[key] = made, (by, post)
        return self._norms[key][0]

    # ---- single operations ----

    def rows(self, weight: Weight, ids: torch.Tensor) -> torch.Tensor | Declined:
        if not isinstance(weight, PackedWeight):
            return Declined("the weights are kept by torch")
        return weight.rows(ids, self.dtype)

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor | Declined:
        kernel = self.linear_kernel([weight], [bias])
        return kernel if isinstance(kernel, Declined) else kernel(x)

    def logits(self, x: torch.Tensor, norm: Norm, output: Linear) -> torch.Tensor | Declined:
        kernel = self.linear_kernel([output.weight], [output.bias])
        if isinstance(kernel, Declined):
            return kernel
        normed = self.normed(x, norm, kernel.form(len(x)))
        # Products of few rows are had in float32; tensor cores take what the norm gives.
        return kernel(replace(normed, dtype=torch.float32) if isinstance(normed, Units) else normed).float()

    def normed(self, x: torch.Tensor, by: Norm, form: Form) -> torch.Tensor | Units:
        _, found = norm(x, self.next_norm(by), form=form)
        assert found is not None
        return found

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        _, found = norm(x.reshape(-1, x.shape[-1]), NextNorm(weight, eps))
        assert isinstance(found, torch.Tensor)
        return found.view(x.shape)

    def rope(self, x: torch.Tensor, angles: Angles, pairing: RopePairing) -> Declined:
        return Declined("heads are rotated while keys are written to the cache")

    def glu(self, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        found = glu(gate, up, GATES[activation])
        assert isinstance(found, torch.Tensor)
        return found

    def experts(self, x: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor, moe: Moe) -> torch.Tensor | Declined:
        plan = self.plan(MoePlan, moe)
        return plan if isinstance(plan, Declined) else plan.last(x, ids.int(), shares)

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: LayerCache,
        batch: Batch,
        params: AttentionParams,
    ) -> torch.Tensor | Declined:
        kernel = self.plan(attention_kernel, params, cache.k.type, cache.v.type)
        if isinstance(kernel, Declined):
            return kernel
        cache.k.write(batch.slots[cache.group], k)
        cache.v.write(batch.slots[cache.group], v)
        found = kernel(q.contiguous(), cache.k.planes, cache.v.planes, self.page_tables(batch, cache))
        assert isinstance(found, torch.Tensor)
        return found.view(q.shape)

    # ---- halves of layers ----

    def layers(self, *args: object) -> Declined:
        return Declined("composed of halves")

    def attention_block(
        self, block: Attention, stream: Stream, following: Mlp | Moe, angles: Angles, cache: LayerCache, batch: Batch
    ) -> Stream | Declined:
        plan = self.plan(AttentionPlan, block, cache.k.type, cache.v.type, 2 * angles[0].shape[1])
        return plan if isinstance(plan, Declined) else plan(stream, following, angles, cache, batch)

    def mlp_block(self, block: Mlp | Moe, stream: Stream, following: Attention | None) -> Stream | Declined:
        plan = self.plan(MoePlan if isinstance(block, Moe) else MlpPlan, block)
        return plan if isinstance(plan, Declined) else plan(stream, following)

    def plan(self, make: Any, block: Any, *rest: object) -> Any:
        """make(self, block, *rest), or why there is none; made once. What blocks consist of never changes."""
        key = (make, id(block), *rest)
        if key not in self._plans:
            try:
                made = make(self, block, *rest)
            except ValueError as error:
                made = Declined(str(error))
            # The block is kept, so that nothing else can come to have its id.
            self._plans[key] = (made, block)
        return self._plans[key][0]

    def begin(self, stream: Stream, by: Norm, form: Form) -> torch.Tensor | Units:
        """The norm that a half begins with, unless the half before has left it."""
        if stream.normed is None:
            return self.normed(stream.x, by, form)
        found: torch.Tensor | Units = stream.normed
        return found

    def following(self, x: torch.Tensor, block: Attention | Mlp | Moe) -> tuple[Norm, Form]:
        """The norm that a half begins with, and the form in which its first product reads it."""
        by = block.attn_norm if isinstance(block, Attention) else block.ffn_norm
        if isinstance(block, Moe):
            return by, "plain"  # the router reads numbers
        kernel = self.first_product(block)
        return by, "plain" if isinstance(kernel, Declined) else kernel.form(len(x))

    def first_product(self, block: Attention | Mlp) -> LinearKernel | Declined:
        """q, k and v; or gate and up, joined where they are two matrices."""
        gate = None
        if isinstance(block, Attention):
            parts = [block.attn_q, block.attn_k, block.attn_v] if block.attn_qkv is None else [block.attn_qkv]
        elif block.ffn_gate is None:
            parts = [block.ffn_up]
        else:
            parts, gate = [block.ffn_gate, block.ffn_up], GATES[block.activation]
        present = [part for part in parts if part is not None]
        return self.linear_kernel([part.weight for part in present], [part.bias for part in present], gate)

    def page_tables(self, batch: Batch, cache: LayerCache) -> PageTables:
        n_pages, page_size = cache.k.planes[0].shape[:2]
        return PageTables(
            starts=batch.starts,
            lengths=batch.lengths,
            pages=batch.pages[cache.group],
            page_size=page_size,
            n_pages=n_pages,
            n_tokens=len(batch.tokens),
            new=tuple(n for n in batch.new if n),
        )

    def describe(self) -> list[str]:
        table, route = self.table, self.kernel_options["route"]
        few = table.matvec_rows if route == "int8" else table.exact_rows
        invariant = ", batch-invariant" if self.kernel_options["batch_invariant"] else ""
        return [
            f"triton: {table.arch}, tiles {table.measured or 'not measured on a card'}{invariant}",
            f"triton: products of up to {few} rows by matvec_kernel ({route}), of fewer than {table.workspace_rows} by "
            "matmul_kernel, of more by rows_kernel and torch",
            "triton: attention by attention_prefill_kernel and attention_decode_kernel, cache of any type",
        ]


Last = TypeVar("Last", LinearKernel, Experts)


class Plan(Generic[Last]):
    """What is common to the halves of a layer: the last product, which adds to the stream and may norm it."""

    def __init__(self, ops: TritonOps, by: Norm, last: Last, post: Norm | None) -> None:
        self.ops, self.by, self.post = ops, by, post
        self.last: Last = last

    def finish(self, x: Any, stream: Stream, following: Attention | Mlp | Moe | None, **routes: Any) -> Stream:
        """The last product, added to the stream, and the norm of what follows. routes: what experts need beside x."""
        if following is None and self.post is None:
            return Stream(self.last(x, residual=stream.x, **routes))
        by: Norm | None = None
        form: Form = "plain"
        if following is not None:
            by, form = self.ops.following(stream.x, following)
        norm = self.ops.next_norm(by, self.post)
        return Stream(*self.last.with_norm(x, residual=stream.x, following=norm, form=form, **routes))


class AttentionPlan(Plan[LinearKernel]):
    """Four launches: q, k and v; norms, rotation and cache; attention; output with residual and the next norm."""

    def __init__(self, ops: TritonOps, block: Attention, k_type: Any, v_type: Any, rope_dim: int) -> None:
        p = block.params
        super().__init__(
            ops,
            block.attn_norm,
            _made(ops.linear_kernel([block.attn_output.weight], [block.attn_output.bias])),
            block.post_attention_norm,
        )
        self.qkv = _made(ops.first_product(block))
        norms = block.attn_q_norm, block.attn_k_norm
        self.rope = RopeAndWrite(
            *(p.n_heads, p.n_kv_heads, p.head_dim, p.head_dim),
            rope_dim=rope_dim,
            pairing="neox" if block.pairing is RopePairing.NEOX else "norm",
            k_type=k_type.name,
            v_type=v_type.name,
            q_norm=norms[0].weight if norms[0] else None,
            k_norm=norms[1].weight if norms[1] else None,
            eps=norms[0].eps if norms[0] else 0.0,
        )
        self.attention = attention_kernel(ops, p, k_type, v_type)

    def __call__(self, stream: Stream, following: Mlp | Moe, angles: Angles, cache: LayerCache, batch: Batch) -> Stream:
        m = len(stream.x)
        qkv = self.qkv(self.ops.begin(stream, self.by, self.qkv.form(m)))
        q, k, v = self.rope.split(qkv)
        planes = cache.k.planes, cache.v.planes
        q = self.rope(q, k, v, angles, batch.slots[cache.group], *planes)
        form = self.last.form(m)
        form = form if form in self.attention.forms() else "plain"
        heads = self.attention(q, *planes, self.ops.page_tables(batch, cache), form)
        return self.finish(heads, stream, following)


class MlpPlan(Plan[LinearKernel]):
    """Two launches: gate and up with what joins them; down with residual and the next norm."""

    def __init__(self, ops: TritonOps, block: Mlp) -> None:
        super().__init__(
            ops,
            block.ffn_norm,
            _made(ops.linear_kernel([block.ffn_down.weight], [block.ffn_down.bias])),
            block.post_ffw_norm,
        )
        self.gate = GATES[block.activation]
        self.separate = block.ffn_gate is not None
        self.up = _made(ops.first_product(block))

    def __call__(self, stream: Stream, following: Attention | None) -> Stream:
        m = len(stream.x)
        h, form = self.ops.begin(stream, self.by, self.up.form(m)), self.last.form(m)
        hidden = self.up.gated(h, form) if self.separate else glu(self.up(h), None, self.gate, form)
        return self.finish(hidden, stream, following)


class MoePlan(Plan[Experts]):
    """Three launches: the router, which also quantises; gate and up; down with shares, residual and the next norm."""

    def __init__(self, ops: TritonOps, block: Moe) -> None:
        c = block.config
        stacks = (block.ffn_gate_exps, block.ffn_up_exps, block.ffn_down_exps)
        packed = [weight for weight in stacks if isinstance(weight, PackedWeight)]
        if len(packed) < len(stacks):
            raise ValueError("the weights are kept by torch")
        experts = Experts(*packed, activation=GATES[block.activation], **ops.kernel_options)
        super().__init__(ops, block.ffn_norm, experts, None)
        router = block.ffn_gate_inp
        self.router = Router(
            router.weight.dense(0, c.n_experts, torch.float32),
            Routing(c.n_experts, c.n_used, "softmax", normalise=True, scale=c.weights_scale),
            router.bias,
            batch_invariant=ops.kernel_options["batch_invariant"],
        )

    def __call__(self, stream: Stream, following: Attention | None) -> Stream:
        h = self.ops.begin(stream, self.by, "plain")
        assert isinstance(h, torch.Tensor)
        ids, shares, units = self.router.with_units(h, wanted=self.last.int8)
        return self.finish(h, stream, following, ids=ids, shares=shares, units=units)


def attention_kernel(ops: TritonOps, p: AttentionParams, k_type: Any, v_type: Any) -> AttentionKernel:
    if not ops.fused_attention:
        raise ValueError("fused attention is switched off")
    shape = AttentionShape(
        *(p.n_heads, p.n_kv_heads, p.head_dim, p.head_dim), scale=p.scale, softcap=p.softcap, window=p.window
    )
    return AttentionKernel(shape, k_type, v_type, ops.device, table=ops.table)


def _joined(biases: Sequence[torch.Tensor | None], weights: Sequence[PackedWeight]) -> torch.Tensor | None:
    """The biases of matrices side by side, zeros for those without."""
    if all(bias is None for bias in biases):
        return None
    device = weights[0].data.device
    parts = [
        torch.zeros(weight.shape[0], device=device) if bias is None else bias
        for bias, weight in zip(biases, weights, strict=True)
    ]
    return torch.cat(parts)


def _made(kernel: LinearKernel | Declined) -> LinearKernel:
    if isinstance(kernel, Declined):
        raise ValueError(kernel.reason)
    return kernel
