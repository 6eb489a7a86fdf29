"""The fused small kernels of a layer (norms, rotation and cache, gates) and the tails of matrix-vector products."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from kernel_cases import DEVICE, INT8_TOLERANCE, ON_GPU, TOLERANCE, error, random_weight
from torch import Tensor

from naiad.quant import formats
from naiad.quant.cache_types import cache_type
from naiad.runtime.backends.torch import TorchOps
from naiad.runtime.cache import CachePages
from naiad.runtime.config import RopePairing
from naiad.runtime.engine.pages import PAGE_SIZE
from naiad.triton_kernels import linear
from naiad.triton_kernels.activations import (
    EXACT_SUMS,
    INT8_SCALES,
    INT8_SUMS,
    Form,
    Units,
    converted,
)
from naiad.triton_kernels.gates import Activation, glu, glu_reference
from naiad.triton_kernels.linear import Linear
from naiad.triton_kernels.norms import NextNorm, norm, norm_kernel
from naiad.triton_kernels.rope import RopeAndWrite
from naiad.triton_kernels.tuning import Tile, Vector, arch_of, tuning

pytestmark = [
    *ON_GPU,
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # integers wrap, as on a GPU
]

CPU = torch.device("cpu")
EPS = 1e-5
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
TABLE = tuning(arch_of(DEVICE))
TILE = Tile(max_rows=0, bn=32, bm=16, warps=4, stages=1, split=False, int8=False)
# Fat programs: of a few outputs one, or several.
MATVEC = replace(TABLE, vector=Vector(rows=256, warps=8, batch=2), matvec_rows=64, exact_rows=64)
SEVERAL = replace(MATVEC, vector=Vector(rows=64, warps=2, batch=2))
MATMUL = replace(TABLE, matvec_rows=0, exact_rows=0, tiles=(TILE,), shared=None, workspace_rows=1000)
WORKSPACE = replace(TABLE, matvec_rows=0, exact_rows=0, workspace_rows=1)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def numbers(given: Tensor | Units | None) -> Tensor:
    """What numbers or units stand for, float32 [m, n]; units past the row's end, and their sums, are checked."""
    assert given is not None
    if isinstance(given, Tensor):
        return given.cpu().float()
    words = given.data.cpu()
    m = len(words)
    if given.int8:
        q = words[:, :, :64].contiguous().view(torch.int8).view(m, -1, 8, 32).float()
        scales = words[:, :, 4 * INT8_SCALES.value :][:, :, :8].contiguous().view(torch.float32)
        values, sums = q * scales.unsqueeze(-1), words[:, :, 4 * INT8_SUMS.value :].contiguous().view(torch.float32)
    else:
        values, sums = words[:, :, :256].view(m, -1, 8, 32), words[:, :, 4 * EXACT_SUMS.value :]
    halves = values.unflatten(3, (2, 16)).sum(-1).flatten(2)
    torch.testing.assert_close(sums, halves, rtol=1e-5, atol=1e-5 * float(values.abs().max()))
    rows = values.flatten(1)
    assert not rows[:, given.n_in :].any()
    return rows[:, : given.n_in]


def bound(form: Form, dtype: torch.dtype) -> float:
    return INT8_TOLERANCE if form == "int8" else TOLERANCE[dtype]


# ---- norms ----


