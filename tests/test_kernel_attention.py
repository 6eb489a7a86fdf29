"""Attention over a paged cache against its twin in torch: masks, lengths, pages, cache types, head sizes, forms."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from kernel_cases import DEVICE, ON_GPU, TOLERANCE, error
from torch import Tensor

from naiad.quant.cache_types import CACHE_TYPES, cache_type
from naiad.triton_kernels.activations import Units, quantize
from naiad.triton_kernels.attention import Attention, AttentionShape, PageTables
from naiad.triton_kernels.tuning import arch_of, tuning

pytestmark = [*ON_GPU, pytest.mark.usefixtures("poisoned")]

TABLE = tuning(arch_of(DEVICE))
SHAPE = AttentionShape(n_heads=4, n_kv_heads=2, head_dim=32, v_dim=32, scale=0.2)
# (new tokens, length) of sequences: a first token, a prompt, a decoding step, a prompt's second part, nothing to do.
MIXED = ((1, 1), (37, 37), (1, 90), (23, 70), (0, 5), (3, 41), (0, 0))


@dataclass(frozen=True)
class Case:
    """A batch: what is computed over which cache.

    q_size: that of queries, which the scale makes up for. v_sizes: those of the parts of a head's values.
    """

    shape: AttentionShape = SHAPE
    sequences: tuple[tuple[int, int], ...] = MIXED
    k_type: str = "f32"
    v_type: str = "f32"
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    sinks: bool = False
    q_size: float = 1.0
    v_sizes: tuple[float, ...] = (1.0,)
    options: dict[str, Any] = field(default_factory=dict)


def reference(q: Tensor, keys: Tensor, values: Tensor, shape: AttentionShape, sinks: Tensor | None) -> Tensor:
    """q [n, n_heads, head_dim] of a sequence's last n tokens -> [n, n_heads * v_dim], in float64."""
    n, length, group = len(q), len(keys), shape.n_heads // shape.n_kv_heads
    keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("nhd,khd->hnk", q.double(), keys) * shape.scale
    if shape.softcap:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    p, k = torch.arange(length - n, length)[:, None], torch.arange(length)[None]
    seen = k <= p if shape.causal else torch.full((n, length), True)
    if shape.window:
        seen &= (k > p - shape.window) if shape.causal else (p - k).abs() <= shape.window // 2
    if shape.chunk:
        seen &= k >= p // shape.chunk * shape.chunk
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        extra = sinks.double()[:, None, None].expand(-1, n, 1)
        scores = torch.cat((scores, extra), -1)
    weights = scores.softmax(-1)[..., :length]
    return torch.einsum("hnk,khd->nhd", weights, values).flatten(1)


