"""Routers and experts: every way to choose, few and many tokens, mixtures of formats, against their twins in torch."""

from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import pytest
import random_weights
import torch

pytest.importorskip("triton")

from bench import dequantized
from kernel_cases import DEVICE, INT8_TOLERANCE, ON_GPU, TOLERANCE, error
from torch import Tensor

from naiad.quant import formats
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import Format
from naiad.triton_kernels import experts as experts_module
from naiad.triton_kernels import router as router_module
from naiad.triton_kernels.activations import Form, Units, quantize
from naiad.triton_kernels.experts import Experts
from naiad.triton_kernels.norms import NextNorm, norm
from naiad.triton_kernels.router import Gating, Router, Routing, route_reference, select_kernel
from naiad.triton_kernels.tuning import Tile, Vector, arch_of, tuning
from naiad.triton_kernels.weights import PackedWeight

pytestmark = [
    *ON_GPU,
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

GATINGS: tuple[Gating, ...] = ("softmax", "sigmoid", "softmax_topk")

# ---- the router -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen experts to a program: the interpreter's time goes by programs."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(router_module, "PARTS", 3)
        monkeypatch.setattr(router_module, "MAX_PART", 16)
        monkeypatch.setattr(router_module, "SELECT_TOKENS", 16)


def routed(logits: Tensor, routing: Routing, selection_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """From given logits [n, n_experts]: those that one-hot weights make of them."""
    router = Router(torch.eye(routing.n_experts, device=DEVICE), routing, selection_bias=selection_bias)
    ids, shares = router(logits.to(DEVICE))
    return ids.cpu(), shares.cpu()


def check(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert found[0].dtype == torch.int32 and found[1].dtype == torch.float32
    assert torch.equal(found[0].cpu(), expected[0].cpu())
    torch.testing.assert_close(found[1].cpu(), expected[1].cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gating", GATINGS)
def test_every_way_to_choose(gating: Gating) -> None:
    for (n_groups, n_groups_used), normalise, biased in product(((1, 1), (5, 2)), (False, True), (False, True)):
        routing = Routing(40, 5, gating, normalise, 2.5, n_groups, n_groups_used)
        logits = 2 * torch.randn(11, 40)  # the kernel takes them in eights or sixteens
        bias = torch.randn(40) if biased else None
        found = routed(logits, routing, None if bias is None else bias.to(DEVICE))
        check(found, route_reference(logits, routing, bias))


@pytest.mark.parametrize(
    ("routing", "n", "dtype"),
    [
        (Routing(40, 4, "softmax", True, 1.0), 1, torch.float32),
        (Routing(30, 6, "sigmoid", True, 2.5, 3, 2), 3, torch.bfloat16),
        (Routing(6, 6, "softmax_topk", False, 1.0), 3, torch.float16),
        (Routing(1, 1, "softmax", False, 1.0), 2, torch.float32),
    ],
    ids=["softmax", "groups", "all", "one"],
)
def test_few_tokens_are_routed_in_one_launch(routing: Routing, n: int, dtype: torch.dtype) -> None:
    weight = (torch.randn(routing.n_experts, 300) / 8).to(dtype)
    logits_bias, selection_bias = torch.randn(routing.n_experts), torch.randn(routing.n_experts) / 8
    x = torch.randn(n, 600).to(dtype)[:, 7:307]
    router = Router(weight.to(DEVICE), routing, logits_bias.to(DEVICE), selection_bias.to(DEVICE))
    expected = route_reference(x.float() @ weight.float().T + logits_bias, routing, selection_bias)
    check(router(x.to(DEVICE)), expected)
    check(router(x.to(DEVICE)), expected)  # the counters are zero again
    ids, shares = router(torch.cat([x, torch.zeros(9, 300, dtype=dtype)]).to(DEVICE))
    check((ids[:n], shares[:n]), expected)


@pytest.mark.parametrize("n_experts", [5, 128])
def test_few_tokens_are_quantized_on_the_way(n_experts: int) -> None:
    """By fewer programs than there are groups of values, and by more."""
    router = Router(torch.randn(n_experts, 300, device=DEVICE), Routing(n_experts, 2, "softmax", True, 1.0))
    x = torch.randn(2, 300, device=DEVICE)
    ids, shares, units = router.with_units(x)
    assert units is not None and torch.equal(units, quantize(x))
    assert torch.equal(ids, router(x)[0]) and torch.equal(shares, router(x)[1])
    assert router.with_units(torch.randn(9, 300, device=DEVICE))[2] is None


def test_routes_do_not_depend_on_neighbours() -> None:
    router = Router(torch.randn(20, 64, device=DEVICE), Routing(20, 3, "softmax", True, 1.0), batch_invariant=True)
    x = torch.randn(9, 64, device=DEVICE)
    together, alone = router(x), router(x[8:])
    assert torch.equal(together[0][8:], alone[0]) and torch.equal(together[1][8:], alone[1])


@pytest.mark.parametrize("n_groups", [1, 2])
def test_of_equal_experts_the_first_are_chosen(n_groups: int) -> None:
    routing = Routing(12, 3, "softmax", True, 1.0, n_groups, 1)
    logits = torch.tensor([[0.0] * 12, [0.0, 1.0] * 6, [1.0] + [3.0] * 2 + [1.0] * 4 + [3.0] * 2 + [1.0] * 3])
    found = routed(logits, routing)
    check(found, route_reference(logits, routing))
    assert found[0].tolist() == [[0, 1, 2], [1, 3, 5], [1, 2, 7 if n_groups == 1 else 0]]


@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice) encountered:RuntimeWarning")
@pytest.mark.parametrize("gating", GATINGS)
def test_what_is_not_a_number_names_an_expert_all_the_same(gating: Gating) -> None:
    logits = torch.randn(9, 12)
    logits[0], logits[1, 3:], logits[2, 5], logits[3] = torch.nan, torch.nan, torch.inf, -torch.inf
    for n_groups in (1, 3):
        routing = Routing(12, 4, gating, True, 1.0, n_groups, n_groups)
        ids = torch.empty(9, 4, dtype=torch.int32, device=DEVICE)
        select_kernel[(3,)](
            *(ids, torch.empty(9, 4, device=DEVICE), logits.to(DEVICE), None, 9, 1.0, gating, True, 4),
            *(n_groups, n_groups, 12 // n_groups, 4 if n_groups == 3 else 1, 4 if n_groups == 3 else 16, 4),
            **{"T": 4, "num_warps": 1, "enable_fp_fusion": True},
        )
        assert all(len(set(row)) == 4 and min(row) >= 0 and max(row) < 12 for row in ids.tolist())
        assert torch.equal(ids[4:].cpu(), route_reference(logits, routing)[0][4:])
        assert ids[0].tolist() == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice) encountered:RuntimeWarning")
@pytest.mark.parametrize(("n_experts", "n_used", "n_groups"), [(12, 12, 1), (12, 5, 3), (128, 8, 1), (160, 6, 1)])
def test_one_tokens_experts_are_those_of_many_tokens(n_experts: int, n_used: int, n_groups: int) -> None:
    """However they are chosen: by comparing all with all or by one maximum after the other. With equal ones and such as
    are no numbers."""
    routing = Routing(n_experts, n_used, "sigmoid", True, 1.0, n_groups, n_groups)
    logits = torch.randn(4, n_experts)
    logits[1] = logits[1].round()
    logits[2], logits[3, ::3], logits[3, 1] = 0.0, torch.nan, -torch.inf
    for row in logits.to(DEVICE):
        router = Router(torch.zeros(n_experts, 8, device=DEVICE), routing, logits_bias=row)
        (ids, shares), together = (router(torch.zeros(n, 8, device=DEVICE)) for n in (1, 9))
        assert torch.equal(ids, together[0][:1]) and torch.equal(ids.expand(9, -1), together[0])
        torch.testing.assert_close(shares, together[1][:1], equal_nan=True)


def test_routings_that_cannot_be_are_refused() -> None:
    good = Routing(12, 4, "softmax", True, 1.0, 3, 2)
    for changes, message in (
        ({"n_used": 13}, "expected 1 <= n_used <= n_experts <= 1024, found 13 of 12"),
        ({"n_used": 0}, "found 0 of 12"),
        ({"n_experts": 1025}, "found 4 of 1025"),
        ({"gating": "sqrt"}, "expected a gating of .*'softmax_topk'.*, found 'sqrt'"),
        ({"scale": float("nan")}, "expected a finite scale, found nan"),
        ({"n_groups_used": 4}, "expected 1 <= n_groups_used <= n_groups, found 4 of 3"),
        ({"n_groups": 5}, "groups of one size of two experts or more, found 12 experts in 5 groups"),
        ({"n_groups": 12}, "found 12 experts in 12 groups"),
        ({"n_used": 9}, "expected n_used experts in the groups used, found 9 of 2 x 4"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **changes)


def test_tensors_that_do_not_fit_a_router_are_refused() -> None:
    routing, weight = Routing(4, 2, "softmax", True, 1.0), torch.zeros(4, 8, device=DEVICE)
    with pytest.raises(ValueError, match=r"expected a weight \[4, n_embd\].*found torch.float32 \[5, 8\]"):
        Router(torch.zeros(5, 8, device=DEVICE), routing)
    with pytest.raises(ValueError, match=r"expected a weight .*found torch.float64"):
        Router(weight.double(), routing)
    with pytest.raises(ValueError, match=r"expected selection_bias \[4\].*found \[5\]"):
        Router(weight, routing, selection_bias=torch.zeros(5, device=DEVICE))
    with pytest.raises(ValueError, match=r"expected x \[n, 8\] with unit stride.*found torch.float32 \[2, 7\]"):
        Router(weight, routing)(torch.zeros(2, 7, device=DEVICE))
    assert [tuple(t.shape) for t in Router(weight, routing)(torch.zeros(0, 8, device=DEVICE))] == [(0, 2), (0, 2)]


# ---- experts --------------------------------------------------------------------------------------------------------

# All rows of a small matrix in one program of the interpreter.
BN = 128 if DEVICE.type == "cuda" else 256
TILE = Tile(max_rows=0, bn=BN, bm=16, warps=BN // 16, stages=1, split=False, int8=False)
TABLE = replace(tuning(arch_of(DEVICE)), invariant=TILE)
FAT = TABLE if DEVICE.type == "cuda" else replace(TABLE, vector=Vector(256, 8, 4))
TABLES = {
    "few": replace(FAT, matvec_rows=64, exact_rows=64),
    "blocks": replace(FAT, matvec_rows=64, exact_rows=64, vector=replace(FAT.vector, rows=64)),
    "many": replace(FAT, matvec_rows=0, exact_rows=0, tiles=(TILE,)),
    "many int8": replace(FAT, matvec_rows=0, tiles=(replace(TILE, int8=True),)),
}
N_EXPERTS = 6


@dataclass(frozen=True)
class Mixture:
    """Stacks on the device and, in float64 on the CPU, their twins."""

    stacks: tuple[PackedWeight, ...]
    twins: tuple[Tensor, ...]
    biases: dict[str, Tensor]

    @classmethod
    def random(cls, fmts: tuple[Format, Format, Format], n_ff: int, n_embd: int, biased: bool = False) -> "Mixture":
        shapes = ((N_EXPERTS, n_ff, n_embd), (N_EXPERTS, n_ff, n_embd), (N_EXPERTS, n_embd, n_ff))
        stacks, twins = [], []
        for seed, (fmt, shape) in enumerate(zip(fmts, shapes, strict=True)):
            rows = random_weights.random_rows(fmt, prod(shape[:2]), shape[2], torch.device("cpu"), seed).view(
                *shape[:2], -1
            )
            stacks.append(PackedWeight.pack(rows.to(DEVICE), fmt, shape))
            twins.append(dequantize(rows, fmt).double())
        names = ("gate_bias", "up_bias", "down_bias") if biased else ()
        biases = {name: torch.randn(shape[:2]) / 4 for name, shape in zip(names, shapes, strict=False)}
        return cls(tuple(stacks), tuple(twins), biases)

    def layer(self, table: str, *, activation: str = "silu", route: str = "exact", invariant: bool = False) -> Experts:
        options: dict[str, Any] = {name: bias.to(DEVICE) for name, bias in self.biases.items()}
        options |= {"activation": activation, "route": route, "batch_invariant": invariant, "table": TABLES[table]}
        gate, up, down = self.stacks
        return Experts(gate, up, down, **options)

    def expected(self, x: Tensor, ids: Tensor, shares: Tensor, activation: str = "silu") -> Tensor:
        """The sum over the experts [n, n_embd], without the residual."""
        gate, up, down = self.twins
        x, ids, shares = x.cpu().double(), ids.cpu().long(), shares.cpu().double()
        g, u = (torch.einsum("nd,nkfd->nkf", x, weight[ids]) for weight in (gate, up))
        if self.biases:
            g, u = g + self.biases["gate_bias"][ids], u + self.biases["up_bias"][ids]
        if activation == "swiglu_oai":
            g, u = g.clamp(max=7), u.clamp(-7, 7)
            hidden = g * torch.sigmoid(1.702 * g) * (u + 1)
        else:
            hidden = torch.nn.functional.silu(g) * u
        y = torch.einsum("nkf,nkdf->nkd", hidden, down[ids])
        if self.biases:
            y = y + self.biases["down_bias"][ids]
        return (y * shares.unsqueeze(-1)).sum(1)


def sent(ids: list[list[int]], n_embd: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, ids and shares."""
    n, n_used = len(ids), len(ids[0])
    x, shares = torch.randn(n, n_embd).to(dtype), torch.rand(n, n_used) + 0.1
    return x.to(DEVICE), torch.tensor(ids, dtype=torch.int32, device=DEVICE), shares.to(DEVICE)


Q4_K_M = (formats.Q4_K, formats.Q4_K, formats.Q6_K)
MXFP4 = (formats.MXFP4,) * 3
MIXED = (formats.IQ4_NL, formats.Q8_0, formats.F16)
F16 = (formats.F16,) * 3


@pytest.mark.parametrize(
    ("fmts", "route", "n_ff", "n_embd", "ids", "activation"),
    [
        (Q4_K_M, "int8", 256, 256, [[5]], "silu"),
        (MXFP4, "int8", 96, 64, [[3]], "swiglu_oai"),
        (MIXED, "int8", 32, 96, [[4]], "silu"),  # quantised activations for two, numbers for the third
        ((formats.F16, formats.F16, formats.Q4_1), "exact", 32, 96, [[0]], "silu"),
        (F16, "exact", 40, 50, [[1], [1], [5]], "silu"),
    ],
    ids=["Q4_K_M", "MXFP4", "mixed", "exact", "F16"],
)
def test_few_tokens(
    fmts: tuple[Format, Format, Format], route: str, n_ff: int, n_embd: int, ids: list[list[int]], activation: str
) -> None:
    mixture = Mixture.random(fmts, n_ff, n_embd, biased=activation == "swiglu_oai")
    arguments = sent(ids, n_embd)
    layer = mixture.layer("few", activation=activation, route=route)
    units = quantize(arguments[0]) if fmts is MXFP4 and layer.int8 else None
    found = layer(*arguments, units=units)
    expected = mixture.expected(*arguments, activation)
    # Both x and the hidden values are rounded.
    assert error(found, expected) < (2 * INT8_TOLERANCE if route == "int8" else TOLERANCE[torch.float32])


def test_experts_side_by_side_or_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture.random(F16, 33, 20, biased=True)
    x, ids, shares = sent([[2**31 - 1, -5]], 20)  # ids that name no expert count as the nearest that do
    residual = torch.randn(1, 20, device=DEVICE)
    expected = mixture.expected(x, ids.clamp(0, N_EXPERTS - 1), shares) + residual.cpu().double()
    split = mixture.layer("few")
    found = split(x, ids, shares, residual)
    assert not split._counters.any()
    monkeypatch.setattr(experts_module, "WARPS", 0)
    assert torch.equal(mixture.layer("few")(x, ids, shares, residual), found)
    assert error(found, expected) < TOLERANCE[x.dtype]


@pytest.mark.parametrize(
    ("fmts", "n_ff", "n_embd", "ids", "dtype"),
    [
        (Q4_K_M, 256, 256, [[5]] * 3, torch.float32),
        ((formats.IQ4_NL, formats.Q8_0, formats.MXFP4), 96, 64, [[2]] * 3, torch.float16),
        # Three of six experts: one block exactly, more than one, less than one. Two ids count as the nearest that are.
        (F16, 40, 50, [[4, N_EXPERTS + 1]] * 16 + [[-1, 4]] * 3, torch.bfloat16),
    ],
    ids=["Q4_K_M", "mixed", "F16"],
)
def test_many_tokens(
    fmts: tuple[Format, Format, Format], n_ff: int, n_embd: int, ids: list[list[int]], dtype: torch.dtype
) -> None:
    mixture = Mixture.random(fmts, n_ff, n_embd, biased=fmts is F16)
    x, ids_, shares = sent(ids, n_embd, dtype)
    residual = torch.randn(len(x), n_embd).to(dtype).to(DEVICE)
    expected = mixture.expected(x, ids_.clamp(0, N_EXPERTS - 1), shares) + residual.cpu().double()
    assert error(mixture.layer("many")(x, ids_, shares, residual), expected) < TOLERANCE[dtype]


def test_many_tokens_in_integers() -> None:
    """One expert takes all; its second block has three tokens."""
    mixture = Mixture.random((formats.Q8_0,) * 3, 32, 64)
    arguments = sent([[3]] * 19, 64)
    found = mixture.layer("many int8", route="int8")(*arguments, units=quantize(arguments[0]))
    assert TOLERANCE[torch.float32] < error(found, mixture.expected(*arguments)) < 2 * INT8_TOLERANCE


# ---- the norm that follows ----


def some_norm(width: int, *, layer: bool = False, bias: bool = False, post: bool = False) -> NextNorm:
    weights = [torch.randn(width, device=DEVICE) if wanted else None for wanted in (True, bias, post)]
    return NextNorm(weights[0], 1e-5, weights[1], layer, weights[2], 1e-3)


def in_two_launches(
    layer: Experts, arguments: tuple[Tensor, Tensor, Tensor], residual: Tensor | None, by: NextNorm, form: Form
) -> tuple[Tensor, Tensor | Units | None]:
    if by.post_weight is None:
        return norm(layer(*arguments, residual), by, form=form)
    return norm(layer(*arguments), by, residual, form)


def check_normed(found: Any, expected: Any, bound: float, exactly: bool) -> None:
    """The stream and what was normed."""
    for a, b in zip(found, expected, strict=True):
        mine, others = (dequantized(given) if isinstance(given, Units) else given for given in (a, b))
        assert mine.dtype == others.dtype and error(mine, others) < bound
        if exactly:
            assert all(torch.equal(x, y) for x, y in ((mine, others), (getattr(a, "data", a), getattr(b, "data", b))))


@pytest.mark.parametrize("table", ["blocks", "many"])
@pytest.mark.parametrize(
    ("ids", "dtype", "form", "residual", "options"),
    [
        ([[N_EXPERTS, 2]], torch.bfloat16, "int8", True, {}),
        ([[-1, 0]], torch.float16, "spread", False, {"post": True}),
        ([[2, 5], [0, 0]], torch.float32, "plain", True, {"layer": True, "bias": True, "post": True}),
        ([[3], [4]], torch.float16, "plain", False, {"layer": True}),
    ],
    ids=["int8", "post", "all", "LayerNorm"],
)
def test_the_last_launch_norms(
    ids: list[list[int]],
    dtype: torch.dtype,
    form: Form,
    residual: bool,
    options: dict[str, bool],
    table: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As two launches would do it, experts side by side or one after the other; two blocks of outputs each."""
    mixture, by, arguments = Mixture.random(F16, 24, 72, biased=True), some_norm(72, **options), sent(ids, 72, dtype)
    added = torch.randn(len(ids), 72).to(dtype).to(DEVICE) if residual else None
    expected = in_two_launches(mixture.layer(table), arguments, added, by, form)
    monkeypatch.setattr(experts_module, "norm", None)
    for warps in (experts_module.WARPS, 0)[table == "many" or len(ids[0]) == 1 :]:
        monkeypatch.setattr(experts_module, "WARPS", warps)
        layer = mixture.layer(table)
        found = layer.with_norm(*arguments, added, by, form)
        assert not layer._counters.any() and not layer._arrived.any()
        bound = 3 * INT8_TOLERANCE if form == "int8" else TOLERANCE[dtype]
        check_normed(found, expected, bound, exactly=DEVICE.type == "cpu")


@pytest.mark.parametrize("table", ["few", "many"])
@pytest.mark.parametrize("post", [False, True])
def test_a_norm_in_a_launch_of_its_own(post: bool, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no program can hold; a post norm, or none at all, where nothing follows."""
    layer, arguments, by = Mixture.random(F16, 16, 72).layer(table), sent([[1, 2]], 72), some_norm(72, post=post)
    residual = torch.randn(1, 72, device=DEVICE)
    expected = in_two_launches(layer, arguments, residual, by, "plain")
    for limit in ("MAX_NORM_WIDTH", "MAX_BLOCK"):
        monkeypatch.setattr(experts_module, limit, 127)
    assert not layer._can_norm(2, "plain")
    check_normed(layer.with_norm(*arguments, residual, by, "plain"), expected, TOLERANCE[torch.float32], exactly=True)
    last = replace(by, weight=None)
    stream, normed = layer.with_norm(*arguments, residual, last, "plain")
    assert normed is None and error(stream, expected[0]) < TOLERANCE[torch.float32]


def test_a_norm_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a norm of 20 values, found one of 21"):
        Mixture.random(F16, 16, 20).layer("few").with_norm(*sent([[1]], 20), None, some_norm(21), "plain")


# ---- in other places ----


def test_a_shared_expert_is_a_stack_of_one() -> None:
    """The gate that Qwen2-MoE gives it is the share that a router of one expert finds."""
    mixture = Mixture.random((formats.Q8_0,) * 3, 32, 64)
    shared = Mixture(
        tuple(PackedWeight(w.format, (1, *w.shape[1:]), w.data[:1]) for w in mixture.stacks),
        tuple(twin[:1] for twin in mixture.twins),
        {},
    )
    gate, x, routed = torch.randn(1, 64), torch.randn(2, 64), torch.randn(2, 64)
    ids, shares = Router(gate.to(DEVICE), Routing(1, 1, "sigmoid", False, 1.0))(x.to(DEVICE))
    found = shared.layer("few")(x.to(DEVICE), ids, shares, routed.to(DEVICE))
    expected = routed + shared.expected(x, torch.zeros(2, 1), torch.sigmoid(x @ gate.T))
    assert error(found, expected) < TOLERANCE[torch.float32]


def test_experts_do_not_depend_on_neighbours() -> None:
    mixture = Mixture.random(F16, 24, 40)
    x, ids, shares = sent([[2]] * 3, 40)
    layer = mixture.layer("few", invariant=True)
    assert torch.equal(layer(x[2:], ids[2:], shares[2:]), layer(x, ids, shares)[2:])


def test_assignments_are_sorted_by_expert() -> None:
    layer = Mixture.random(F16, 16, 20).layer("many")
    ids = torch.randint(-2, N_EXPERTS + 2, (700, 4), dtype=torch.int32)  # more than the kernel takes at a time
    ids[ids == 3] = 2  # nobody goes there
    order, starts = layer._sort(ids.to(DEVICE))
    known = ids.flatten().clamp(0, N_EXPERTS - 1)
    assert torch.equal(order.cpu().long(), known.sort(stable=True).indices)
    assert starts.tolist() == [int((known < e).sum()) for e in range(N_EXPERTS + 1)]


def test_no_tokens() -> None:
    layer = Mixture.random(F16, 16, 20).layer("few")
    x, ids, shares = torch.zeros(0, 20), torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0, 2)
    arguments = x.to(DEVICE), ids.to(DEVICE), shares.to(DEVICE)
    assert layer(*arguments).shape == (0, 20)
    stream, normed = layer.with_norm(*arguments, x.to(DEVICE), some_norm(20), "int8")
    assert isinstance(normed, Units) and stream.shape == (0, 20) and len(normed) == 0


def test_kernels_by_the_number_of_assignments() -> None:
    """One assignment per expert at most goes to the matvec kernels, none where the table or the caller says so."""
    mixture = Mixture.random(F16, 16, 20)
    assert mixture.layer("few")._few == N_EXPERTS
    assert mixture.layer("many")._few == 0 and mixture.layer("few", invariant=True)._few == 0
    tiles = (replace(TILE, max_rows=16), replace(TILE, bm=64))
    layer = Experts(*mixture.stacks, activation="silu", table=replace(TABLE, tiles=tiles))
    assert [layer._tile(n).bm for n in (1, 16 * N_EXPERTS, 17 * N_EXPERTS)] == [16, 16, 64]


def test_stacks_that_do_not_fit_are_refused() -> None:
    gate, up, down = Mixture.random(F16, 16, 20).stacks
    with pytest.raises(ValueError, match=r"expected stacks .*found \[6, 16, 20\], \[6, 16, 20\], \[6, 16, 20\]"):
        Experts(gate, up, gate, activation="silu")
    with pytest.raises(ValueError, match=r"expected stacks .*found \[16, 20\]"):
        Experts(gate.expert(0), up, down, activation="silu")
    with pytest.raises(ValueError, match=r"expected down_bias \[6, 20\].*found \[6, 16\]"):
        Experts(gate, up, down, activation="silu", down_bias=torch.zeros(6, 16, device=DEVICE))


def test_arguments_that_do_not_fit_are_refused() -> None:
    layer = Mixture.random(F16, 16, 20).layer("few")
    x, ids, shares = sent([[1, 2]], 20)
    for arguments, message in (
        ((x[:, :19], ids, shares), r"expected x \[n, 20\] with unit stride.*found torch.float32 \[1, 19\]"),
        ((x.double(), ids, shares), "found torch.float64"),
        ((x, ids.long(), shares), r"expected ids \[1, 2\], torch.int32.*found torch.int64"),
        ((x, ids[0], shares), r"expected ids \[1, 2\].*found torch.int32 \[2\]"),
        ((x, ids, shares[:, :1]), r"expected shares \[1, 2\].*found torch.float32 \[1, 1\]"),
        ((x, ids, shares, x[:, :4]), r"expected residual \[1, 20\].*found torch.float32 \[1, 4\]"),
        ((x, ids, shares, None, ids), r"expected units \[1, 1, 88\].*found torch.int32 \[1, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(*arguments)
