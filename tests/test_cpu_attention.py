"""Attention on a CPU and what goes before it, against the torch backend and CacheType's encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cpu_kernels import cpu_team
from torch import Tensor

from naiad.quant.cache_types import CACHE_TYPES, CacheType, cache_type
from naiad.runtime.backends.torch import TorchOps, attend
from naiad.runtime.config import RopePairing
from naiad.runtime.cpu_kernels.attention import Attention
from naiad.runtime.cpu_kernels.attention_tables import Angles, StepTables
from naiad.runtime.cpu_kernels.cache import plane_addresses, row_reader
from naiad.runtime.cpu_kernels.kernel import kernel_family, this_host
from naiad.runtime.cpu_kernels.language import inline
from naiad.runtime.cpu_kernels.programs import Program
from naiad.runtime.cpu_kernels.rope import Pairing, RopeAndWrite
from naiad.runtime.cpu_kernels.scalars import load_int
from naiad.runtime.ops import AttentionParams

PAGE_SIZE = 32
OWN = this_host().isa.name
TYPES = list(CACHE_TYPES)
Planes = tuple[Tensor, ...]


def empty_planes(kind: CacheType, n_pages: int, n_kv_heads: int, head_dim: int) -> Planes:
    """Pages of what no kernel could take for zeros."""
    shape = (n_pages, PAGE_SIZE, n_kv_heads)
    return tuple(
        torch.full((*shape, n), torch.nan if d.is_floating_point else 0x7F, dtype=d) for n, d in kind.planes(head_dim)
    )


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def numbers(n: int, *shape: int) -> Tensor:
    """Rows of ordinary numbers, of tiny and large ones, of zeros, of one sign, and with ties."""
    x = torch.randn(n, *shape) * torch.logspace(-3, 2, n).view(n, *[1] * len(shape))
    x[0] = 0
    x[1] = x[1].abs() + 1
    x[2] = -x[2].abs()
    x[3, ..., :8] = torch.tensor([8.0, -8.0, 0.5, -0.5, 1.5, 2.5, 7.5, -7.5])
    x[3, ..., 8:] = 0.25
    x[4, ..., :6] = torch.tensor([449.0, -1e5, 2**-9, 2**-10, 3 * 2**-10, 0.0155])
    return x


# ---- attention ----

# New tokens and length of sequences: a first token, a prompt, a decoding step, a prompt's second part, nothing to do, a
# few tokens, an end of a page, a long one whose keys are divided.
MIXED = ((1, 1), (37, 37), (1, 90), (23, 70), (0, 5), (3, 41), (0, 0), (1, 64), (1, 601), (30, 577))
SHAPE = AttentionParams(n_heads=8, n_kv_heads=2, head_dim=64, scale=0.15)


@dataclass(frozen=True)
class Case:
    """A batch: what is computed over which cache."""

    shape: AttentionParams = SHAPE
    sequences: tuple[tuple[int, int], ...] = MIXED
    k_type: str = "f16"
    v_type: str = "f16"
    isa: str = OWN
    n_threads: int = 2


def cache_and_pages(case: Case) -> tuple[list[Planes], list[list[int]]]:
    """Keys and values, of which only those that queries see are numbers, on pages in no order."""
    shape = case.shape
    counts = [-(-length // PAGE_SIZE) for _, length in case.sequences]
    order = (1 + torch.randperm(sum(counts) + 2)).tolist()
    pages = [[order.pop() for _ in range(count)] for count in counts]
    cache = []
    for name in (case.k_type, case.v_type):
        kind = cache_type(name)
        planes = empty_planes(kind, sum(counts) + 3, shape.n_kv_heads, shape.head_dim)
        for own, (_, length) in zip(pages, case.sequences, strict=True):
            written = kind.encode(torch.randn(length, shape.n_kv_heads, shape.head_dim))
            slots = (torch.tensor(own)[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten()[:length]
            for plane, part in zip(planes, written, strict=True):
                plane.flatten(0, 1)[slots.long()] = part
        cache.append(planes)
    return cache, pages


def expected_rows(case: Case, q: Tensor, cache: list[Planes], pages: list[list[int]]) -> Tensor:
    """What the torch backend computes, in the open and in float64."""
    rows, start = [], 0
    for own, (n, length) in zip(pages, case.sequences, strict=True):
        if n:
            keys, values = (
                cache_type(name).decode(tuple(p[own].flatten(0, 1)[:length] for p in planes), torch.float32).double()
                for name, planes in zip((case.k_type, case.v_type), cache, strict=True)
            )
            rows.append(attend(q[start : start + n].double(), keys, values, case.shape, fused=False))
        start += n
    return torch.cat(rows).float()


def table_of(case: Case, pages: list[list[int]]) -> Tensor:
    """Pages that a window has let go of are 0."""
    table = torch.zeros(len(pages), max(map(len, pages)) + 1, dtype=torch.int32)
    for i, (own, (n, length)) in enumerate(zip(pages, case.sequences, strict=True)):
        table[i, : len(own)] = int32(own)
        if case.shape.window:
            table[i, : max(0, length - n - case.shape.window + 1) // PAGE_SIZE] = 0
    return table


def attended(case: Case, q: Tensor, cache: list[Planes], table: Tensor) -> Tensor:
    """What the kernels give for a batch whose sequences have the pages of a table."""
    shape = case.shape
    starts = int32([sum(n for n, _ in case.sequences[:i]) for i in range(len(case.sequences) + 1)])
    # A row of what comes before attention holds more than q.
    wide = torch.full((len(q), shape.n_heads + 3, shape.head_dim), torch.nan)
    wide[:, : shape.n_heads] = q
    out = torch.full((len(q), shape.n_heads + 1, shape.head_dim), torch.nan)
    compiler, team = cpu_team(case.isa)
    program, tables = Program(compiler), StepTables(shape.n_heads, shape.head_dim)
    attention = Attention(shape, cache_type(case.k_type), cache_type(case.v_type), PAGE_SIZE)
    strides = [4 * x.stride(0) for x in (wide, out)]
    attention.add(program, wide.data_ptr(), strides[0], out.data_ptr(), strides[1], tables, cache[0], cache[1])
    lengths = int32([length for _, length in case.sequences])
    tables.set(torch.zeros(len(q), dtype=torch.int64), starts, lengths, table)
    team.run(program, case.n_threads)
    assert out[:, shape.n_heads :].isnan().all()
    return out[:, : shape.n_heads]


def run(case: Case) -> tuple[Tensor, Tensor]:
    """What the kernels give, and what is expected."""
    cache, pages = cache_and_pages(case)
    q = torch.randn(sum(n for n, _ in case.sequences), case.shape.n_heads, case.shape.head_dim)
    return attended(case, q, cache, table_of(case, pages)), expected_rows(case, q, cache, pages)


def check(case: Case, tolerance: float = 3e-6) -> None:
    found, expected = run(case)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def shaped(n_heads: int = 8, n_kv_heads: int = 2, head_dim: int = 64, **rest: float) -> AttentionParams:
    return AttentionParams(n_heads, n_kv_heads, head_dim, **{"scale": head_dim**-0.5, **rest})


MASKS = {
    "causal": SHAPE,
    "window": shaped(window=11),
    "a window of pages": shaped(window=96),
    "a window of one": shaped(window=1),
    "softcap": shaped(softcap=1.5, scale=1.0),
    "window and softcap": shaped(softcap=3.0, window=40),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_masks(mask: str, n_threads: int) -> None:
    check(Case(MASKS[mask], n_threads=n_threads))


# Every size of a head, sizes of groups that registers hold whole or not, and pairs of types.
@pytest.mark.parametrize(
    ("shape", "k_type", "v_type"),
    [
        (shaped(3, 3, 32), "q8_0", "q8_0"),
        pytest.param(shaped(6, 2, 80), "bf16", "fp8", marks=pytest.mark.slow),
        pytest.param(shaped(8, 1, 128), "q4_0", "f32", marks=pytest.mark.slow),
        (shaped(2, 1, 256), "q5_1", "iq4_nl"),
        pytest.param(shaped(17, 1, 16), "f32", "f16", marks=pytest.mark.slow),
    ],
)
def test_heads_and_types(shape: AttentionParams, k_type: str, v_type: str) -> None:
    check(Case(shape, (*MIXED[:7], (1, 300), (20, 300)), k_type, v_type))


@pytest.mark.parametrize("isa", ["avx2", pytest.param("generic", marks=pytest.mark.slow)])
def test_other_processors(isa: str) -> None:
    check(Case(shaped(6, 2, 96, window=50), isa=isa))


def all_readers(head_dim: int, kinds: Sequence[str]) -> Any:
    """read(planes, row, numbers): a row of every type, one behind the other; planes: three addresses of each type."""
    first, others = row_reader(kinds[0], head_dim), all_readers(head_dim, kinds[1:]) if kinds[1:] else None

    @inline
    def read(planes, row, numbers):  # type: ignore[no-untyped-def]
        first(load_int(planes), load_int(planes + 8), load_int(planes + 16), row, numbers)
        if others is not None:
            others(planes + 24, row, numbers + 4 * head_dim)

    return read


@kernel_family
def read_rows(head_dim: int, *kinds: str) -> Any:
    read, n_kinds = all_readers(head_dim, kinds), len(kinds)

    def read_rows(planes, numbers, n, counter, thread, n_threads):  # type: ignore[no-untyped-def]
        for row in range(thread, n, n_threads):
            read(planes, row, numbers + 4 * head_dim * n_kinds * row)

    return read_rows


def test_rows_of_every_type_are_read_as_they_were_written() -> None:
    x = numbers(11, 64)
    planes = [tuple(p.contiguous() for p in cache_type(name).encode(x)) for name in TYPES]
    addresses = torch.tensor([list(plane_addresses("k", own).values()) for own in planes])
    out = torch.full((11, len(TYPES), 64), torch.nan)
    compiler, team = cpu_team()
    program = Program(compiler)
    program.add(read_rows, 64, *TYPES, planes=addresses.data_ptr(), numbers=out.data_ptr(), n=11)
    team.run(program, 2)
    for i, (name, own) in enumerate(zip(TYPES, planes, strict=True)):
        assert torch.equal(out[:, i], cache_type(name).decode(own, torch.float32)), name


def test_many_sequences() -> None:
    lengths = torch.randint(1, 200, (70,)).tolist()
    check(Case(sequences=tuple((1, n) for n in lengths)))


def test_large_scores() -> None:
    """Only the largest counts, and nothing overflows."""
    check(Case(shaped(scale=30.0), MIXED[:7]), 1e-4)


def test_a_result_depends_neither_on_the_batch_nor_on_threads() -> None:
    together, _ = run(Case(sequences=((1, 601), (1, 7), (30, 577)), n_threads=1))
    torch.manual_seed(0)
    again, _ = run(Case(sequences=((1, 601), (1, 7), (30, 577)), n_threads=2))
    assert torch.equal(together, again)


def pieces(n: int) -> tuple[tuple[int, int], ...]:
    """A sequence of n tokens in parts: new tokens and length of each. Single tokens, a few, many, and in turns."""
    sizes, end = (1, 1, 2, 70, 1, 5, 3, 131, 1, 17), 0
    found: list[tuple[int, int]] = []
    while end < n:
        size = min(sizes[len(found) % len(sizes)], n - end)
        end += size
        found.append((size, end))
    return tuple(found)


@pytest.mark.parametrize(
    ("case", "n"),
    [
        (Case(n_threads=1), 700),
        (Case(k_type="q8_0", v_type="q4_0"), 400),
        (Case(shaped(window=75), n_threads=1), 700),
        (Case(shaped(softcap=2.0, window=300)), 1030),
        (Case(shaped(17, 1, 16), k_type="f32"), 300),
        (Case(shaped(6, 2, 96, window=50), isa="avx2"), 300),
        (Case(shaped(6, 2, 96, window=50), isa="avx2", n_threads=1), 600),
        pytest.param(Case(shaped(6, 2, 96, window=50), isa="generic"), 300, marks=pytest.mark.slow),
        (Case(shaped(2, 2, 32), k_type="bf16", v_type="fp8"), 9000),
    ],
)
def test_a_token_attends_alike_however_its_sequence_is_cut(case: Case, n: int) -> None:
    """Bit for bit: computed at once, in parts, token by token; on one thread or on two."""
    whole = replace(case, sequences=((n, n),))
    cache, pages = cache_and_pages(whole)
    q = torch.randn(n, case.shape.n_heads, case.shape.head_dim)
    expected = attended(replace(whole, n_threads=3 - case.n_threads), q, cache, table_of(whole, pages))
    # The parts are sequences of one batch, on the same pages.
    parted = replace(case, sequences=pieces(n))
    found = attended(parted, q, cache, table_of(parted, pages * len(parted.sequences)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # The last tokens alone, where a long sequence's chunks are divided among threads.
    single = replace(case, sequences=((1, n - 1), (1, n)))
    found = attended(single, q[-2:], cache, table_of(single, pages * 2))
    torch.testing.assert_close(found, expected[-2:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "k_type", "page_size", "message"),
    [
        (shaped(head_dim=72), "f16", 32, "multiple of 16"),
        (shaped(head_dim=48), "q8_0", 32, "multiple of 32"),
        (shaped(5, 2), "f16", 32, "share 2 kv heads"),
        (SHAPE, "f16", 24, "pages of"),
    ],
)
def test_what_does_not_fit_is_refused(shape: AttentionParams, k_type: str, page_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(shape, cache_type(k_type), cache_type("f16"), page_size)


# ---- rotation and writing ----


@dataclass(frozen=True)
class Rotation:
    n_heads: int = 3
    n_kv_heads: int = 2
    head_dim: int = 64
    rope_dim: int = 64
    pairing: Pairing = "norm"
    normed: bool = False
    k_type: str = "f32"
    v_type: str = "f32"
    isa: str = OWN


def rotated(
    case: Rotation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """What the torch backend makes of them."""
    ops = TorchOps(torch.device("cpu"), torch.float32, None)
    if case.normed:
        q, k = (ops.norm(x, weight, 1e-5) for x, weight in zip((q, k), norms, strict=True))
    if case.rope_dim:
        pairing = RopePairing(case.pairing)
        q, k = (ops.rope(x, (cos, sin), pairing) for x in (q, k))
    return q, k


def run_rotation(case: Rotation, n: int = 11) -> tuple[tuple[Tensor, Planes, Planes], tuple[Tensor, Tensor, Tensor]]:
    """q and the planes of keys and values at the slots that were written, and q, k and v as numbers."""
    heads = case.n_heads, case.n_kv_heads, case.n_kv_heads
    q, k, v = parts = [numbers(n, h, case.head_dim) for h in heads]
    cos, sin = torch.randn(n, case.rope_dim // 2), torch.randn(n, case.rope_dim // 2)
    norms = [torch.rand(case.head_dim) + 0.5 for _ in range(2)]
    expected = (*rotated(case, q, k, cos, sin, norms), v)
    kinds = cache_type(case.k_type), cache_type(case.v_type)
    planes = [empty_planes(kind, 2, case.n_kv_heads, case.head_dim) for kind in kinds]
    slots = torch.randperm(2 * PAGE_SIZE)[:n]
    wide = torch.cat(parts, 1).contiguous()
    at = [wide.data_ptr() + 4 * case.head_dim * sum(heads[:i]) for i in range(3)]
    compiler, team = cpu_team(case.isa)
    program, tables, angles = Program(compiler), StepTables(case.n_heads, case.head_dim), Angles()
    q_norm, k_norm = norms if case.normed else (None, None)
    rope = RopeAndWrite(
        case.n_heads,
        case.n_kv_heads,
        case.head_dim,
        rope_dim=case.rope_dim,
        pairing=case.pairing,
        k_type=kinds[0],
        v_type=kinds[1],
        q_norm=q_norm,
        k_norm=k_norm,
        eps=1e-5,
    )
    stride = 4 * wide.stride(0)
    rope.add(program, (at[0], at[1], at[2]), (stride, stride, stride), tables, angles, *planes)
    tables.set(slots, int32([0, n]), int32([n]), int32([0, 1])[None])
    angles.set(cos, sin)
    team.run(program, 2)
    for plane in (*planes[0], *planes[1]):
        rest = plane.flatten(0, 1)[[i for i in range(2 * PAGE_SIZE) if i not in slots.tolist()]]
        assert (rest.isnan() if rest.is_floating_point() else rest == 0x7F).all()
    k_found, v_found = (tuple(plane.flatten(0, 1)[slots] for plane in side) for side in planes)
    return (wide[:, : case.n_heads], k_found, v_found), expected


ROTATIONS = {
    "neighbours": Rotation(),
    "halves": Rotation(pairing="neox"),
    "a part, in neighbours": Rotation(head_dim=80, rope_dim=20),
    "80 in halves": Rotation(head_dim=80, rope_dim=80, pairing="neox"),
    "generic": Rotation(head_dim=32, rope_dim=32, isa="generic"),
    "avx2": Rotation(pairing="neox", isa="avx2"),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_equal_their_twins(name: str) -> None:
    """Bit for bit: sums and products are rounded as torch rounds them."""
    (q, (k,), (v,)), expected = run_rotation(ROTATIONS[name])
    for found, wanted in zip((q, k, v), expected, strict=True):
        assert torch.equal(found, wanted)


def test_head_norms() -> None:
    (q, (k,), (v,)), expected = run_rotation(Rotation(head_dim=96, rope_dim=64, normed=True))
    for found, wanted in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6)


WRITTEN = [("f16", "bf16", OWN), ("fp8", "q8_0", OWN), ("q4_0", "q4_1", OWN), ("q5_0", "q5_1", OWN)]


@pytest.mark.parametrize(("k_type", "v_type", "isa"), [*WRITTEN, ("iq4_nl", "f16", OWN), ("iq4_nl", "q5_0", "generic")])
def test_written_planes_equal_the_twins(k_type: str, v_type: str, isa: str) -> None:
    (_, k, v), (_, k_numbers, v_numbers) = run_rotation(Rotation(rope_dim=0, k_type=k_type, v_type=v_type, isa=isa))
    for name, found, x in ((k_type, k, k_numbers), (v_type, v, v_numbers)):
        for plane, wanted in zip(found, cache_type(name).encode(x), strict=True):
            assert torch.equal(plane, wanted), name


@pytest.mark.parametrize(
    ("head_dim", "rope_dim", "k_type", "message"),
    [
        (72, 72, "f16", "multiple of 16"),
        (64, 66, "f16", "even part"),
        (64, 3, "f16", "even part"),
        (48, 0, "q4_0", "32"),
    ],
)
def test_rotations_that_do_not_fit_are_refused(head_dim: int, rope_dim: int, k_type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeAndWrite(
            4, 2, head_dim, rope_dim=rope_dim, pairing="norm", k_type=cache_type(k_type), v_type=cache_type("f16")
        )
