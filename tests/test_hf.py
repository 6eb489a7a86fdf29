"""Checkpoint folders present what llama.cpp's converter writes: metadata key by key, tensors bit for bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CASES, SIZES, make_checkpoint, make_model
from safetensors.torch import load_file, save_file

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.hf import SafetensorsModel
from naiad.loaders.hf.config import MODEL_TYPES, read_config
from naiad.loaders.open import open_model
from naiad.loaders.stored import ModelSource, StoredTensor
from naiad.quant.dequantize import dequantize
from naiad.runtime.llm import LLM

# The converter wrote all matrices in F16, and says so; sizes that are at their defaults it leaves out.
NAMES_ALIKE = {"general.size_label", "general.file_type"}
PAIRS: dict[str, tuple[str, set[str]]] = {
    # That file was not made from this folder: its name and licence are other people's words.
    "models/stories260K-hf": (
        "models/stories260K-f32.gguf",
        {"general.name", "general.license", "general.description"},
    ),
    **{f"tiny/{n}": (f"tiny/{n}.gguf", NAMES_ALIKE) for n in ("llama", "qwen2", "gemma2", "phi3", "qwen3_moe")},
}
WRITTEN_OUT = {
    "vocab_size",
    "attention.key_length",
    "attention.value_length",
    "attention.scale",
    "rope.dimension_count",
    "rope.freq_base",
    "general.type",
    "general.quantization_version",
    "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.add_space_prefix",
}


def numbers(tensor: StoredTensor) -> torch.Tensor:
    return dequantize(tensor.bytes(), tensor.format).view(tensor.shape)


def assert_same_tensors(found: ModelSource, expected: ModelSource) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].shape == tensor.shape, name
        assert torch.equal(numbers(found.tensors[name]), numbers(tensor)), name


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("folder", PAIRS)
def test_metadata_is_the_converters(folder: str, shared_data: Path) -> None:
    file, exceptions = PAIRS[folder]
    found, expected = SafetensorsModel(shared_data / folder).kv, GGUFFile(shared_data / file).kv
    assert {key for key in expected if not same(expected[key], found.get(key))} <= exceptions
    architecture = expected["general.architecture"]
    assert {key.removeprefix(f"{architecture}.") for key in found.keys() - expected.keys()} <= WRITTEN_OUT


@pytest.mark.parametrize("folder", PAIRS)
def test_tensors_are_the_converters(folder: str, shared_data: Path) -> None:
    assert_same_tensors(SafetensorsModel(shared_data / folder), GGUFFile(shared_data / PAIRS[folder][0]))


def test_a_folder_tells_the_recorded_story(shared_data: Path) -> None:
    recorded = json.loads((shared_data / "recorded.json").read_text())["files"]["models/stories260K-f32.gguf"]["greedy"]
    prompt, text = next(iter(recorded.items()))
    with LLM(shared_data / "models/stories260K-hf", device="cpu") as llm:
        assert llm.generate(prompt, temperature=0, max_tokens=64).text == text


@pytest.mark.parametrize("name", ["llama-biases", "qwen3_moe", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["F16", "BF16"])
def test_16_bit_checkpoints_stay_16_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Matrices in the file's format, everything else in float32; values are those of the file."""
    wide = SafetensorsModel(make_checkpoint(name, tmp_path / "wide"))
    narrow = SafetensorsModel(make_checkpoint(name, tmp_path / "narrow", dtype))
    assert narrow.kv["general.file_type"] == {torch.float16: 1, torch.bfloat16: 32}[dtype]
    for key, tensor in narrow.tensors.items():
        small = len(tensor.shape) == 1 or "gate_inp" in key
        assert tensor.format.name == ("F32" if small else {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype])
        assert torch.equal(numbers(tensor), numbers(wide.tensors[key]).to(dtype).float()), key


def test_gemmas_norms_have_one_added_in_float32(tmp_path: Path) -> None:
    source = SafetensorsModel(make_checkpoint("gemma2", tmp_path, torch.bfloat16))
    stored = make_model("gemma2").model.layers[1].post_feedforward_layernorm.weight.detach().bfloat16()
    assert torch.equal(numbers(source.tensors["blk.1.post_ffw_norm.weight"]), stored.float() + 1)


LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "shards": ("llama-biases", {"max_shard_size": "50KB"}),
    "shards-of-experts": ("mixtral", {"max_shard_size": "20KB"}),
    "mixtral-fused-experts": ("mixtral", {"save_original_format": False}),
    "qwen3_moe-fused-experts": ("qwen3_moe", {"save_original_format": False}),
}


