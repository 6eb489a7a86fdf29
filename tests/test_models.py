"""Whole models: random checkpoints of every architecture against transformers, and ways to run them against others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf.quants
import numpy as np
import pytest
import torch
from checkpoints import CASES, make_checkpoint, make_tokens, nmse, reference_logits

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.hf import SafetensorsModel
from naiad.loaders.open import open_model
from naiad.loaders.stored import ModelSource, StoredTensor
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import F32, format_by_name
from naiad.runtime.backends.torch import TorchOps
from naiad.runtime.batch import Batch, NewTokens
from naiad.runtime.cache import PagedCache, cache_groups
from naiad.runtime.decoder import Decoder, build_decoder
from naiad.runtime.devices import DeviceInfo
from naiad.runtime.engine.pages import PAGE_SIZE
from naiad.runtime.model import ModelOptions, load_model, plan_model
from naiad.runtime.models import ARCHITECTURES, read_config
from naiad.runtime.ops import Dispatch
from naiad.runtime.session import Session
from naiad.runtime.tensors import TensorBook

# Rounding of float32 in another order; measured: below 1e-12.
SAME = 1e-11
CPU = torch.device("cpu")
TINY = ("llama", "qwen2", "qwen3_moe", "gemma2", "phi3")

Checkpoint = Callable[[str], Path]
Loaded = Callable[[str], Decoder]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The folder of a case, made when it is first asked for."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else make_checkpoint(name, folder)

    return make


@pytest.fixture(scope="session")
def loaded(checkpoint: Checkpoint) -> Loaded:
    """A case's model, loaded once."""
    decoders: dict[str, Decoder] = {}

    def load(name: str) -> Decoder:
        if name not in decoders:
            decoders[name] = load_on_cpu(open_model(checkpoint(name)), CASES[name].n_ctx)
        return decoders[name]

    return load


def load_on_cpu(source: ModelSource, n_ctx: int = 0, dequantize: str = "auto") -> Decoder:
    options = ModelOptions(device="cpu", n_ctx=n_ctx, dequantize=dequantize, weight_dtype=torch.float32)
    return load_model(source, options)[0]


def all_logits(decoder: Decoder, tokens: list[int], n_batch: int = 512) -> torch.Tensor:
    return Session(decoder, len(tokens), n_batch).logits(tokens)


def test_every_architecture_has_a_case(checkpoint: Checkpoint) -> None:
    covered = {open_model(checkpoint(name)).kv["general.architecture"] for name in CASES}
    assert covered == set(ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str, loaded: Loaded) -> None:
    tokens = make_tokens(CASES[name].n_tokens)
    assert nmse(all_logits(loaded(name), tokens), reference_logits(name, tokens)) < SAME


@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize("name", TINY)
def test_shared_checkpoints_equal_transformers(name: str, kind: str, shared_data: Path) -> None:
    reference = np.load(shared_data / "tiny" / name / "tiny_ref.npz")
    path = shared_data / "tiny" / (name if kind == "folder" else f"{name}.gguf")
    found = all_logits(load_on_cpu(open_model(path)), reference["ids"].ravel().tolist())
    assert nmse(found, torch.from_numpy(reference["out"]).view_as(found)) < SAME


@pytest.mark.parametrize("name", CASES)
def test_written_as_gguf_it_computes_the_same(
    name: str, checkpoint: Checkpoint, loaded: Loaded, tmp_path: Path
) -> None:
    source = SafetensorsModel(checkpoint(name))
    write_gguf(tmp_path / "model.gguf", source.kv, source.tensors.values())
    tokens = make_tokens(CASES[name].n_tokens)
    written = load_on_cpu(GGUFFile(tmp_path / "model.gguf"), CASES[name].n_ctx)
    assert torch.equal(all_logits(written, tokens), all_logits(loaded(name), tokens))


@pytest.mark.parametrize("n_batch", [1, 7, 64])
@pytest.mark.parametrize("name", CASES)
def test_a_prompt_in_parts_equals_it_at_once(name: str, n_batch: int, loaded: Loaded) -> None:
    # One by one, two pages and twice the window are enough.
    tokens = make_tokens(CASES[name].n_tokens)[: 40 if n_batch == 1 else None]
    assert nmse(all_logits(loaded(name), tokens, n_batch), all_logits(loaded(name), tokens)) < SAME


def poisoned_cache(decoder: Decoder, n_pages: int) -> PagedCache:
    """A cache whose pages hold NaN until they are written, but for page 0, which is nobody's."""
    devices = [layer.ops.device for layer in decoder.layers]
    n_groups = len(cache_groups(decoder.config))
    cache = PagedCache(decoder.config, devices, "f32", "f32", [n_pages] * n_groups)
    for plane in (plane for layer in cache.layers for part in (layer.k, layer.v) for plane in part.planes):
        plane[1:].fill_(float("nan"))
    return cache


def batch_of(decoder: Decoder, parts: list[tuple[list[int], int, list[int]]]) -> Batch:
    """A batch of several sequences' new tokens, given with the number of those in the cache and the pages."""
    n_groups = len(cache_groups(decoder.config))
    sequences = [NewTokens(new, n_cached, [pages] * n_groups) for new, n_cached, pages in parts]
    return Batch.build(sequences, PAGE_SIZE, output_rows=range(sum(len(new) for new, _, _ in parts)))