def norm_twin(x: Tensor, by: NextNorm, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    ops = TorchOps(CPU, x.dtype, None)
    stream = x.cpu()
    if by.post_weight is not None:
        stream = ops.norm(stream, by.post_weight.cpu(), by.post_eps)
    if residual is not None:
        stream = stream + residual.cpu()
    if by.weight is None:
        return stream, stream
    if not by.layer:
        return stream, ops.norm(stream, by.weight.cpu(), by.eps)
    bias = None if by.bias is None else by.bias.cpu()
    return stream, F.layer_norm(stream.float(), stream.shape[1:], by.weight.cpu(), bias, by.eps).to(x.dtype)


def some_norm(width: int, *, layer: bool = False, bias: bool = False, post: bool = False) -> NextNorm:
    return NextNorm(
        randn(width), EPS, randn(width) if bias else None, layer, randn(width) if post else None, 1e-3 if post else 0.0
    )


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "form", "residual", "options"),
    [
        (1, 72, torch.float32, "plain", False, {}),
        (1, 72, torch.bfloat16, "int8", True, {"post": True}),
        (3, 300, torch.float16, "plain", True, {}),
        (3, 300, torch.float32, "int8", True, {}),
        (3, 300, torch.bfloat16, "spread", True, {"layer": True, "bias": True}),
        (19, 2560, torch.bfloat16, "plain", True, {"post": True}),
        (1, 2560, torch.float16, "int8", False, {"layer": True}),
        (2, 2560, torch.float32, "spread", False, {"post": True}),
        (2, 2560, torch.float32, "plain", True, {"layer": True, "bias": True, "post": True}),
        (1, 1, torch.float32, "plain", True, {}),
        (1, 16385, torch.float32, "plain", True, {"layer": True, "bias": True, "post": True}),
        (2, 16385, torch.bfloat16, "int8", False, {}),
        (1, 16640, torch.float32, "spread", True, {}),
    ],
)
def test_norm(rows: int, width: int, dtype: torch.dtype, form: Form, residual: bool, options: dict[str, bool]) -> None:
    by = some_norm(width, **options)
    x = randn(2 * rows, width + 5, dtype=dtype)[::2, 3:-2] + 0.5
    added = 3 * randn(rows, width + 2, dtype=dtype)[:, :width] if residual else None
    stream, normed = norm(x, by, added, form)
    expected_stream, expected = norm_twin(x, by, added)
    assert stream.dtype == dtype and error(stream, expected_stream) < TOLERANCE[dtype]
    if by.post_weight is None:
        assert torch.equal(stream.cpu(), expected_stream)
        assert residual or stream is x
    assert error(numbers(normed), expected) < bound(form, dtype)
    assert not isinstance(normed, Units) or (normed.dtype, len(normed)) == (dtype, rows)


def test_norm_of_what_the_stream_was_rounded_to() -> None:
    """A bfloat16 stream rounds the sum by up to 2^-9; a norm of the sum itself would show."""
    x, residual, by = randn(3, 300, dtype=torch.bfloat16), 100 * randn(3, 300, dtype=torch.bfloat16), some_norm(300)
    stream, normed = norm(x, by, residual, "spread")
    assert by.weight is not None
    assert error(numbers(normed), F.rms_norm(stream.cpu().float(), (300,), by.weight.cpu(), EPS)) < 1e-6


def test_only_an_addition() -> None:
    x, residual = randn(3, 300, dtype=torch.float16), randn(3, 300, dtype=torch.float16)
    stream, normed = norm(x, NextNorm(None, 0.0), residual)
    assert normed is None and torch.equal(stream, x + residual)
    stream, normed = norm(x, NextNorm(None, 0.0))
    assert normed is None and stream is x


def test_norm_of_no_rows_and_of_zeros() -> None:
    by = some_norm(72)
    assert norm(randn(0, 72), by, form="int8")[1].data.shape[0] == 0  # type: ignore[union-attr]
    for form in get_args(Form):
        assert not numbers(norm(torch.zeros(1, 72, device=DEVICE), by, form=form)[1]).any()


# ---- gates ----


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("form", "dtype", "width"),
    [("plain", torch.bfloat16, 300), ("int8", torch.float16, 72), ("spread", torch.float32, 300)],
)
def test_glu(activation: Activation, form: Form, dtype: torch.dtype, width: int) -> None:
    gate, up = 3 * randn(3, width + 4, dtype=dtype)[:, :width], 5 * randn(6, width, dtype=dtype)[::2]
    expected = glu_reference(gate.cpu().double(), up.cpu().double(), activation)
    assert error(numbers(glu(gate, up, activation, form)), expected) < bound(form, dtype)


def test_glu_of_one_matrix() -> None:
    both = randn(3, 2 * 2560)
    gate, up = both.chunk(2, dim=1)
    assert error(numbers(glu(both, None, "silu")), F.silu(gate) * up) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_of_large_values_has_no_nan(activation: Activation) -> None:
    gate = torch.tensor([[0.0, 1e4, -1e4, 88.0, -89.0, 1e15, -1e15, -3e38]], device=DEVICE)
    found = numbers(glu(gate, torch.ones_like(gate), activation)).double()
    assert found.isfinite().all()
    torch.testing.assert_close(
        found, glu_reference(gate.double().cpu(), torch.ones_like(found), activation), rtol=1e-5, atol=1e-30
    )


def test_references_are_the_torch_backend() -> None:
    from naiad.runtime.config import Activation as Known

    gate, up, ops = torch.randn(2, 9), torch.randn(2, 9), TorchOps(CPU, torch.float32, None)
    assert torch.equal(glu_reference(gate, up, "silu"), ops.glu(gate, up, Known.SILU))
    assert torch.equal(glu_reference(gate, up, "gelu"), ops.glu(gate, up, Known.GELU_TANH))