@pytest.mark.parametrize(("name", "options"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_on_disk_is_the_same_model(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    plain = SafetensorsModel(make_checkpoint(name, tmp_path / "plain"))
    other = SafetensorsModel(make_checkpoint(name, tmp_path / "other", **options), use_mmap=False)
    n_files = len(list((tmp_path / "other").glob("*.safetensors")))
    assert n_files > 2 if "max_shard_size" in options else n_files == 1
    assert_same_tensors(other, plain)


def test_released_tensors_can_be_read_again(tmp_path: Path) -> None:
    source = SafetensorsModel(make_checkpoint("mixtral", tmp_path))
    before = {name: numbers(tensor).clone() for name, tensor in source.tensors.items()}
    for name, tensor in source.tensors.items():
        source.release(tensor)
        assert torch.equal(numbers(tensor), before[name])


@pytest.mark.parametrize(
    "prefixes", [("language_model.model.", "vision_tower."), ("model.language_model.", "model.vision_tower.")]
)
def test_gemma_with_vision_gives_its_language_model(prefixes: tuple[str, str], tmp_path: Path) -> None:
    plain, folder = make_checkpoint("gemma3_text", tmp_path / "plain"), tmp_path / "vision"
    folder.mkdir()
    config = json.loads((plain / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "vision_config": {}, "text_config": config})
    )
    tensors = {prefixes[0] + k.removeprefix("model."): v for k, v in load_file(plain / "model.safetensors").items()}
    tensors |= {f"{prefixes[1]}encoder.layers.0.weight": torch.zeros(2), "multi_modal_projector.x": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors")
    found, expected = SafetensorsModel(folder), SafetensorsModel(plain)
    assert_same_tensors(found, expected)
    assert {**found.kv, "general.name": ""} == {**expected.kv, "general.name": ""}


SHAPE_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# What the supported models need and transformers does not take for granted.
NEEDED: dict[str, dict[str, Any]] = {"qwen3_moe": {"norm_topk_prob": True}}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    """A config.json without a key means the same as one with transformers' default for it."""
    from transformers import AutoConfig

    given = {key: 32 * SIZES[key] for key in SHAPE_KEYS} | NEEDED.get(model_type, {})
    full = AutoConfig.for_model(model_type, **given).to_dict()
    bare = {"model_type": model_type, **given}
    assert read_config(bare, "bare").kv == read_config(full, "full").kv
    assert read_config(bare, "bare").tied == read_config(full, "full").tied


LLAMA = {"model_type": "llama", **{key: SIZES[key] for key in SHAPE_KEYS}, "num_key_value_heads": 2}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
OLD_AND_NEW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "none": ({"rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "linear": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e4}},
    ),
    "yarn": (
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}},
    ),
    "experts": (
        {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
        {"model_type": "qwen3_moe", "num_local_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "gemma3": (
        {
            "model_type": "gemma3_text",
            "rope_theta": 2e6,
            "rope_local_base_freq": 2e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 2,
        },
        {
            "model_type": "gemma3_text",
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            },
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW.values(), ids=OLD_AND_NEW)
def test_old_and_new_names_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert read_config({**LLAMA, **old}, "old") == read_config({**LLAMA, **new}, "new")


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "model-type": ({"model_type": "mamba"}, "'mamba' is not supported, expected one of llama, mistral, mixtral, qwen2"),
    "model-type-missing": ({"model_type": None}, "model_type None"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "quantised by 'gptq'"),
    "activation": ({"hidden_act": "relu"}, "hidden_act must be silu, found 'relu'"),
    "rope-type": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
    "yarn-not-rounded": ({"rope_scaling": {"type": "yarn", **YARN, "truncate": False}}, "truncate must be true"),
    "qwen-window": ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window must be false"),
    "qwen-unnormalised": ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "norm_topk_prob must be True"),
    "qwen-dense-layers": (
        {"model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": [0]},
        "mlp_only_layers must be",
    ),
    "gemma-both-ways": ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional"),
    "layers-huge": ({"num_hidden_layers": 10**6}, "num_hidden_layers must be an integer from 1 to 1024, found 1000000"),
    "vocabulary-huge": ({"vocab_size": 2**40}, "vocab_size"),
    "width-float": ({"hidden_size": 64.0}, "hidden_size must be an integer"),
    "eps-text": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a finite number, found '1e-5'"),
    "base-one": ({"rope_theta": 1.0}, "rope_theta must be a finite number above 1"),
    "factors-short": (
        {"model_type": "phi3", "rope_scaling": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]}},
        "long_factor must be a list of 6 finite numbers",
    ),
}


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^there: .*{message}|^there: {message}"):
        read_config({**LLAMA, **changes}, "there")


NASTY = [None, True, -1, 0, 2**40, 10**400, 1e30, 1e308, 1e-300, 1.5, "", "x", [], [None], {}, {"a": 1}]


