"""Dispatch over backends, attention by definition."""

import pytest
import torch

from naiad.runtime.backends.torch import TorchOps, attend
from naiad.runtime.ops import AttentionParams, Declined, Dispatch

CPU = torch.device("cpu")


class Picky(TorchOps):
    """A backend that takes only wide matrices."""

    name = "picky"

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor | Declined:  # type: ignore[override]
        return torch.full_like(x, 9.0) if x.shape[-1] > 4 else Declined("narrow")


def test_dispatch_takes_the_first_that_does_not_decline() -> None:
    ops = Dispatch([Picky(CPU, torch.float32, None), TorchOps(CPU, torch.float32, None)])
    assert (ops.norm(torch.ones(2, 8), torch.ones(8), 1e-6) == 9.0).all()
    with pytest.warns(UserWarning, match="picky leaves norm to torch: narrow"):
        torch.testing.assert_close(ops.norm(torch.ones(2, 4), torch.ones(4), 0.0), torch.ones(2, 4))
    assert ops.declined == {("picky", "norm", "narrow"): 1}
    assert ops.name == "picky > torch"


def test_dispatch_says_why_when_all_decline() -> None:
    ops = Dispatch([Picky(CPU, torch.float32, None)])
    with pytest.raises(RuntimeError, match=r"no backend on cpu takes norm\(torch.float32 \[2, 4\].*picky: narrow"):
        ops.norm(torch.ones(2, 4), torch.ones(4), 1e-6)


@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize(("n", "length"), [(1, 1), (1, 9), (5, 5), (4, 11)])
def test_attention_against_its_definition(n: int, length: int, softcap: float, window: int) -> None:
    """A loop over queries and heads, written from the definition alone."""
    params = AttentionParams(n_heads=6, n_kv_heads=2, head_dim=8, scale=0.3, softcap=softcap, window=window)
    q, k, v = torch.randn(n, 6, 8), torch.randn(length, 2, 8), torch.randn(length, 2, 8)
    expected = torch.empty_like(q)
    for i in range(n):
        position = length - n + i
        first = max(0, position - window + 1) if window else 0
        for head in range(6):
            scores = k[first : position + 1, head // 3] @ q[i, head] * 0.3
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            expected[i, head] = scores.softmax(0) @ v[first : position + 1, head // 3]
    for fused in (True, False):
        torch.testing.assert_close(attend(q, k, v, params, fused=fused), expected)
