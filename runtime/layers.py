"""The parts of a decoder layer, written over Ops. Attributes carry the names of the tensors in the file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .batch import Batch
from .cache import LayerCache
from .config import Activation, MoeConfig, RopePairing
from .ops import Angles, AttentionParams, Dispatch, Weight


@dataclass(frozen=True, slots=True)
class Linear:
    weight: Weight
    bias: torch.Tensor | None = None

    def __call__(self, ops: Dispatch, x: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm."""

    weight: torch.Tensor
    eps: float

    def __call__(self, ops: Dispatch, x: torch.Tensor) -> torch.Tensor:
        return ops.norm(x, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention half of a layer. Either attn_qkv, or attn_q, attn_k and attn_v."""

    params: AttentionParams
    pairing: RopePairing
    attn_norm: Norm
    attn_output: Linear
    attn_qkv: Linear | None = None
    attn_q: Linear | None = None
    attn_k: Linear | None = None
    attn_v: Linear | None = None
    attn_q_norm: Norm | None = None
    attn_k_norm: Norm | None = None
    post_attention_norm: Norm | None = None

    def project(self, ops: Dispatch, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [n, n_heads, head_dim], k and v [n, n_kv_heads, head_dim]."""
        p = self.params
        if self.attn_qkv is not None:
            sizes = [p.n_heads * p.head_dim, p.n_kv_heads * p.head_dim, p.n_kv_heads * p.head_dim]
            q, k, v = self.attn_qkv(ops, x).split(sizes, dim=-1)
        else:
            assert self.attn_q is not None and self.attn_k is not None and self.attn_v is not None
            q, k, v = self.attn_q(ops, x), self.attn_k(ops, x), self.attn_v(ops, x)
        return (
            q.reshape(-1, p.n_heads, p.head_dim),
            k.reshape(-1, p.n_kv_heads, p.head_dim),
            v.reshape(-1, p.n_kv_heads, p.head_dim),
        )

    def compose(self, ops: Dispatch, x: torch.Tensor, angles: Angles, cache: LayerCache, batch: Batch) -> torch.Tensor:
        q, k, v = self.project(ops, self.attn_norm(ops, x))
        if self.attn_q_norm is not None and self.attn_k_norm is not None:
            q, k = self.attn_q_norm(ops, q), self.attn_k_norm(ops, k)
        q, k = ops.rope(q, angles, self.pairing), ops.rope(k, angles, self.pairing)
        y = self.attn_output(ops, ops.attention(q, k, v, cache, batch, self.params).flatten(1))
        if self.post_attention_norm is not None:
            y = self.post_attention_norm(ops, y)
        return x + y


@dataclass(frozen=True, slots=True)
class Mlp:
    """The gated MLP half of a layer. Without ffn_gate, ffn_up holds the gate's rows and then its own."""

    activation: Activation
    ffn_norm: Norm
    ffn_up: Linear
    ffn_down: Linear
    ffn_gate: Linear | None = None
    post_ffw_norm: Norm | None = None

    def compose(self, ops: Dispatch, x: torch.Tensor) -> torch.Tensor:
        h = self.ffn_norm(ops, x)
        up = self.ffn_up(ops, h)
        if self.ffn_gate is None:
            gate, up = up.chunk(2, dim=-1)
        else:
            gate = self.ffn_gate(ops, h)
        y = self.ffn_down(ops, ops.glu(gate, up, self.activation))
        if self.post_ffw_norm is not None:
            y = self.post_ffw_norm(ops, y)
        return x + y


@dataclass(frozen=True, slots=True)
class Moe:
    """The mixture-of-experts half of a layer: expert matrices are stacks [n_experts, n_out, n_in]."""

    config: MoeConfig
    activation: Activation
    ffn_norm: Norm
    ffn_gate_inp: Linear
    ffn_gate_exps: Weight
    ffn_up_exps: Weight
    ffn_down_exps: Weight

    def route(self, ops: Dispatch, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen experts [n, n_used] and their shares, which sum to weights_scale."""
        probabilities = self.ffn_gate_inp(ops, x).float().softmax(-1)
        shares, ids = probabilities.topk(self.config.n_used, dim=-1)
        # The floor is llama.cpp's: half precision's smallest normal number.
        shares = shares / shares.sum(-1, keepdim=True).clamp_min(6.103515625e-5)
        return ids, shares * self.config.weights_scale

    def compose(self, ops: Dispatch, x: torch.Tensor) -> torch.Tensor:
        h = self.ffn_norm(ops, x)
        ids, shares = self.route(ops, h)
        return x + ops.experts(h, ids, shares, self)