def random_pages(case: Case) -> list[list[int]]:
    """Pages in no order, some of them nobody's."""
    counts = [-(-length // case.page_size) for _, length in case.sequences]
    pages = (torch.randperm(sum(counts) + 3)).tolist()
    return [[pages.pop() for _ in range(count)] for count in counts]


def run(case: Case, form: str = "plain") -> tuple[Tensor | Units, Tensor]:
    """What the kernels give, and what is expected."""
    shape, page_size = case.shape, case.page_size
    pages = random_pages(case)
    n_pages = sum(map(len, pages)) + 3
    kinds = ((cache_type(case.k_type), shape.head_dim), (cache_type(case.v_type), shape.v_dim))
    cache = []
    for (kind, width), sizes in zip(kinds, ((1.0,), case.v_sizes), strict=True):
        numbers = torch.randn(n_pages * page_size, shape.n_kv_heads, len(sizes), width // len(sizes))
        numbers = (numbers * torch.tensor(sizes)[:, None]).flatten(2)
        planes = kind.encode(numbers.to(case.dtype).float())
        cache.append([plane.unflatten(0, (n_pages, page_size)) for plane in planes])
    starts = [sum(n for n, _ in case.sequences[:i]) for i in range(len(case.sequences) + 1)]
    q = (torch.randn(starts[-1], shape.n_heads, shape.head_dim) * case.q_size).to(case.dtype)
    shape = replace(shape, scale=shape.scale / case.q_size)
    sinks = torch.randn(shape.n_heads) if case.sinks else None
    expected = []
    for i, (n, length) in enumerate(case.sequences):
        parts: list[Tensor] = []
        for (kind, width), in_pages in zip(kinds, cache, strict=True):
            rows = tuple(plane[pages[i]].flatten(0, 1)[:length] for plane in in_pages)
            parts.append(kind.decode(rows, torch.float32).view(length, shape.n_kv_heads, width).to(case.dtype))
        keys, values = parts
        expected.append(reference(q[starts[i] : starts[i] + n], keys, values, shape, sinks))
    _poison_unused(cache, pages, case)
    tables = PageTables.build(
        [(starts[i], starts[i] + n, length, pages[i]) for i, (n, length) in enumerate(case.sequences)],
        page_size,
        n_pages,
        DEVICE,
    )
    options = {"table": TABLE, **case.options}
    on_device = sinks.to(DEVICE) if sinks is not None else None
    attention = Attention(shape, kinds[0][0], kinds[1][0], DEVICE, sinks=on_device, **options)
    k, v = (tuple(plane.to(DEVICE) for plane in planes) for planes in cache)
    return attention(q.to(DEVICE), k, v, tables, form), torch.cat(expected)  # type: ignore[arg-type]


def _poison_unused(cache: list[list[Tensor]], pages: list[list[int]], case: Case) -> None:
    """What no sequence has written is NaN, or bits that no kernel could take for zeros."""
    for planes in cache:
        for plane in planes:
            used = torch.zeros(plane.shape[:2], dtype=torch.bool)
            for of_one, (_, length) in zip(pages, case.sequences, strict=True):
                places = torch.arange(len(of_one) * case.page_size).view(-1, case.page_size) < length
                used[of_one] = places
            plane[~used] = torch.nan if plane.is_floating_point() else 0x7F


def check(case: Case, bound: float | None = None) -> None:
    found, expected = run(case)
    assert isinstance(found, Tensor)
    assert error(found, expected) < (bound or TOLERANCE[case.dtype])


BOTH = {"few": 0}, {"few": 1000}

MASKS = {
    "causal": SHAPE,
    "window": replace(SHAPE, window=11),
    "chunk": replace(SHAPE, chunk=24),
    "bidirectional": replace(SHAPE, causal=False),
    "symmetric window": replace(SHAPE, causal=False, window=14),
    "softcap": replace(SHAPE, softcap=1.5, scale=1.0),
    "window and softcap": replace(SHAPE, softcap=3.0, window=40),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", BOTH, ids=["prefill", "decode"])
def test_masks(mask: str, options: dict[str, Any]) -> None:
    check(Case(MASKS[mask], options=options))


@pytest.mark.parametrize("options", BOTH, ids=["prefill", "decode"])
def test_sinks(options: dict[str, Any]) -> None:
    check(Case(replace(SHAPE, window=20), sinks=True, options=options))


def test_a_mixed_batch_takes_both_kernels() -> None:
    check(Case())


HEADS = [
    *((4, 2, size, size) for size in (64, 80, 96, 128, 256)),
    *((6, 2, 192, 128), (6, 1, 12, 12), (7, 1, 20, 20), (2, 2, 16, 48)),
]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("options", BOTH, ids=["prefill", "decode"])
def test_head_sizes_and_groups(heads: tuple[int, int, int, int], options: dict[str, Any]) -> None:
    check(Case(AttentionShape(*heads, scale=heads[2] ** -0.5), ((9, 9), (1, 40), (5, 33)), options=options))


TYPES = list(CACHE_TYPES)


@pytest.mark.parametrize(("k_type", "v_type"), [*zip(TYPES, TYPES[3:] + TYPES[:3], strict=True), ("q4_0", "q4_0")])
def test_cache_types(k_type: str, v_type: str) -> None:
    """Every type once for keys and once for values, read by either kernel."""
    check(Case(sequences=((1, 60), (20, 34)), k_type=k_type, v_type=v_type), 2e-6)


# 16-bit queries meet quants in f16 and bf16 in bf16, also where keys and values differ.
TYPES_OF_16_BITS = [
    *((name, name) for name in TYPES if name != "f32"),
    ("bf16", "q4_0"),
    ("q8_0", "bf16"),
    ("f16", "f32"),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("k_type", "v_type"), TYPES_OF_16_BITS)
def test_16_bits(dtype: torch.dtype, k_type: str, v_type: str) -> None:
    case = Case(sequences=((1, 60), (20, 34)), k_type=k_type, v_type=v_type, dtype=dtype)
    check(case, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("q_size", [1e-30, 1e30])
@pytest.mark.parametrize("kind", ["f16", "fp8", "q8_0", "q5_1"])
def test_sizes_that_f16_does_not_hold(kind: str, q_size: float) -> None:
    """Queries of bf16, and values from denormal to the largest: each part of a head is as exact as others."""
    shape, sizes = replace(SHAPE, head_dim=64, v_dim=64), (1e-5, 1e4) if kind != "fp8" else (0.02, 80.0)
    case = Case(shape, ((1, 60), (20, 34)), kind, kind, dtype=torch.bfloat16, q_size=q_size, v_sizes=sizes)
    found, expected = run(case)
    assert isinstance(found, Tensor)
    for part, wanted in zip(
        found.unflatten(1, (-1, 2, 32)).unbind(2), expected.unflatten(1, (-1, 2, 32)).unbind(2), strict=True
    ):
        assert error(part, wanted) < 2 * TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("page_size", [1, 3, 64])
def test_page_sizes(page_size: int) -> None:
    check(Case(page_size=page_size))


def test_many_sequences() -> None:
    lengths = torch.randint(1, 70, (32,)).tolist()
    check(Case(sequences=tuple((1, n) for n in lengths)))


def test_more_chunks_than_are_read_at_once() -> None:
    check(Case(sequences=((1, 700), (2, 1000)), sinks=True))


def test_a_result_does_not_depend_on_the_batch() -> None:
    q = torch.randn(3, 4, 32, device=DEVICE)
    k, v = ((torch.randn(20, 16, 2, 32, device=DEVICE),) for _ in range(2))
    pages = [list(range(13)), [13], list(range(14, 20))]
    attention = Attention(SHAPE, cache_type("f32"), cache_type("f32"), DEVICE, table=TABLE)

    def attend(first: int, lengths: list[int]) -> Tensor:
        n = len(lengths)
        sequences = [(i, i + 1, lengths[i], pages[first + i]) for i in range(n)]
        out = attention(q[first : first + n], k, v, PageTables.build(sequences, 16, 20, DEVICE))
        assert isinstance(out, Tensor)
        return out

    together = attend(0, [200, 7, 90])
    assert torch.equal(together[:1], attend(0, [200]))
    assert torch.equal(together[2:], attend(2, [90]))


@pytest.mark.parametrize("options", BOTH, ids=["prefill", "decode"])
def test_output_as_units(options: dict[str, Any]) -> None:
    shape = AttentionShape(8, 2, 32, 32, 0.2)
    case = Case(shape, ((1, 60), (5, 34)), options=options)
    torch.manual_seed(3)
    plain, _ = run(case)
    torch.manual_seed(3)
    units, _ = run(case, "int8")
    assert isinstance(plain, Tensor) and isinstance(units, Units)
    assert (units.int8, units.n_in, units.dtype) == (True, 256, torch.float32)
    assert torch.equal(units.data, quantize(plain))


BAD_TABLES = {
    "rows from 0": ((1, 3, 4, [0]),),
    "rows from 2": ((0, 2, 2, [0]), (3, 4, 4, [1])),
    "length that its pages hold": ((0, 2, 17, [0]),),
    "length 1 with 2 new": ((0, 2, 1, [0]),),
    "pages 0 … 3, found 4": ((0, 2, 2, [4]),),
    "found -1": ((0, 2, 2, [-1]),),
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_bad_page_tables_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PageTables.build(BAD_TABLES[message], 16, 4, DEVICE)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="6 heads cannot share 4 kv heads"):
        AttentionShape(6, 4, 64, 64, 1.0)
    with pytest.raises(ValueError, match="1 … 512 values, found 640"):
        AttentionShape(4, 4, 640, 64, 1.0)
    with pytest.raises(ValueError, match="chunks need causal"):
        AttentionShape(4, 4, 64, 64, 1.0, chunk=8, causal=False)
    f16 = cache_type("f16")
    with pytest.raises(ValueError, match="q8_0 cache needs heads"):
        Attention(AttentionShape(4, 4, 80, 80, 1.0), cache_type("q8_0"), f16, DEVICE)
    with pytest.raises(ValueError, match=r"expected sinks \[4\]"):
        Attention(SHAPE, f16, f16, DEVICE, sinks=torch.zeros(3, device=DEVICE))
    attention = Attention(SHAPE, f16, f16, DEVICE)
    tables = PageTables.build([(0, 1, 1, [0])], 16, 1, DEVICE)
    plane = torch.zeros(1, 16, 2, 32, dtype=torch.float16, device=DEVICE)
    q = torch.zeros(1, 4, 32, device=DEVICE)
    with pytest.raises(ValueError, match=r"expected q \[1, 4, 32\]"):
        attention(q[:, :, :16], (plane,), (plane,), tables)
    with pytest.raises(ValueError, match="expected planes"):
        attention(q, (plane,), (plane.float(),), tables)
    with pytest.raises(ValueError, match="expected one of the forms"):
        attention(q, (plane,), (plane,), tables, "int8")
