"""The decoder that all architectures share: built from a configuration and a file, run on batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .batch import Batch
from .cache import PagedCache
from .config import MIN_ROPE_FACTOR, ModelConfig
from .layers import Attention, Linear, Mlp, Moe, Norm
from .ops import AttentionParams, Dispatch, Stream, Weight
from .rope import Rope, make_rope
from .tensors import TensorBook, without_ones


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, the device it runs on and the rotation it uses."""

    ops: Dispatch
    rope: Rope
    attention: Attention
    mlp: Mlp | Moe


@dataclass(frozen=True, slots=True)
class Decoder:
    """embedding -> layers -> norm -> output; every layer may live on a device of its own."""

    config: ModelConfig
    n_vocab: int
    input_ops: Dispatch
    output_ops: Dispatch
    token_embd: Weight
    layers: Sequence[Layer]
    output_norm: Norm
    output: Linear

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: PagedCache) -> torch.Tensor:
        """The logits of the batch's output rows, float32 [n_outputs, n_vocab]; keys and values go to the cache."""
        x = self.hidden(batch, cache)
        ops = self.output_ops
        logits = ops.logits(x.to(ops.device, ops.dtype), self.output_norm, self.output)
        if self.config.final_softcap > 0:
            logits = torch.tanh(logits / self.config.final_softcap) * self.config.final_softcap
        return logits

    @torch.inference_mode()
    def hidden(self, batch: Batch, cache: PagedCache) -> torch.Tensor:
        """What the last layer leaves of the batch's output rows, [n_outputs, n_embd], before the last norm."""
        ops = self.input_ops
        batch = batch.to(ops.device)
        x = ops.rows(self.token_embd, batch.tokens)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        stream, first = Stream(x), 0
        while first < len(self.layers):
            ops, last = self.layers[first].ops, first
            while last < len(self.layers) and self.layers[last].ops is ops:
                last += 1
            batch, stream = batch.to(ops.device), Stream(stream.x.to(ops.device, ops.dtype))
            layers = self.layers[first:last]
            ropes = {id(layer.rope): layer.rope for layer in layers}
            angles = {key: rope.angles(batch.positions) for key, rope in ropes.items()}
            stream = ops.layers(layers, stream, angles, cache.layers[first:last], batch)
            first = last
        # As many as there are tokens are all of them, which is what decoding asks for.
        all_rows = batch.output_rows is None or batch.output_rows.shape == batch.tokens.shape
        return stream.x if all_rows else stream.x[batch.output_rows]


def build_decoder(
    config: ModelConfig,
    book: TensorBook,
    input_ops: Dispatch,
    layer_ops: Sequence[Dispatch],
    output_ops: Dispatch,
    n_ctx: int,
) -> Decoder:
    """Loads every tensor to its device. ValueError for missing, misshapen or unknown tensors."""
    n_vocab, n_embd = _vocabulary_size(book), config.n_embd
    tied = not book.has("output.weight")
    ropes: dict[tuple[bool, torch.device], Rope] = {}
    layers = []
    for i, ops in enumerate(layer_ops):
        key = (config.sliding[i], ops.device)
        if key not in ropes:
            ropes[key] = _rope(config, book, ops.device, config.sliding[i], n_ctx)
        layers.append(Layer(ops, ropes[key], _attention(config, book, i, ops), _mlp(config, book, i, ops)))
    output_name = "token_embd.weight" if tied else "output.weight"
    output = book.weight(output_name, (n_vocab, n_embd), output_ops)
    output_bias = book.vector("output.bias", n_vocab, output_ops.device) if book.has("output.bias") else None
    shared = tied and input_ops.device == output_ops.device
    decoder = Decoder(
        config=config,
        n_vocab=n_vocab,
        input_ops=input_ops,
        output_ops=output_ops,
        token_embd=output if shared else book.embedding("token_embd.weight", (n_vocab, n_embd), input_ops),
        layers=layers,
        output_norm=book.norm("output_norm", n_embd, config.norm_eps, output_ops),
        output=Linear(output, output_bias),
    )
    book.finish()
    return decoder


def _vocabulary_size(book: TensorBook) -> int:
    tensor = book.source.tensors.get("token_embd.weight")
    shape = () if tensor is None else without_ones(tensor.shape)
    if len(shape) != 2:
        raise ValueError(f"{book.source.name}: tensor 'token_embd.weight' with two dimensions is missing")
    return shape[0]