@pytest.mark.parametrize(
    "name", ["llama-rope-llama3", "qwen2-rope-yarn", "qwen3_moe", "gemma3_text", "phi3-longrope-long"]
)
def test_any_config_is_read_or_raises_value_error(name: str) -> None:
    config = make_model(name).config.to_dict()
    inner = [("rope_parameters", key) for key in config["rope_parameters"]]
    for path in [(key,) for key in (*config, "rope_scaling", "head_dim", "num_experts", "text_config")] + inner:
        for value in NASTY:
            changed = json.loads(json.dumps(config))
            (changed if len(path) == 1 else changed[path[0]])[path[-1]] = value
            try:
                read_config(changed, "there")
            except ValueError as error:
                assert str(error).startswith("there"), (path, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint("mixtral", tmp_path / "model")


def change_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """None removes a tensor."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
BAD_TENSORS: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "unknown": ({"model.layers.0.self_attn.sinks": torch.zeros(3)}, "'model.layers.0.self_attn.sinks' is not part of"),
    "layer-extra": ({"model.layers.3.input_layernorm.weight": torch.zeros(72)}, "layer 3, but there are 3 layers"),
    "expert-missing": ({EXPERT: None}, "has experts 0, 1, 2, 4, expected 5"),
    "expert-extra": ({EXPERT.replace(".3.", ".7."): torch.zeros(72, 83)}, "has experts 0, 1, 2, 3, 4, 7, expected 5"),
    "expert-misshapen": ({EXPERT: torch.zeros(72, 82)}, rf"'{EXPERT}' is F32 \[72, 82\], expected F32 \[72, 83\]"),
    "expert-of-other-dtype": ({EXPERT: torch.zeros(72, 83).half()}, rf"'{EXPERT}' is F16"),
    "dtype": ({"model.norm.weight": torch.zeros(72).double()}, "'model.norm.weight': dtype F64 is not supported"),
    "heads": ({"model.layers.0.self_attn.k_proj.weight": torch.zeros(25, 72)}, r"k_proj.weight' has shape \[25, 72\]"),
    "fused-odd": ({"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(5, 3, 72)}, "expected .experts, 2 x width"),
    "twice": ({"model.layers.0.mlp.gate.weight": torch.zeros(5, 72)}, "'blk.0.ffn_gate_inp.weight' .* twice"),
    "embedding-short": ({"model.embed_tokens.weight": torch.zeros(96, 72)}, r"shape \[96, 72\], expected 97 rows"),
    "embedding-missing": ({"model.embed_tokens.weight": None}, "the embedding has shape"),
    "output-missing": ({"lm_head.weight": None}, "'lm_head.weight' is missing, and tie_word_embeddings is not set"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors(changes: dict[str, torch.Tensor | None], message: str, folder: Path) -> None:
    change_tensors(folder, changes)
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder))}: .*{message}"):
        SafetensorsModel(folder)


def test_a_tied_model_ignores_an_output_matrix(tmp_path: Path) -> None:
    folder = make_checkpoint("llama-tied", tmp_path)
    change_tensors(folder, {"lm_head.weight": torch.zeros(97, 72)})
    assert "output.weight" not in SafetensorsModel(folder).tensors


def index(**weight_map: Any) -> str:
    return json.dumps({"weight_map": weight_map})


BAD_INDEXES: dict[str, tuple[str, str]] = {
    "no-json": ("{", "not valid JSON"),
    "no-map": ("{}", "weight_map must be an object"),
    "map-of-numbers": (index(a=1), "weight_map must be an object of file names"),
    "outside": (index(a="../model.safetensors"), "'../model.safetensors' is not the name of"),
    "absolute": (index(a="/etc/passwd"), "'/etc/passwd' is not the name of"),
    "no-safetensors": (index(a="pytorch_model.bin"), "is not the name of a safetensors file"),
    "tensor-missing": (index(a="model.safetensors"), "1 tensors are not where it says, 'a' among them"),
    "files-many": (index(**{f"t{i}": f"{i}.safetensors" for i in range(10_001)}), "names 10001 files"),
}


@pytest.mark.parametrize(("text", "message"), BAD_INDEXES.values(), ids=BAD_INDEXES)
def test_bad_index(text: str, message: str, folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message}"):
        SafetensorsModel(folder)


def test_a_single_file_goes_before_an_index_whose_parts_are_missing(folder: Path) -> None:
    whole = set(SafetensorsModel(folder).tensors)
    names = list(load_file(folder / "model.safetensors"))
    path = folder / "model.safetensors.index.json"
    path.write_text(index(**{name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}))
    assert set(SafetensorsModel(folder).tensors) == whole
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(OSError, match=r"model-00002-of-00002\.safetensors is missing, 1 of the 2 files"):
        SafetensorsModel(folder)
    # With all parts there it is the index that counts.
    path.write_text(index(**dict.fromkeys(names, "model-00001-of-00002.safetensors")))
    (folder / "model.safetensors").write_bytes(b"")
    assert set(SafetensorsModel(folder).tensors) == whole


def test_missing_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index(a="gone.safetensors"))
    with pytest.raises(OSError, match=r"gone\.safetensors"):
        open_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        open_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"is a folder without config\.json"):
        open_model(folder)


def test_every_model_type_has_a_case() -> None:
    assert {case.model_type for case in CASES.values()} == set(MODEL_TYPES)
