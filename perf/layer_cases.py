"""Attention, experts and the small kernels in their default configurations, as perf/compiled.py compiles them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cases import QUICK_TARGETS, Case

from naiad.quant import formats
from naiad.quant.cache_types import CACHE_TYPES
from naiad.quant.formats import Format
from naiad.triton_kernels import router
from naiad.triton_kernels.attention import MAX_REGISTERS, PARTS, attention_tile, pieces
from naiad.triton_kernels.attention_decode import attention_decode_kernel
from naiad.triton_kernels.attention_prefill import attention_prefill_kernel
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.experts import GLU_ROWS_PER_WARP, GROUPS_PER_WARP
from naiad.triton_kernels.gates import glu_kernel
from naiad.triton_kernels.grouped import (
    combine_kernel,
    combine_norm_kernel,
    expert_down_kernel,
    expert_glu_kernel,
    grouped_down_kernel,
    grouped_glu_kernel,
    sort_kernel,
)
from naiad.triton_kernels.matvec import matvec_glu_units_kernel, matvec_norm_kernel
from naiad.triton_kernels.norms import norm_kernel
from naiad.triton_kernels.rope import PROGRAM_VALUES, rope_kernel
from naiad.triton_kernels.router import router_kernel, select_kernel
from naiad.triton_kernels.tuning import isa, tuning, warp_size

LAYER_KERNELS = (
    *(attention_prefill_kernel, attention_decode_kernel, norm_kernel, rope_kernel, glu_kernel),
    *(matvec_norm_kernel, matvec_glu_units_kernel, router_kernel, select_kernel, expert_glu_kernel),
    *(expert_down_kernel, sort_kernel, grouped_glu_kernel, grouped_down_kernel, combine_kernel, combine_norm_kernel),
)

# Heads, kv heads, and their sizes in keys and values, of models with the cache in bf16.
HEADS = (
    (32, 8, 64, 64),
    (32, 32, 80, 80),
    (32, 32, 96, 96),
    (32, 8, 128, 128),
    (128, 128, 192, 128),
    (16, 8, 256, 256),
)
LLAMA = (32, 8, 128, 128)
# Formats of gate and up, and of down.
Q4_K_M = (formats.Q4_K, formats.Q6_K)
MXFP4 = (formats.MXFP4, formats.MXFP4)
# What the quick run compiles.
QUICK = {
    "sm_90": (
        *("attention prefill bf16 32/8x128", "attention decode bf16 32/8x128", "attention decode q8_0 32/8x128"),
        *("norm", "rope q8_0", "matvec norm int8 Q4_K x1", "matvec glu units int8 Q4_K x1", "router 128"),
        "expert glu Q4_K/Q6_K",
    ),
    "gfx942": ("attention decode bf16 32/8x128", "matvec norm int8 Q4_K x1", "router 128"),
}
PLAIN_POINTERS = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16"}


def layer_cases(target: str, quick: bool) -> Iterator[Case]:
    """These kernels' part of an architecture."""
    yield from (case for case in _all_cases(target) if not quick or case.name in QUICK.get(target, ()))


def _all_cases(target: str) -> Iterator[Case]:
    for kernel in ("prefill", "decode"):
        for heads in HEADS:
            yield attention_case(target, kernel, "bf16", heads)
        for kind in CACHE_TYPES if target in QUICK_TARGETS else ("q8_0",):
            yield attention_case(target, kernel, kind, LLAMA)
    yield from _small_cases(target)
    yield from _fused_cases(target)
    yield from _routing_cases(target)
    for fmts in (Q4_K_M, MXFP4):
        yield from _expert_cases(target, *fmts)


