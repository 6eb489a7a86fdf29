"""Which experts a token goes to, and with what share: llama.cpp's `build_moe_ffn`, up to the experts themselves.

The logits of few tokens are shared out among many programs, so that reading the router's matrix takes the whole card;
the last of a token's programs to finish chooses its experts. Those of many tokens come from torch.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import FLOATS, empty_units, store_groups
from .arrival import last_to_arrive
from .grid import cdiv, next_power_of_2
from .packing import units as n_units
from .tuning import arch_of, isa

Gating = Literal["softmax", "sigmoid", "softmax_topk"]

MAX_EXPERTS = 1024
# Up to so many tokens are routed in one launch. Not measured.
FEW_TOKENS = 8
MAX_REGISTERS = 128
# Among at most so many programs the logits of a token are shared out, and at most so many experts are one program's.
# Not measured.
PARTS = 128
MAX_PART = 8
# Of many tokens, so many at most are one program's.
SELECT_TOKENS = 8
# What llama.cpp divides by at least: the smallest normal f16.
SMALLEST_SUM: tl.constexpr = tl.constexpr(6.103515625e-5)
# Ranks below every number, but above what cannot be chosen.
LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)


@dataclass(frozen=True, slots=True)
class Routing:
    """How n_used of n_experts are chosen for a token.

    gating: what a logit becomes: "softmax" over all experts, "sigmoid", or "softmax_topk": the softmax over the chosen
        experts only (gpt-oss).
    normalise: divide the shares of a token by their sum.
    scale: multiplies the shares at last.
    n_groups, n_groups_used: experts are chosen within the best groups only; a group of neighbours counts as much as
        its two best experts together (DeepSeek-V3).

    ValueError where the numbers do not fit each other.
    """

    n_experts: int
    n_used: int
    gating: Gating
    normalise: bool
    scale: float
    n_groups: int = 1
    n_groups_used: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.n_used <= self.n_experts <= MAX_EXPERTS:
            found = f"{self.n_used} of {self.n_experts}"
            raise ValueError(f"expected 1 <= n_used <= n_experts <= {MAX_EXPERTS}, found {found}")
        if self.gating not in get_args(Gating):
            raise ValueError(f"expected a gating of {get_args(Gating)}, found {self.gating!r}")
        if not math.isfinite(self.scale):
            raise ValueError(f"expected a finite scale, found {self.scale}")
        if not 1 <= self.n_groups_used <= self.n_groups:
            found = f"{self.n_groups_used} of {self.n_groups}"
            raise ValueError(f"expected 1 <= n_groups_used <= n_groups, found {found}")
        if self.n_groups > 1 and (self.n_experts % self.n_groups or self.group_size < 2):
            found = f"{self.n_experts} experts in {self.n_groups} groups"
            raise ValueError(f"expected groups of one size of two experts or more, found {found}")
        if self.n_used > self.n_groups_used * self.group_size:
            found = f"{self.n_used} of {self.n_groups_used} x {self.group_size}"
            raise ValueError(f"expected n_used experts in the groups used, found {found}")

    @property
    def group_size(self) -> int:
        return self.n_experts // self.n_groups


# Up to so many experts those of one token are chosen by comparing all with all; more would not fit registers.
MAX_COUNTED: tl.constexpr = tl.constexpr(128)

# ---- kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def _kept_groups(score, GROUPS: tl.constexpr, GROUPS_USED: tl.constexpr):
    """score [T, groups, members], -inf where there is no expert -> which groups are the best, [T, groups]."""
    first, place = tl.max(score, 2, return_indices=True)
    others = tl.where(tl.arange(0, score.shape[2])[None, None, :] == place[:, :, None], float("-inf"), score)
    total = first + tl.max(others, 2)
    group = tl.arange(0, score.shape[1])[None, :]
    total = tl.where(group < GROUPS, tl.where(total > LOWEST, total, LOWEST), float("-inf"))
    kept = total != total
    for _ in range(GROUPS_USED):
        _, best = tl.max(total, 1, return_indices=True)
        chosen = group == best[:, None]
        kept = kept | chosen
        total = tl.where(chosen, float("-inf"), total)
    return kept


@triton.jit
def _counted(score, U2: tl.constexpr):
    """The places of the U2 largest of score [1, P] in their order, of equal ones the first: [1, U2].

    A place's rank is the number of those before it. No comparison waits for another, as one maximum waits for the one
    before it.
    """
    P: tl.constexpr = score.shape[1]
    mine, other = tl.arange(0, P)[:, None], tl.arange(0, P)[None, :]
    own = tl.trans(score)
    before = (score > own) | ((score == own) & (other < mine))
    rank = tl.sum(before.to(tl.int32), 1)[:, None]
    return tl.sum(tl.where(rank == tl.arange(0, U2)[None, :], mine, 0), 0)[None, :]


@triton.jit
def _select(
    ids,
    shares,
    logits,
    selection_bias,
    token,
    n,
    scale,
    GATING: tl.constexpr,
    NORMALISE: tl.constexpr,
    USED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_USED: tl.constexpr,
    SIZE: tl.constexpr,
    G2: tl.constexpr,
    S2: tl.constexpr,
    U2: tl.constexpr,
):
    """The experts of tokens `token` [T], int64, of n: logits [n, GROUPS * SIZE] -> ids, shares [n, USED].

    SIZE experts to a group; G2, S2 and U2 are the powers of two from GROUPS, SIZE and USED on.
    """
    T: tl.constexpr = token.shape[0]
    P: tl.constexpr = G2 * S2
    place = tl.arange(0, P)[None, :]
    known = (place // S2 < GROUPS) & (place % S2 < SIZE)
    expert = place // S2 * SIZE + place % S2
    row = logits + (token * (GROUPS * SIZE))[:, None]
    inside = (token < n)[:, None]
    z = tl.load(row + expert, mask=known & inside, other=0.0, cache_modifier=".cg")
    z = tl.where(known, z, float("-inf"))  # [T, P]
    top = tl.max(z, 1)
    total = tl.sum(tl.exp(z - top[:, None]), 1)

    if GATING == "softmax":
        score = tl.exp(z - top[:, None]) / total[:, None]
    elif GATING == "sigmoid":
        score = 1.0 / (1.0 + tl.exp(-z))
    else:
        score = z
    if selection_bias is not None:
        score += tl.load(selection_bias + expert, mask=known, other=0.0).to(tl.float32)
    # What is not a number ranks last, but among the experts.
    score = tl.where(known, tl.where(score > LOWEST, score, LOWEST), float("-inf"))
    if GROUPS > 1:
        grouped = tl.reshape(score, (T, G2, S2))
        kept = _kept_groups(grouped, GROUPS, GROUPS_USED)
        score = tl.reshape(tl.where(kept[:, :, None], grouped, float("-inf")), (T, P))

    u = tl.arange(0, U2)[None, :]
    if T == 1 and P <= MAX_COUNTED:
        best = _counted(score, U2)
    else:
        best = tl.zeros((T, U2), tl.int32)
        for i in range(USED):
            _, first = tl.max(score, 1, return_indices=True)  # of equal ones the first
            best = tl.where(u == i, first[:, None], best)
            score = tl.where(place == first[:, None], float("-inf"), score)
    used = u < USED
    chosen = tl.where(used, best // S2 * SIZE + best % S2, 0)

    z = tl.load(row + chosen, mask=inside & used, other=0.0, cache_modifier=".cg")
    z = tl.where(used, z, float("-inf"))  # [T, U2]
    if GATING == "softmax":
        share = tl.exp(z - top[:, None]) / total[:, None]
    elif GATING == "sigmoid":
        share = 1.0 / (1.0 + tl.exp(-z))
    else:
        share = tl.exp(z - tl.max(z, 1)[:, None])
        share = share / tl.sum(share, 1)[:, None]
    if NORMALISE:
        sum = tl.sum(tl.where(used, share, 0.0), 1)[:, None]
        share = share / tl.where(sum < SMALLEST_SUM, SMALLEST_SUM, sum)
    at = (token * USED)[:, None] + u
    tl.store(ids + at, chosen, mask=inside & used)
    tl.store(shares + at, share * scale, mask=inside & used)


@triton.jit
def router_kernel(
    ids,
    shares,
    logits,
    counters,
    x,
    units,
    weight,
    logits_bias,
    selection_bias,
    n,
    K,
    S,
    stride,
    scale,
    GATING: tl.constexpr,
    NORMALISE: tl.constexpr,
    USED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_USED: tl.constexpr,
    SIZE: tl.constexpr,
    G2: tl.constexpr,
    S2: tl.constexpr,
    U2: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
    ISA: tl.constexpr,
):
    """x [n, K], rows `stride` elements apart, weight [experts, K] -> ids, shares [n, USED].

    logits: room for [n, experts] float32. counters [n]: zero before and after. units: None, or room for x in 8 bits
    (activations.py), S units per token, which its programs divide among them. Grid (n, ceil(experts / BE)): a program
    has BE logits of one token.
    """
    E: tl.constexpr = GROUPS * SIZE
    token = tl.program_id(0).to(tl.int64)
    if units is not None:
        for group in range(tl.program_id(1), 8 * S, tl.num_programs(1)):
            k = group * 32 + tl.arange(0, 32)
            values = tl.load(x + token * stride + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
            store_groups(units, token, group + tl.zeros((1,), tl.int32), S, values, True)
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    acc = tl.zeros((BE, BK), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        values = tl.load(x + token * stride + k, mask=k < K, other=0.0).to(tl.float32)
        at = weight + e[:, None] * K + k[None, :]
        acc += tl.load(at, mask=(e < E)[:, None] & (k < K)[None, :], other=0.0).to(tl.float32) * values[None, :]
    z = tl.sum(acc, 1)
    if logits_bias is not None:
        z += tl.load(logits_bias + e, mask=e < E, other=0.0).to(tl.float32)
    tl.store(logits + token * E + e, z, mask=e < E)
    if last_to_arrive(counters + token, tl.num_programs(1), ISA):
        tokens = token + tl.zeros((1,), tl.int64)
        _select(
            *(ids, shares, logits, selection_bias, tokens, n, scale),
            *(GATING, NORMALISE, USED, GROUPS, GROUPS_USED, SIZE, G2, S2, U2),
        )


@triton.jit
def select_kernel(
    ids,
    shares,
    logits,
    selection_bias,
    n,
    scale,
    GATING: tl.constexpr,
    NORMALISE: tl.constexpr,
    USED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_USED: tl.constexpr,
    SIZE: tl.constexpr,
    G2: tl.constexpr,
    S2: tl.constexpr,
    U2: tl.constexpr,
    T: tl.constexpr,
):
    """logits [n, GROUPS * SIZE] -> ids, shares [n, USED]. Grid (ceil(n / T))."""
    token = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    _select(
        *(ids, shares, logits, selection_bias, token, n, scale),
        *(GATING, NORMALISE, USED, GROUPS, GROUPS_USED, SIZE, G2, S2, U2),
    )


# ---- calling them ---------------------------------------------------------------------------------------------------


class Router:
    """x [n, n_embd] -> the experts of every token and their shares.

    weight: [n_experts, n_embd], float32, float16 or bfloat16, contiguous; sums are in float32.
    logits_bias: [n_experts], added to the logits. selection_bias: [n_experts], added to what decides the choice, but
        not to the shares (exp_probs_b).
    batch_invariant: a token's result does not depend on how many tokens are beside it.

    Of experts that score the same, the one with the lower index is chosen first, and those whose score is not a number
    last. Calls of one router share a counter: they must not overlap. ValueError where the tensors do not fit.
    """

    def __init__(
        self,
        weight: Tensor,
        routing: Routing,
        logits_bias: Tensor | None = None,
        selection_bias: Tensor | None = None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        n = routing.n_experts
        if weight.dim() != 2 or len(weight) != n or weight.dtype not in FLOATS or not weight.is_contiguous():
            expected = f"a weight [{n}, n_embd], contiguous, float32, float16 or bfloat16"
            raise ValueError(f"expected {expected}, found {weight.dtype} {list(weight.shape)}, {weight.stride()}")
        for name, bias in (("logits_bias", logits_bias), ("selection_bias", selection_bias)):
            if bias is not None and (bias.shape != (n,) or bias.device != weight.device or not bias.is_contiguous()):
                found = f"{list(bias.shape)}, {bias.stride()}, on {bias.device}"
                raise ValueError(f"expected {name} [{n}], contiguous, on {weight.device}, found {found}")
        self.weight, self.routing = weight, routing
        self.logits_bias, self.selection_bias = logits_bias, selection_bias
        self.batch_invariant = batch_invariant
        self.n_embd, self.device = weight.shape[1], weight.device
        self._isa = isa(arch_of(self.device))
        self._part = min(MAX_PART, next_power_of_2(cdiv(n, PARTS)))
        self._counters = torch.zeros(FEW_TOKENS, dtype=torch.int32, device=self.device)
        self._options: dict[str, Any] = {
            "GATING": routing.gating,
            "NORMALISE": routing.normalise,
            "USED": routing.n_used,
            "GROUPS": routing.n_groups,
            "GROUPS_USED": routing.n_groups_used,
            "SIZE": routing.group_size,
            "G2": next_power_of_2(routing.n_groups),
            "S2": next_power_of_2(routing.group_size),
            "U2": next_power_of_2(routing.n_used),
            "enable_fp_fusion": True,
        }
        # Without a number of its own, NVIDIA's compiler may spill to reach the next step of occupancy.
        self._limit = {"maxnreg": MAX_REGISTERS} if self._isa == "ptx" else {}

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, n_embd], rows with unit stride -> ids int32 [n, n_used], best first; shares float32 [n, n_used]."""
        ids, shares, _ = self.with_units(x, wanted=False)
        return ids, shares

    def with_units(self, x: Tensor, wanted: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        """As a call, and where they are wanted and cost no launch also the units of x in 8 bits, for the experts."""
        if (x.dim(), x.shape[-1], x.stride(-1), x.device) != (2, self.n_embd, 1, self.device) or x.dtype not in FLOATS:
            expected = f"x [n, {self.n_embd}] with unit stride, float32, float16 or bfloat16, on {self.device}"
            found = f"{x.dtype} {list(x.shape)} with strides {x.stride()} on {x.device}"
            raise ValueError(f"expected {expected}, found {found}")
        n, n_experts = len(x), self.routing.n_experts
        ids = torch.empty(n, self.routing.n_used, dtype=torch.int32, device=self.device)
        shares = torch.empty(n, self.routing.n_used, dtype=torch.float32, device=self.device)
        if n == 0:
            return ids, shares, None
        if n > FEW_TOKENS and not self.batch_invariant:
            self._route_many(x, ids, shares)
            return ids, shares, None
        units = empty_units(n, self.n_embd, True, self.device) if wanted else None
        counters = self._counters if n <= FEW_TOKENS else torch.zeros(n, dtype=torch.int32, device=self.device)
        router_kernel[n, cdiv(n_experts, self._part)](
            *(ids, shares, torch.empty(n, n_experts, dtype=torch.float32, device=self.device), counters),
            *(x, units, self.weight, self.logits_bias, self.selection_bias),
            *(n, self.n_embd, n_units(self.n_embd), x.stride(0), self.routing.scale),
            **{
                "ISA": self._isa,
                "BE": self._part,
                "BK": min(1024, next_power_of_2(self.n_embd)),
                "num_warps": 4,
                **self._options,
            },
        )
        return ids, shares, units

    def _route_many(self, x: Tensor, ids: Tensor, shares: Tensor) -> None:
        logits = torch.mm(x.float(), self.weight.float().t())
        if self.logits_bias is not None:
            logits += self.logits_bias
        padded = self._options["G2"] * self._options["S2"]
        tokens = max(1, min(SELECT_TOKENS, MAX_EXPERTS // padded))
        select_kernel[(cdiv(len(x), tokens),)](
            *(ids, shares, logits, self.selection_bias, len(x), self.routing.scale),
            **{"T": tokens, "num_warps": 1, **self._options},
        )


def route_reference(logits: Tensor, routing: Routing, selection_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The twin in torch: logits [n, n_experts] -> ids int32 [n, n_used], shares float32 [n, n_used]."""
    logits = logits.float()
    if routing.gating == "softmax":
        values = logits.softmax(-1)
    else:
        values = logits.sigmoid() if routing.gating == "sigmoid" else logits
    score = values if selection_bias is None else values + selection_bias.float()
    score = torch.where(score > LOWEST.value, score, LOWEST.value)
    if routing.n_groups > 1:
        grouped = score.view(-1, routing.n_groups, routing.group_size)
        total = grouped.topk(2).values.sum(-1).clamp(min=LOWEST.value)
        groups = total.sort(dim=-1, descending=True, stable=True).indices[:, : routing.n_groups_used]
        kept = torch.zeros_like(total, dtype=torch.bool).scatter_(1, groups, True)
        score = torch.where(kept.unsqueeze(-1), grouped, -torch.inf).flatten(1)
    ids = score.sort(dim=-1, descending=True, stable=True).indices[:, : routing.n_used]
    shares = values.gather(1, ids)
    if routing.gating == "softmax_topk":
        shares = shares.softmax(-1)
    if routing.normalise:
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM.value)
    return ids.int(), shares * routing.scale
