"""Whole models on the Triton backend against the torch backend, which computes the same without kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from checkpoints import CASES, WINDOW, make_checkpoint, make_tokens, nmse
from engines import engine_of, greedy, make_prompts, run
from kernel_cases import DEVICE, ON_GPU
from model_twins import BLOCKS, Rounded, converted
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from naiad.loaders.open import open_model
from naiad.runtime.backends.torch import TorchOps
from naiad.runtime.backends.triton import TritonOps
from naiad.runtime.batch import Batch, NewTokens
from naiad.runtime.cache import PagedCache
from naiad.runtime.decoder import Decoder, build_decoder
from naiad.runtime.engine.pages import PAGE_SIZE
from naiad.runtime.models import ARCHITECTURES, read_config
from naiad.runtime.ops import Dispatch
from naiad.runtime.sampling import SamplingParams
from naiad.runtime.session import Session
from naiad.runtime.tensors import TensorBook
from naiad.triton_kernels.tuning import arch_of, tuning

pytestmark = [*ON_GPU, pytest.mark.usefixtures("poisoned")]

# One case for each way in which architectures differ.
MODELS = (
    *("llama-biases", "mistral-window", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"),
    "phi3-partial-rotation",
)
# Products of any number of rows on tensor cores, in few programs: an interpreted program costs the same at any size.
TABLE = tuning(arch_of(DEVICE))
EXACT = replace(TABLE, exact_rows=0, workspace_rows=1000)

INT8 = replace(TABLE, vector=replace(TABLE.vector, rows=64))
Build = Callable[..., Decoder]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Makes the decoder of a case of checkpoints.py on backends."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name: str, ops: Dispatch, form: str = "F16") -> Decoder:
        folder = root / name
        source = converted(open_model(folder if folder.exists() else make_checkpoint(name, folder)), form)
        config = read_config(source.kv)
        book = TensorBook(source, lambda n_bytes: None)
        return build_decoder(config, book, ops, [ops] * config.n_layers, ops, config.n_ctx_train)

    return make


@pytest.fixture
def blocky(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], str]:
    """Adds a case with whole blocks in every row, and so many layers, to those of checkpoints.py."""

    def add(name: str, n_layers: int) -> str:
        case, added = CASES[name], f"{name}-blocks-{n_layers}"
        changes = {**case.changes, **BLOCKS, "num_hidden_layers": n_layers}
        monkeypatch.setitem(CASES, added, replace(case, changes=changes))
        return added

    return add


def on_triton(**options: object) -> Dispatch:
    ours = TritonOps(DEVICE, torch.float32, **options)  # type: ignore[arg-type]
    return Dispatch([ours, TorchOps(DEVICE, torch.float32, None)])


def logits(decoder: Decoder, tokens: list[int], k_type: str = "f32", v_type: str = "f32") -> torch.Tensor:
    """A prompt, then a token: those of the last prompt token and of the one after."""
    session = Session(decoder, len(tokens), k_type=k_type, v_type=v_type)
    return torch.cat([session.logits(tokens[:-1])[-1:], session.logits(tokens[-1:])])


# What is special about these others have, too.
SLOW = {"llama-biases", "mistral-window", "mixtral"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]
)
@pytest.mark.filterwarnings("error:triton leaves:UserWarning")
def test_logits_equal_the_twins(name: str, build: Build) -> None:
    windowed = "window" in name or name.startswith("gemma")
    tokens = make_tokens(WINDOW + 5 if windowed else 6)
    found = logits(build(name, on_triton(route="exact", table=EXACT)), tokens)
    twin = Dispatch([TorchOps(DEVICE, torch.float32, torch.float32)])
    assert nmse(found, logits(build(name, twin), tokens)) < 1e-10


def test_every_architecture_is_among_them() -> None:
    assert {CASES[name].model_type.removesuffix("_text").replace("_", "") for name in MODELS} >= {*ARCHITECTURES}


@pytest.mark.parametrize(
    ("name", "form", "k_type", "v_type"),
    [("llama", "Q8_0", "f16", "f16"), ("qwen3_moe", "Q4_0", "q8_0", "q4_0"), ("gemma2", "Q5_1", "bf16", "fp8")],
)
@pytest.mark.filterwarnings("error:triton leaves:UserWarning")
def test_int8_logits_equal_the_rounded_twins(
    name: str, form: str, k_type: str, v_type: str, build: Build, blocky: Callable[[str, int], str]
) -> None:
    tokens, case = make_tokens(2), blocky(name, 1)
    found = logits(build(case, on_triton(table=INT8), form), tokens, k_type, v_type)
    twin = Dispatch([Rounded(DEVICE, torch.float32, torch.float32)])
    expected = logits(build(case, twin, form), tokens, k_type, v_type)
    exact = logits(build(case, Dispatch([TorchOps(DEVICE, torch.float32, torch.float32)]), form), tokens)
    # Sums in another order may round a value to its other neighbour; without rounding at all, all values differ.
    assert nmse(found, expected) < 0.1 * nmse(found, exact)


class Launches(TorchDispatchMode):
    """Counts, by name, the kernels that are launched and torch's operations that would be kernels on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.inside = False
        self.stock = interpreter.GridExecutor.__call__

    def __enter__(self) -> Launches:
        def launch(grid: Any, *args: Any, **kwargs: Any) -> Any:
            self.counts[grid.fn.__name__] += 1
            # What the interpreter does with tensors is not our doing.
            self.inside = True
            try:
                return self.stock(grid, *args, **kwargs)
            finally:
                self.inside = False

        interpreter.GridExecutor.__call__ = launch
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        interpreter.GridExecutor.__call__ = self.stock
        super().__exit__(*exc)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        views = ("view", "_unsafe_view", "split", "split_with_sizes", "slice", "select", "t", "detach", "alias")
        if not self.inside and name not in (*views, "empty", "fill_", "new_empty", "expand", "unsqueeze", "reshape"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="counts what the interpreter is given")
