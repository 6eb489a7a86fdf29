"""The demo model in plain torch, only to train it: a small llama whose parameters carry their GGUF names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_STD = 0.5
# The first of the tokenizer's special tokens.
END_OF_TEXT_ID = 0


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the model. Row lengths are multiples of 256, so that every GGUF format can hold them."""

    n_vocab: int = 2048
    n_ctx: int = 512
    n_embd: int = 256
    n_ff: int = 768
    n_layers: int = 5
    n_heads: int = 4
    n_kv_heads: int = 2
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_heads


def rope_table(config: DemoConfig) -> Tensor:
    """Cosine and sine for each position and pair: [n_ctx, head_dim / 2, 2]."""
    frequencies = config.rope_base ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    angles = torch.outer(torch.arange(config.n_ctx).float(), frequencies)
    return torch.stack((angles.cos(), angles.sin()), -1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates the pairs (2i, 2i+1) of `x` [batch, heads, tokens, head_dim], as GGUF's llama wants them."""
    cos, sin = table[: x.shape[-2]].unbind(-1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def document_mask(ids: Tensor) -> Tensor:
    """True where a token may look: back, and not past the end of the document before its own."""
    document = F.pad((ids == END_OF_TEXT_ID).long().cumsum(1), (1, -1))
    same = document[:, :, None] == document[:, None, :]
    return (same & same.new_ones(same.shape[1:]).tril())[:, None]


class Block(nn.Module):
    """Attention and feed-forward, each with its norm and its residual."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.n_embd, config.n_kv_heads * config.head_dim
        self.attn_norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.attn_q = nn.Linear(width, width, bias=False)
        self.attn_k = nn.Linear(width, kv_width, bias=False)
        self.attn_v = nn.Linear(width, kv_width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.ffn_gate = nn.Linear(width, config.n_ff, bias=False)
        self.ffn_up = nn.Linear(width, config.n_ff, bias=False)
        self.ffn_down = nn.Linear(config.n_ff, width, bias=False)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        """`x` [batch, tokens, n_embd] -> the same shape; mask [batch, 1, tokens, tokens]: who sees whom."""
        h = self.attn_norm(x)
        q, k, v = (
            linear(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, table), rotate(k, table)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attn_output(attended.transpose(1, 2).flatten(-2))
        h = self.ffn_norm(x)
        down: Tensor = self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + down


class DemoModel(nn.Module):
    """Embedding, blocks, norm; the output matrix is the embedding."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.n_vocab, config.n_embd)
        self.blk = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.output_norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self._initialise()
        self.register_buffer("rope", rope_table(config), persistent=False)

    def _initialise(self) -> None:
        """Embeddings of a size that the first layer can tell apart; the last norm keeps the logits small all the same."""
        nn.init.normal_(self.token_embd.weight, std=EMBEDDING_STD)
        nn.init.constant_(self.output_norm.weight, 0.05 / EMBEDDING_STD)
        for name, parameter in self.blk.named_parameters():
            if parameter.ndim == 2:
                ends_residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * (0.1**0.5 if ends_residual else 1.0))

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [batch, tokens] -> logits [batch, tokens, n_vocab]."""
        x, mask = self.token_embd(ids), document_mask(ids)
        for block in self.blk:
            x = block(x, self.rope, mask)
        return F.linear(self.output_norm(x), self.token_embd.weight)