def attention_case(target: str, kernel: str, kind: str, heads: tuple[int, int, int, int]) -> Case:
    """q in bf16, output in bf16 (prefill) or in 8-bit units (decode), keys and values of one type."""
    n_heads, n_kv_heads, head_dim, v_dim = heads
    decoding = kernel == "decode"
    tile = attention_tile(tuning(target).attention, kernel, head_dim, v_dim, (kind, kind), 2)
    bm = 16 if decoding else tile.bm
    (d0, d1), (dv0, dv1) = pieces(head_dim), pieces(v_dim)
    units = decoding and v_dim % 32 == 0
    arguments: dict[str, Any] = {
        **{"q": "*bf16", "out": "*i32" if units else "*bf16", "sinks": None},
        **{f"{side}_{name}": pointer for side in "kv" for name, pointer in _planes(kind).items()},
        **{"starts": "*i32", "lengths": "*i32", "pages": "*i32", "partial": "*fp32", "counters": "*i32"},
        **{"scale": "fp32", "softcap": "fp32", "N_HEADS": n_heads, "N_KV": n_kv_heads},
        **{"D": head_dim, "D0": d0, "D1": d1, "DV": v_dim, "DV0": dv0, "DV1": dv1},
        **{"PAGE_SIZE": 32, "K_TYPE": kind, "V_TYPE": kind, "CAUSAL": True, "WINDOW": False, "CHUNK": False},
        **{"SOFTCAP": False, "FORM": "int8" if units else "plain", "SEQUENCES": 32, "PARTS": PARTS},
        **{"BM": bm, "BN": tile.bn, "STAGES": tile.stages, "ISA": isa(target)},
    }
    size = str(head_dim) if head_dim == v_dim else f"{head_dim}/{v_dim}"
    name = f"attention {kernel} {kind} {n_heads}/{n_kv_heads}x{size}"
    values = tile.bn * (head_dim + v_dim)
    return Case(target, name, f"attention_{kernel}_kernel", tuple(arguments.items()), tile.warps, values, MAX_REGISTERS)