# ---- rotation and cache ----

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ROPE_CASES: list[tuple[dict[str, Any], torch.dtype, int]] = [
    ({"heads": (5, 2, 128, 128), "rope_dim": 128, "pairing": "neox", "types": ("f32", "f16")}, F32, 3),
    ({"heads": (4, 4, 64, 64), "rope_dim": 64, "pairing": "norm", "types": ("bf16", "fp8")}, BF16, 2),
    ({"heads": (3, 1, 80, 96), "rope_dim": 20, "pairing": "neox", "types": ("f16", "bf16"), "normed": "qk"}, F16, 2),
    ({"heads": (2, 1, 20, 12), "rope_dim": 10, "pairing": "norm", "types": ("f32", "f32"), "normed": "k"}, F32, 1),
    ({"heads": (2, 1, 256, 192), "rope_dim": 256, "pairing": "neox", "types": ("q8_0", "q4_0"), "normed": "q"}, F16, 1),
    ({"heads": (6, 3, 32, 64), "rope_dim": 32, "pairing": "norm", "types": ("q4_1", "q5_0")}, F32, 2),
    ({"heads": (1, 1, 512, 96), "rope_dim": 64, "pairing": "neox", "types": ("q5_1", "iq4_nl")}, F32, 1),
    ({"heads": (2, 2, 64, 64), "rope_dim": 0, "pairing": "neox", "types": ("iq4_nl", "q8_0")}, F16, 2),
]  # fmt: skip


def rotation(
    heads: tuple[int, int, int, int], rope_dim: int, pairing: str, types: tuple[str, str], normed: str = ""
) -> RopeAndWrite:
    q_norm, k_norm = (randn(heads[2]) if name in normed else None for name in "qk")
    return RopeAndWrite(
        *heads,
        rope_dim=rope_dim,
        pairing=pairing,  # type: ignore[arg-type]
        k_type=types[0],
        v_type=types[1],
        q_norm=q_norm,
        k_norm=k_norm,
        eps=EPS,
    )


def caches(options: dict[str, Any], device: torch.device) -> tuple[CachePages, CachePages]:
    _, n_kv_heads, *dims = options["heads"]
    k, v = (
        CachePages.zeros(cache_type(name), 2, n_kv_heads, dim, device)
        for name, dim in zip(options["types"], dims, strict=True)
    )
    return k, v