@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        (
            "llama",
            {
                *("matvec_kernel", "rope_kernel", "attention_decode_kernel"),
                *("matvec_norm_kernel", "matvec_glu_units_kernel"),
            },
        ),
        (
            "qwen3_moe",
            {
                *("matvec_kernel", "rope_kernel", "attention_decode_kernel", "matvec_norm_kernel"),
                *("router_kernel", "expert_glu_kernel", "expert_down_kernel"),
            },
        ),
    ],
)
def test_launches_of_a_layer(name: str, kernels: set[str], build: Build, blocky: Callable[[str, int], str]) -> None:
    """Between two layers of a step with one row: six launches of a dense layer, seven of one with experts."""
    decoder = build(blocky(name, 2), on_triton(table=INT8), "Q8_0")
    counted = []
    for n_layers in (1, 2):
        config = replace(decoder.config, n_layers=n_layers, sliding=decoder.config.sliding[:n_layers])
        session = Session(replace(decoder, config=config, layers=decoder.layers[:n_layers]), 4)
        with Launches() as launches:
            session.logits([1])
        counted.append(launches.counts)
    per_layer = counted[1] - counted[0]
    assert set(per_layer) == kernels
    assert per_layer.total() == (6 if name == "llama" else 7)


# New tokens, those in the cache before, and the pages of each sequence, step by step.
STEPS = (((5, 0, (3,)), (3, 0, (0,))), ((1, 5, (3,)), (34, 0, (5, 1)), (1, 3, (0,))), ((2, 34, (5, 1)), (1, 6, (3,))))


def test_sequences_beside_each_other(build: Build) -> None:
    """Prompts and single tokens in one batch, on pages in no order."""
    decoders = [
        build("qwen2", on_triton(route="exact", table=EXACT)),
        build("qwen2", Dispatch([TorchOps(DEVICE, torch.float32, torch.float32)])),
    ]
    caches = [PagedCache(d.config, [DEVICE] * len(d.layers), "f32", "f32", [8]) for d in decoders]
    for step in STEPS:
        new = iter(make_tokens(sum(n for n, _, _ in step)))
        sequences = [NewTokens([next(new) for _ in range(n)], cached, [pages]) for n, cached, pages in step]
        batch = Batch.build(sequences, PAGE_SIZE, output_rows=range(sum(n for n, _, _ in step)))
        found, expected = (d.forward(batch, cache) for d, cache in zip(decoders, caches, strict=True))
        assert nmse(found, expected) < 1e-10


def test_what_kernels_decline_is_left_to_torch_with_one_warning(build: Build) -> None:
    """Heads of 12 values are written to an fp8 cache, but not read from it."""
    tokens = make_tokens(3)
    ops = on_triton(route="exact", table=EXACT)
    with pytest.warns(UserWarning, match="triton leaves attention_block to torch: kernels read fp8") as caught:
        found = logits(build("qwen2", ops), tokens, "fp8", "fp8")
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(set(messages))
    twin = Dispatch([TorchOps(DEVICE, torch.float32, torch.float32)])
    assert nmse(found, logits(build("qwen2", twin), tokens, "fp8", "fp8")) < 1e-3
    assert any("attention is left to torch: kernels read fp8" in line for line in ops.describe())


@pytest.mark.filterwarnings("error:triton leaves:UserWarning")
def test_an_engine_on_kernels(build: Build, blocky: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts together, captured steps, pages that a window has let go."""
    name = blocky("mistral-window", 1)
    decoder = build(name, on_triton(route="exact", table=EXACT))
    twin = build(name, Dispatch([TorchOps(DEVICE, torch.float32, torch.float32)]))
    prompts = make_prompts(decoder.n_vocab, (1, 52))
    engine = engine_of(decoder, captured=True, overlap=True, n_pages=12)
    monkeypatch.setattr("naiad.runtime.engine.graphs.CAPTURED_AFTER", 1)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    found = [handle.tokens for handle in run(engine, prompts, params)]
    assert found == [greedy(twin, prompt, 3) for prompt in prompts]
    assert engine.runner.graphs
