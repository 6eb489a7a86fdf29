"""The cache's memory: groups, pages that move, values that come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.quant.cache_types import CACHE_TYPES
from naiad.runtime.cache import CacheGroup, PagedCache, cache_groups
from naiad.runtime.config import ModelConfig, RopePairing
from naiad.runtime.engine.pages import PAGE_SIZE, Move

CPU = torch.device("cpu")
N_PAGES, N_HOST_PAGES = 6, 4


def config(window: int = 0, sliding: tuple[bool, ...] = (False, False, False)) -> ModelConfig:
    kv = {
        "llama.block_count": 3,
        "llama.embedding_length": 128,
        "llama.context_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.feed_forward_length": 32,
    }
    return replace(ModelConfig.read(kv, "llama", RopePairing.NORM), window=window, sliding=sliding)


def test_layers_that_see_alike_are_a_group() -> None:
    assert cache_groups(config()) == (CacheGroup(0, (0, 1, 2)),)
    assert cache_groups(config(7, (True, False, True))) == (CacheGroup(0, (1,)), CacheGroup(7, (0, 2)))
    assert cache_groups(config(7, (True, True, True))) == (CacheGroup(7, (0, 1, 2)),)
    # A window without layers, layers without a window.
    assert cache_groups(config(7)) == (CacheGroup(0, (0, 1, 2)),)
    assert cache_groups(config(0, (True, True, True))) == (CacheGroup(0, (0, 1, 2)),)


def test_each_group_has_pages_of_its_own() -> None:
    cache = PagedCache(config(7, (True, False, True)), [CPU] * 3, "f16", "q8_0", [5, 3])
    assert [layer.group for layer in cache.layers] == [1, 0, 1]
    assert [len(layer.k.planes[0]) for layer in cache.layers] == [3, 5, 3]
    sizes = [2 * 32 * 2, 2 * 32, 2 * 2]  # of a token: f16 keys; q8_0 values and their scales
    assert cache.n_bytes == PAGE_SIZE * (5 + 3 + 3) * sum(sizes)


def filled(kind: str) -> PagedCache:
    """Layer l has l * 100 + page + 1 everywhere in a page, the host's pages 50 more."""
    cache = PagedCache(config(), [CPU] * 3, kind, kind, [N_PAGES], [N_HOST_PAGES])
    for i in range(3):
        for part in (cache.layers[i].k, cache.layers[i].v):
            values = (torch.arange(N_PAGES) + 1.0 + 8 * i).repeat_interleave(PAGE_SIZE)[:, None, None].expand(-1, 2, 32)
            part.write(torch.arange(N_PAGES * PAGE_SIZE), values)
    for storage in cache._storages:
        for plane, host in zip(storage.planes, storage.host, strict=True):
            host[:, 1:] = plane[:, 1 : N_HOST_PAGES + 1].flip(1)
    return cache


KINDS = {"copy": (N_PAGES, N_PAGES), "offload": (N_PAGES, N_HOST_PAGES), "load": (N_HOST_PAGES, N_PAGES)}


@st.composite
def one_move(draw: st.DrawFn) -> Move:
    kind = draw(st.sampled_from(sorted(KINDS)))
    n_sources, n_targets = KINDS[kind]
    source, target = draw(st.integers(1, n_sources - 1)), draw(st.integers(1, n_targets - 1))
    return Move(kind, 0, source, target)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(one_move(), max_size=12))
def test_moves_happen_one_after_another(moves: list[Move]) -> None:
    """Together they give what they give one by one, whoever reads what another one writes."""
    together, by_hand = filled("q8_0"), filled("q8_0")
    together.move(moves)
    for move in moves:
        for storage in by_hand._storages:
            for plane, host in zip(storage.planes, storage.host, strict=True):
                source = host if move.kind == "load" else plane
                target = host if move.kind == "offload" else plane
                target[:, move.target] = source[:, move.source].clone()
    for a, b in zip(together._storages, by_hand._storages, strict=True):
        for x, y in zip((*a.planes, *a.host), (*b.planes, *b.host), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_every_type_moves(kind: str) -> None:
    cache = filled(kind)
    cache.move([Move("offload", 0, 2, 3), Move("copy", 0, 4, 2), Move("load", 0, 3, 4), Move("copy", 0, 1, 5)])
    for i in range(3):
        pages = cache.layers[i].v.read([1, 2, 4, 5], 4 * PAGE_SIZE, torch.float32)[::PAGE_SIZE, 0, 0]
        expected = torch.tensor([2.0, 5.0, 3.0, 2.0]) + 8 * i
        torch.testing.assert_close(pages, expected, atol=0.7, rtol=0.05)


def test_pages_in_order_are_read_without_a_copy() -> None:
    layer = filled("f32").layers[0]
    assert layer.k.read([2, 3, 4], 70, torch.float32).data_ptr() == layer.k.planes[0][2].data_ptr()
    torch.testing.assert_close(
        layer.k.read([4, 2], 40, torch.float32), torch.cat((layer.k.planes[0][4], layer.k.planes[0][2]))[:40]
    )


def test_a_cache_takes_no_memory_before_it_is_used() -> None:
    """Ten thousand million bytes are promised, none are touched."""
    cache = PagedCache(config(), [CPU] * 3, "f32", "f32", [10**10 // (3 * 2 * PAGE_SIZE * 2 * 32 * 4)])
    assert cache.n_bytes > 9.9e9
    assert (cache.layers[2].v.planes[0][-1] == 0).all()