@pytest.mark.parametrize(("options", "dtype", "n"), ROPE_CASES)
def test_rope_and_write(options: dict[str, Any], dtype: torch.dtype, n: int) -> None:
    layer = rotation(**options)
    qkv = 3 * randn(n, sum(layer.widths), dtype=dtype)
    theta = 10 * torch.randn(n, layer.rope_dim // 2)
    angles = (1.1 * theta.cos(), 1.1 * theta.sin()) if layer.rope_dim else None
    slots = torch.randperm(2 * PAGE_SIZE)[:n]
    found, expected = caches(options, DEVICE), caches(options, CPU)
    on_device = tuple(a.to(DEVICE) for a in angles) if angles else None
    turned = layer(*layer.split(qkv), on_device, slots.to(DEVICE), found[0].planes, found[1].planes)  # type: ignore[arg-type]

    ops = TorchOps(CPU, dtype, None)
    parts = (
        x.cpu().unflatten(1, (-1, dim))
        for x, dim in zip(layer.split(qkv), (layer.head_dim,) * 2 + (layer.v_dim,), strict=True)
    )
    q, k, v = parts
    q, k = (
        x if weight is None else ops.norm(x, weight.cpu(), EPS) for x, weight in ((q, layer.q_norm), (k, layer.k_norm))
    )
    if angles:
        q, k = (ops.rope(x, angles, RopePairing(options["pairing"])) for x in (q, k))
    expected[0].write(slots, k)
    expected[1].write(slots, v)
    assert turned.dtype == dtype and error(turned, q) < TOLERANCE[dtype]
    # A GPU multiplies and adds at once, and sums in another order: what is rounded after that may fall elsewhere.
    exact = layer.k_norm is None and (DEVICE.type == "cpu" or not angles)
    for plane, twin in zip(found[0].planes, expected[0].planes, strict=True):
        assert not exact or torch.equal(plane.cpu(), twin)
    written = tuple(plane.cpu() for plane in found[0].planes)
    twins = found[0].type.decode(expected[0].planes, torch.float32)
    quantum = 0.01 if found[0].type.bits or options["types"][0] == "fp8" else TOLERANCE[dtype]
    assert error(found[0].type.decode(written, torch.float32), twins) < quantum
    for plane, twin in zip(found[1].planes, expected[1].planes, strict=True):
        assert torch.equal(plane.cpu(), twin)


def test_separate_tensors_and_slots_outside_of_the_cache() -> None:
    options: dict[str, Any] = {"heads": (2, 1, 32, 64), "rope_dim": 16, "pairing": "neox", "types": ("f32", "q8_0")}
    layer, n = rotation(**options), 4
    q, k, v = (randn(2 * n, width + 3)[::2, 1:-2] for width in layer.widths)
    angles = randn(n, 8), randn(n, 8)
    slots = torch.tensor([-1, 2 * PAGE_SIZE, 2 * PAGE_SIZE - 1, 5], device=DEVICE)
    cache, alone = caches(options, DEVICE), caches(options, DEVICE)
    turned = layer(q, k, v, angles, slots, cache[0].planes, cache[1].planes)
    for i in (2, 3):
        one = slice(i, i + 1)
        single = layer(
            *layer.split(torch.cat((q[one], k[one], v[one]), 1)),
            (angles[0][one], angles[1][one]),
            slots[one],
            alone[0].planes,
            alone[1].planes,
        )
        assert torch.equal(single, turned[one])
    for side, other in zip(cache, alone, strict=True):
        assert all(torch.equal(plane, twin) for plane, twin in zip(side.planes, other.planes, strict=True))
    assert turned.isfinite().all()


# ---- the linear layer: units in and out ----


def small_layer(n_out: int, count: int = 1, **options: Any) -> Linear:
    return Linear([random_weight(formats.Q8_0, n_out, 256)[0] for _ in range(count)], **{"table": MATVEC, **options})


@pytest.mark.parametrize(("route", "rows"), [("int8", 2), ("exact", 1)])
def test_units_in_place_of_numbers(route: str, rows: int) -> None:
    layer, x = small_layer(21, route=route), randn(rows, 256, dtype=torch.bfloat16)
    form = layer.form(rows)
    assert form == ("int8" if route == "int8" else "spread")
    found = layer(converted(x, form))
    assert found.dtype == x.dtype and torch.equal(found, layer(x))


def test_the_form_that_is_read() -> None:
    assert [small_layer(8, table=TABLE).form(m) for m in (0, 1, 8, 9)] == ["plain", "int8", "int8", "plain"]
    assert [small_layer(8, table=TABLE, route="exact").form(m) for m in (1, 2)] == ["spread", "plain"]
    assert small_layer(8, batch_invariant=True).form(1) == "plain"
    assert Linear([random_weight(formats.F32, 8, 256)[0]]).form(1) == "plain"


@pytest.mark.parametrize("activation", ["gelu_erf", "swiglu_oai"])
def test_gated_matvec_with_a_bias(activation: Activation) -> None:
    (gate, gate_twin), (up, up_twin) = random_weight(formats.F16, 72, 256), random_weight(formats.F16, 72, 256)
    bias, x = randn(144), 2 * randn(1, 256)
    layer = Linear([gate, up], bias=bias, activation=activation, route="exact", table=MATVEC)
    opened, raised = (x.cpu().double() @ torch.cat((gate_twin, up_twin)).double().T + bias.cpu()).chunk(2, dim=1)
    expected = glu_reference(opened, raised, activation)
    assert error(layer(x), expected) < 3 * TOLERANCE[x.dtype]
    assert error(numbers(layer.gated(x, "spread")), expected) < 3 * TOLERANCE[x.dtype]


@pytest.mark.parametrize("table", [MATMUL, WORKSPACE, replace(MATMUL, tiles=(replace(TILE, split=True),))])
def test_gated_matmul_with_a_bias(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.triton_kernels.linear.multiprocessors", lambda device: 8)
    (gate, gate_twin), (up, up_twin) = random_weight(formats.F16, 20, 512), random_weight(formats.F16, 20, 512)
    bias, x = randn(40), randn(3, 512)
    opened, raised = (x.cpu().double() @ torch.cat((gate_twin, up_twin)).double().T + bias.cpu()).chunk(2, dim=1)
    layer = Linear([gate, up], bias=bias, activation="swiglu_oai", route="exact", table=table)
    assert error(layer(x), glu_reference(opened, raised, "swiglu_oai")) < 4 * TOLERANCE[x.dtype]


@pytest.mark.parametrize(
    ("rows", "n_out", "form", "route", "table"),
    [(2, 72, "int8", "int8", MATVEC), (1, 300, "spread", "int8", MATVEC), (2, 20, "int8", "exact", MATMUL)],
)
def test_gated_pair_in_the_form_of_the_next_layer(rows: int, n_out: int, form: Form, route: str, table: Any) -> None:
    layer, x = small_layer(n_out, 2, activation="silu", route=route, table=table), randn(rows, 256)
    assert error(numbers(layer.gated(x, form)), layer(x)) < bound(form, x.dtype)


# ---- the linear layer: the norm that follows ----


@pytest.mark.parametrize(
    ("rows", "dtype", "form", "route", "residual", "options"),
    [
        (1, torch.bfloat16, "int8", "int8", True, {}),
        (1, torch.float16, "spread", "exact", True, {"post": True}),
        (2, torch.float32, "plain", "int8", False, {"layer": True, "bias": True, "post": True}),
    ],
)
def test_the_last_program_norms(
    rows: int, dtype: torch.dtype, form: Form, route: str, residual: bool, options: dict[str, bool]
) -> None:
    """Twice, because the count of programs must be zero again; and as two launches would do it."""
    layer, by = small_layer(72, route=route, bias=randn(72), table=SEVERAL), some_norm(72, **options)
    assert layer._can_norm(rows, 8)
    x = randn(rows, 256, dtype=dtype)
    added = randn(rows, 72, dtype=dtype) if residual else None
    y, left = (layer(x, added), None) if by.post_weight is None else (layer(x), added)
    expected_stream, expected = norm(y, by, left, form)
    for _ in range(2):
        stream, normed = layer.with_norm(x, added, by, form)
        assert not layer._arrived.any()
        assert error(stream, expected_stream) < TOLERANCE[dtype]
        assert error(numbers(normed), numbers(expected)) < bound(form, dtype)
        if DEVICE.type == "cpu":
            assert torch.equal(stream, expected_stream) and torch.equal(numbers(normed), numbers(expected))


@pytest.mark.parametrize("post", [False, True])
def test_a_norm_in_a_launch_of_its_own(post: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, residual, by = small_layer(72), randn(2, 256), randn(2, 72), some_norm(72, post=post)
    expected = layer.with_norm(x, residual, by, "plain")
    monkeypatch.setattr(linear, "MAX_NORM_WIDTH", 64)
    assert not layer._can_norm(2, 8)
    found = layer.with_norm(x, residual, by, "plain")
    assert all(error(numbers(a), numbers(b)) < 1e-6 for a, b in zip(found, expected, strict=True))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that have been launched."""
    names: list[str] = []
    stock = type(norm_kernel).run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(self.fn.__name__)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(type(norm_kernel), "run", run)
    return names


def test_launches_of_a_layer_at_one_row(launches: list[str]) -> None:
    """Five beside attention: no other than these read or write activations."""
    rope = rotation((2, 1, 32, 32), 32, "neox", ("f16", "f16"))
    cache = CachePages.zeros(cache_type("f16"), 1, 1, 32, DEVICE)
    attn_qkv, attn_output = small_layer(128), small_layer(256)
    ffn, ffn_down = small_layer(256, 2, activation="silu"), small_layer(256)
    by = some_norm(256)
    x, attended = randn(1, 256, dtype=torch.bfloat16), converted(randn(1, 256, dtype=torch.bfloat16), "int8")
    _, h = norm(x, by, form=attn_qkv.form(1))
    launches.clear()
    assert h is not None
    angles, slots = (torch.ones(1, 16, device=DEVICE),) * 2, torch.zeros(1, dtype=torch.int64, device=DEVICE)
    rope(*rope.split(attn_qkv(h)), angles, slots, cache.planes, cache.planes)
    x, h = attn_output.with_norm(attended, x, by, ffn.form(1))
    assert h is not None
    x, h = ffn_down.with_norm(ffn.gated(h, ffn_down.form(1)), x, by, attn_qkv.form(1))
    products = ["matvec_kernel", "matvec_norm_kernel", "matvec_glu_units_kernel", "matvec_norm_kernel"]
    assert launches == [products[0], "rope_kernel", *products[1:]]
    assert isinstance(h, Units) and numbers(h).isfinite().all()


# ---- bad input ----


def test_norms_that_do_not_fit_are_refused() -> None:
    x, by = randn(2, 72), some_norm(72)
    with pytest.raises(ValueError, match=r"float32 \[width\].*found torch.float16 \[72\]"):
        NextNorm(randn(72, dtype=torch.float16), EPS)
    with pytest.raises(ValueError, match=r"of one width.*\[72\].*\[73\]"):
        NextNorm(randn(72), EPS, post_weight=randn(73))
    with pytest.raises(ValueError, match="bias beside a LayerNorm"):
        NextNorm(randn(72), EPS, randn(72))
    with pytest.raises(ValueError, match=r"expected x \[m, 72\].*found torch.float32 \[2, 71\]"):
        norm(x[:, 1:], by)
    with pytest.raises(ValueError, match="expected x"):
        norm(randn(72, 72).T, by)
    with pytest.raises(ValueError, match=r"expected a residual torch.float32 \[2, 72\].*found torch.float16"):
        norm(x, by, randn(2, 72, dtype=torch.float16))
    with pytest.raises(ValueError, match="expected a norm of 72 values, found one of 71"):
        small_layer(72).with_norm(randn(1, 256), None, some_norm(71), "plain")


def test_gates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"side by side, \[m, 2 k\], found \[2, 71\]"):
        glu(randn(2, 71), None, "silu")
    with pytest.raises(ValueError, match=r"a gate and an up.*\[2, 72\].*\[2, 71\]"):
        glu(randn(2, 72), randn(2, 71), "silu")
    with pytest.raises(ValueError, match="with unit stride"):
        glu(randn(72, 2).T, randn(2, 72), "silu")
    with pytest.raises(ValueError, match=r"and a bias: expected a bias \[144\].*found \[72\]"):
        small_layer(72, 2, activation="silu", bias=randn(72))


def test_units_that_do_not_fit_are_refused() -> None:
    layer = small_layer(8, table=TABLE)
    for x in (converted(randn(1, 300), "int8"), converted(randn(1, 256), "spread"), converted(randn(9, 256), "int8")):
        with pytest.raises(ValueError, match=r"expected 256 values per row as .*found units of"):
            layer(x)


def test_rotations_that_do_not_fit_are_refused() -> None:
    options: dict[str, Any] = {"heads": (2, 1, 32, 32), "rope_dim": 32, "pairing": "neox", "types": ("f16", "q8_0")}
    for change, message in (
        ({"rope_dim": 34}, "expected an even part of a head to rotate.*found 34 of 32"),
        ({"rope_dim": 3}, "found 3 of 32"),
        ({"pairing": "both"}, "found 32 of 32, 'both'"),
        ({"heads": (2, 1, 513, 32)}, "expected heads of 1 … 512 values, found 513 and 32"),
        ({"heads": (2, 1, 32, 40)}, "q8_0 cache needs heads of a multiple of 32 values, found 40"),
        ({"types": ("f16", "q3")}, "found 'q3'"),
    ):
        with pytest.raises(ValueError, match=message):
            rotation(**{**options, **change})
    layer, (k, v) = rotation(**options), caches(options, DEVICE)
    qkv, slots, angles = randn(1, 128), torch.zeros(1, dtype=torch.int64, device=DEVICE), (randn(1, 16), randn(1, 16))
    with pytest.raises(ValueError, match=r"\[n, 128\], found \[1, 127\]"):
        layer.split(qkv[:, 1:])
    parts = layer.split(qkv)
    with pytest.raises(ValueError, match=r"expected q, k or v \[1, 32\]"):
        layer(parts[0], parts[1].half(), parts[2], angles, slots, k.planes, v.planes)
    with pytest.raises(ValueError, match=r"expected slots int64 \[1\]"):
        layer(*parts, angles, slots.int(), k.planes, v.planes)
    with pytest.raises(ValueError, match=r"expected angles float32 \[1, 16\]"):
        layer(*parts, (angles[0][:, 1:], angles[1]), slots, k.planes, v.planes)
    for planes in ((v.planes, k.planes), (k.planes, tuple(plane[:1] for plane in v.planes))):
        with pytest.raises(ValueError, match="expected planes of the cache"):
            layer(*parts, angles, slots, *planes)
    with pytest.raises(ValueError, match=r"a norm float32 \[32\], found torch.float32 \[31\]"):
        RopeAndWrite(2, 1, 32, 32, rope_dim=0, pairing="neox", k_type="f16", v_type="f16", q_norm=randn(31))