def _small_cases(target: str) -> Iterator[Case]:
    """Rows of 4096 numbers in a program's registers, and longer ones; heads of 128; the rest of a gated pair."""
    floats = dict.fromkeys(("eps", "post_eps"), "fp32")
    for name, groups, form, post in (
        ("norm", 128, "int8", None),
        ("norm post", 128, "plain", "*fp32"),
        ("norm long", 0, "plain", None),
    ):
        arguments = {
            **{"x": "*bf16", "stream": "*bf16", "out": "*i32" if form == "int8" else "*bf16", "weight": "*fp32"},
            **{"bias": None, "post_weight": post, "LAYER": False, "FORM": form, "GROUPS": groups, **floats},
        }
        yield Case(target, name, "norm_kernel", tuple(arguments.items()), 8)
    for kind in ("bf16", "q8_0", "iq4_nl"):
        arguments = {
            **dict.fromkeys(("q_out", "q", "k", "v"), "*bf16"),
            **dict.fromkeys(("q_norm", "k_norm", "cos", "sin"), "*fp32"),
            **{f"{side}_{name}": pointer for side in "kv" for name, pointer in _planes(kind).items()},
            **{"slots": "*i64", "eps": "fp32", "D": 128, "V_DIM": 128, "D_PADDED": 128, "V_PADDED": 128},
            **{"DIM": 128, "NEOX": True, "K_TYPE": kind, "V_TYPE": kind, "H": PROGRAM_VALUES // 128},
        }
        yield Case(target, f"rope {kind}", "rope_kernel", tuple(arguments.items()), 4)
    arguments = {**{"out": "*i32", "gate": "*bf16", "up": "*bf16", "ACTIVATION": "silu", "FORM": "int8", "GROUPS": 32}}
    yield Case(target, "glu", "glu_kernel", tuple(arguments.items()), 4)


def _fused_cases(target: str) -> Iterator[Case]:
    """Products of one row of 8-bit activations, and what follows them in the same launch."""
    q4, q6 = DECODERS[formats.Q4_K.id], DECODERS[formats.Q6_K.id]
    vector = tuning(target).vector
    lanes = warp_size(target) * vector.warps
    common = {"x": "*i32", "INT8": True, "BM": 1, "LANES": lanes, "ISA": isa(target), "out": "*i32", "FORM": "int8"}
    for name, decoder in (("Q4_K", q4), ("Q6_K", q6)):
        arguments: dict[str, Any] = {
            **common,
            **{"bias": None, "arrived": "*i32", "stream": None, "weight": "*fp32", "norm_bias": None, "eps": "fp32"},
            **{"post_weight": None, "post_eps": "fp32", "DECODE": decoder, "LAYER": False, "GROUPS": 128},
            "R": vector.rows,
        }
        yield Case(target, f"matvec norm int8 {name} x1", "matvec_norm_kernel", tuple(arguments.items()), vector.warps)
    arguments = {
        **common,
        **{"bias": None, "D_GATE": q4, "D_UP": q4, "ACTIVATION": "silu", "R": max(32, vector.rows)},
    }
    name = "matvec glu units int8 Q4_K x1"
    yield Case(target, name, "matvec_glu_units_kernel", tuple(arguments.items()), vector.warps)


def _routing_cases(target: str) -> Iterator[Case]:
    """128 experts, of which 8 are used (Qwen3-30B-A3B); 256 in 8 groups (DeepSeek-V3)."""
    for name, groups, size, used in (("128", 1, 128, 8), ("256 in 8 groups", 8, 32, 8)):
        choice = {
            **{"ids": "*i32", "shares": "*fp32", "logits": "*fp32", "selection_bias": None, "scale": "fp32"},
            **{"GATING": "softmax" if groups == 1 else "sigmoid", "NORMALISE": True, "USED": used, "GROUPS": groups},
            **{"GROUPS_USED": max(1, groups // 2), "SIZE": size, "G2": groups, "S2": size, "U2": used},
        }
        arguments: dict[str, Any] = {
            **choice,
            **{"counters": "*i32", "x": "*bf16", "units": "*i32", "weight": "*fp32", "logits_bias": None},
            **{"BE": 1 if groups == 1 else 2, "BK": 1024, "ISA": isa(target)},
        }
        yield Case(target, f"router {name}", "router_kernel", tuple(arguments.items()), 4, 0, router.MAX_REGISTERS)
        yield Case(target, f"select {name}", "select_kernel", tuple({**choice, "T": 4}.items()), 4)


def _expert_cases(target: str, first: Format, last: Format) -> Iterator[Case]:
    """Few tokens with 8-bit activations, and many on tensor cores; 128 experts; rows of 4096 numbers to norm."""
    table = tuning(target)
    rows, lanes = table.vector.rows, warp_size(target) * table.vector.warps
    d_first, d_last, name = DECODERS[first.id], DECODERS[last.id], f"{first.name}/{last.name}"
    biases = dict.fromkeys(("gate_bias", "up_bias", "bias", "residual"), None)
    common = {"lut": "*i32", "ids": "*i32", "ISA": isa(target), "LANES": lanes, **biases}
    glu = {"D_GATE": d_first, "D_UP": d_first, "ACTIVATION": "silu"}
    few_glu = {**common, **glu, "hidden": "*i32", "x": "*i32", "INT8": True, "HIDDEN_INT8": True, "R": max(32, rows)}
    yield Case(target, f"expert glu {name}", "expert_glu_kernel", tuple(few_glu.items()), table.vector.warps)
    norm: dict[str, Any] = {
        **{"stream": None, "out": "*i32", "weight": "*fp32", "norm_bias": None, "eps": "fp32", "post_weight": None},
        **{"post_eps": "fp32", "LAYER": False, "FORM": "int8", "GROUPS": 128},
    }
    few_down = {
        **common,
        **norm,
        **{"products": "*fp32", "counters": "*i32", "hidden": "*i32", "shares": "*fp32", "down": "*i32"},
        **{"DECODE": d_last, "INT8": True, "SPLIT": True, "R": rows, "arrived": "*i32"},
    }
    yield Case(target, f"expert down {name}", "expert_down_kernel", tuple(few_down.items()), table.vector.warps)
    places = {"order": "*i32", "starts": "*i32", "EVEN": True, "E2": 128, "INT8": False}
    for tile in (table.tiles[0], table.tiles[-1]):
        shape = {"BN": tile.bn, "BM": tile.bm, "STAGES": tile.stages}
        glu_case = {**common, **glu, **places, **shape, "hidden": "*bf16", "x": "*bf16"}
        warps = max(tile.warps, tile.bn // GLU_ROWS_PER_WARP)
        suffix = f"{name} {tile.bn}x{tile.bm}"
        yield Case(target, f"grouped glu {suffix}", "grouped_glu_kernel", tuple(glu_case.items()), warps)
        down = {**common, **places, **shape, "hidden": "*bf16", "products": "*fp32", "down": "*i32", "DECODE": d_last}
        yield Case(target, f"grouped down {suffix}", "grouped_down_kernel", tuple(down.items()), tile.warps)
    if first is formats.Q4_K:
        sort = {"order": "*i32", "starts": "*i32", "BLOCK": 2048}
        yield Case(target, "sort", "sort_kernel", tuple(sort.items()), 4)
        summed = {**biases, "products": "*fp32", "shares": "*fp32"}
        combine = {**summed, "BLOCK": 1024}
        yield Case(target, "combine", "combine_kernel", tuple(combine.items()), 4)
        combine = {**summed, **norm, "stream": "*bf16"}
        warps = norm["GROUPS"] // GROUPS_PER_WARP
        yield Case(target, "combine norm", "combine_norm_kernel", tuple(combine.items()), warps)


def _planes(kind: str) -> dict[str, str | None]:
    t = CACHE_TYPES[kind]
    return {
        "data": PLAIN_POINTERS.get(kind, "*u8"),
        "high": "*i32" if t.bits == 5 else None,
        "scales": "*fp16" if t.bits else None,
    }