def _rope(config: ModelConfig, book: TensorBook, device: torch.device, sliding: bool, n_ctx: int) -> Rope:
    """The rotation; Llama 3 and LongRoPE files bring divisors for their frequencies."""
    rope = config.rope_sliding if sliding else config.rope
    divisors = None
    for name, applies in (
        ("rope_freqs.weight", rope.scaling != "longrope"),
        ("rope_factors_long.weight", n_ctx > rope.original_context),
        ("rope_factors_short.weight", n_ctx <= rope.original_context),
    ):
        if book.has(name):
            values = book.vector(name, rope.dim // 2, torch.device("cpu"))
            if not bool(((values >= MIN_ROPE_FACTOR) & values.isfinite()).all()):
                raise ValueError(f"{book.source.name}: tensor {name!r} must hold positive numbers")
            divisors = values if applies else divisors
    return make_rope(rope, divisors, device)


def _attention(config: ModelConfig, book: TensorBook, i: int, ops: Dispatch) -> Attention:
    name, n_embd, head_dim = f"blk.{i}.", config.n_embd, config.head_dim
    n_q, n_kv = config.n_heads * head_dim, config.n_kv_heads * head_dim

    def norm(tensor: str, n: int, present: bool) -> Norm | None:
        return book.norm(name + tensor, n, config.norm_eps, ops) if present else None

    fused = book.has(f"{name}attn_qkv.weight")

    def linear(tensor: str, n_out: int, present: bool) -> Linear | None:
        return book.linear(name + tensor, n_out, n_embd, ops) if present else None

    return Attention(
        params=AttentionParams(
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            head_dim=head_dim,
            scale=config.attn_scale,
            softcap=config.attn_softcap,
            window=config.window if config.sliding[i] else 0,
        ),
        pairing=config.rope.pairing,
        attn_norm=book.norm(f"{name}attn_norm", n_embd, config.norm_eps, ops),
        attn_qkv=linear("attn_qkv", n_q + 2 * n_kv, fused),
        attn_q=linear("attn_q", n_q, not fused),
        attn_k=linear("attn_k", n_kv, not fused),
        attn_v=linear("attn_v", n_kv, not fused),
        attn_q_norm=norm("attn_q_norm", head_dim, config.qk_norm),
        attn_k_norm=norm("attn_k_norm", head_dim, config.qk_norm),
        attn_output=book.linear(f"{name}attn_output", n_embd, n_q, ops),
        post_attention_norm=norm("post_attention_norm", n_embd, config.post_norms),
    )


def _mlp(config: ModelConfig, book: TensorBook, i: int, ops: Dispatch) -> Mlp | Moe:
    name, n_embd, n_ff = f"blk.{i}.", config.n_embd, config.n_ff
    ffn_norm = book.norm(f"{name}ffn_norm", n_embd, config.norm_eps, ops)
    if config.moe is not None:
        n, n_ff = config.moe.n_experts, config.moe.n_ff
        return Moe(
            config=config.moe,
            activation=config.activation,
            ffn_norm=ffn_norm,
            ffn_gate_inp=book.linear(f"{name}ffn_gate_inp", n, n_embd, ops),
            ffn_gate_exps=book.weight(f"{name}ffn_gate_exps.weight", (n, n_ff, n_embd), ops),
            ffn_up_exps=book.weight(f"{name}ffn_up_exps.weight", (n, n_ff, n_embd), ops),
            ffn_down_exps=book.weight(f"{name}ffn_down_exps.weight", (n, n_embd, n_ff), ops),
        )
    gated = book.has(f"{name}ffn_gate.weight")
    post = book.norm(f"{name}post_ffw_norm", n_embd, config.norm_eps, ops) if config.post_norms else None
    return Mlp(
        activation=config.activation,
        ffn_norm=ffn_norm,
        ffn_gate=book.linear(f"{name}ffn_gate", n_ff, n_embd, ops) if gated else None,
        ffn_up=book.linear(f"{name}ffn_up", n_ff if gated else 2 * n_ff, n_embd, ops),
        ffn_down=book.linear(f"{name}ffn_down", n_embd, n_ff, ops),
        post_ffw_norm=post,
    )