# Lengths after each of three batches: a long prompt, one that begins late, one that is done early.
SCHEDULE = [(50, 0, 9), (51, 33, 9), (75, 34, 9)]
PAGES = [[5, 1, 3], [7, 2], [6]]


@pytest.mark.parametrize("name", CASES)
def test_sequences_in_a_batch_do_not_disturb_each_other(name: str, loaded: Loaded) -> None:
    decoder, limit = loaded(name), CASES[name].n_tokens
    texts = [make_tokens(min(n, limit), seed) for seed, n in enumerate(SCHEDULE[-1])]
    cache, before = poisoned_cache(decoder, 8), [0, 0, 0]
    found: list[list[torch.Tensor]] = [[], [], []]
    for lengths in SCHEDULE:
        after = [min(n, limit) for n in lengths]
        active = [i for i in range(3) if after[i] > before[i]]
        if not active:
            break
        batch = batch_of(decoder, [(texts[i][before[i] : after[i]], before[i], PAGES[i]) for i in active])
        logits = decoder.forward(batch, cache)
        for i, sequence in zip(active, batch.sequences, strict=True):
            found[i].append(logits[sequence.start : sequence.stop])
        before = after
    for text, parts in zip(texts, found, strict=True):
        assert nmse(torch.cat(parts), all_logits(decoder, text)) < SAME


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_quantised_weights_equal_their_decoded_values(name: str, form: str, shared_data: Path, tmp_path: Path) -> None:
    """Decoded when loaded, decoded when used, or float32 from the start: the same bits."""
    source = open_model(shared_data / "tiny" / f"{name}.gguf")
    matrices = {t.name for t in source.tensors.values() if len(t.shape) > 1 and "gate_inp" not in t.name}
    kinds = gguf.GGMLQuantizationType

    def quantised(tensor: StoredTensor) -> StoredTensor:
        fmt, values = format_by_name(form), dequantize(tensor.bytes(), tensor.format)
        data = torch.from_numpy(gguf.quants.quantize(values.numpy(), kinds[form]))
        return StoredTensor(tensor.name, fmt, tensor.shape, data.view(-1).clone)

    def decoded(tensor: StoredTensor) -> StoredTensor:
        values = dequantize(quantised(tensor).bytes(), format_by_name(form))
        return StoredTensor(tensor.name, F32, tensor.shape, values.view(-1).view(torch.uint8).clone)

    tokens, logits = make_tokens(40), []
    for change, how in ((quantised, "on"), (quantised, "off"), (decoded, "on")):
        tensors = [change(t) if t.name in matrices else t for t in source.tensors.values()]
        write_gguf(tmp_path / "changed.gguf", source.kv, tensors)
        logits.append(all_logits(load_on_cpu(GGUFFile(tmp_path / "changed.gguf"), dequantize=how), tokens))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


OTHER_DEVICES = {
    # The CPU under another name counts as another device, though nothing fails there that was not moved.
    "cpu": torch.device("cpu", 0),
    "cuda": torch.device("cuda", 0),
}


@pytest.mark.parametrize("other", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["llama-tied", "gemma3_text", "qwen3_moe", "phi3-longrope-long"])
def test_layers_on_two_devices_compute_the_same(name: str, other: str, checkpoint: Checkpoint, loaded: Loaded) -> None:
    if other == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA or ROCm device")
    source = open_model(checkpoint(name))
    config = read_config(source.kv)
    ops = [Dispatch([TorchOps(d, torch.float32, torch.float32)]) for d in (CPU, OTHER_DEVICES[other])]
    layers = [ops[i % 2] for i in range(config.n_layers)]
    book = TensorBook(source, lambda n_bytes: None)
    decoder = build_decoder(config, book, ops[0], layers, ops[1], config.n_ctx_train)
    tokens = make_tokens(CASES[name].n_tokens)
    assert nmse(all_logits(decoder, tokens).cpu(), all_logits(loaded(name), tokens)) < SAME


GPU = torch.device("cuda", 0)
PLACEMENTS = {
    "all": (None, "ggg", "g"),
    "more-than-there-are": (99, "ggg", "g"),
    "exactly-all": (4, "ggg", "g"),
    "all-but-one": (3, "cgg", "g"),
    "last-layer-and-output": (2, "ccg", "g"),
    "output": (1, "ccc", "g"),
    "none": (0, "ccc", "c"),
}


@pytest.mark.parametrize(("n_gpu_layers", "layers", "output"), PLACEMENTS.values(), ids=PLACEMENTS)
def test_n_gpu_layers_counts_from_the_output(
    n_gpu_layers: int | None, layers: str, output: str, checkpoint: Checkpoint
) -> None:
    here = [DeviceInfo(GPU, "a GPU", 2**34, 2**34), DeviceInfo(CPU, "a CPU", 2**34, 2**34)]
    source = open_model(checkpoint("llama"))
    plan = plan_model(source, read_config(source.kv), ModelOptions(n_gpu_layers=n_gpu_layers), here)
    devices = {"g": GPU, "c": CPU}
    assert plan.layer_devices == tuple(devices[letter] for letter in layers)
    assert plan.output_device == devices[output]
    assert plan.input_device == plan.layer_devices[0]


def test_the_cpu_takes_no_gpu_layers(checkpoint: Checkpoint) -> None:
    source = open_model(checkpoint("llama"))
    plan = plan_model(source, read_config(source.kv), ModelOptions(device="cpu", n_gpu_layers=3))
    assert {*plan.layer_devices, plan.input_device, plan.output_device} == {CPU}
