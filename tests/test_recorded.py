"""llama.cpp's recorded outputs for real files: logits in every format, greedy text token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import nmse

from naiad.loaders.gguf import GGUFFile
from naiad.runtime.llm import LLM
from naiad.runtime.model import ModelOptions, load_model
from naiad.runtime.session import Session

QUANTS = "models/tinystories256-quants"
# Normalised mean square error of the logits against llama.cpp's, about 1.5 times what was measured. Ours are exact;
# llama.cpp rounds what it multiplies: to 16 bits for F16, to 8 bits for the quantised formats.
BOUNDS = {
    "models/stories260K-f32.gguf": 1e-12,
    "models/stories260K-f16.gguf": 6e-8,
    "models/tinystories256-f16.gguf": 7e-8,
    f"{QUANTS}/Q8_0.gguf": 7.7e-5,
    f"{QUANTS}/MXFP4_MOE.gguf": 7.7e-5,
    f"{QUANTS}/Q6_K.gguf": 1.5e-4,
    f"{QUANTS}/Q5_K_M.gguf": 2.4e-4,
    f"{QUANTS}/Q5_1.gguf": 8e-5,
    f"{QUANTS}/Q5_0.gguf": 8e-5,
    f"{QUANTS}/Q4_K_M.gguf": 2.1e-4,
    f"{QUANTS}/Q4_1.gguf": 1.3e-4,
    f"{QUANTS}/Q4_0.gguf": 7e-5,
    f"{QUANTS}/IQ4_XS.gguf": 2.1e-4,
    f"{QUANTS}/IQ4_NL.gguf": 7.3e-5,
    f"{QUANTS}/Q3_K_M.gguf": 2e-4,
    f"{QUANTS}/IQ3_S.gguf": 2.3e-4,
    f"{QUANTS}/IQ3_XXS.gguf": 1.7e-4,
    f"{QUANTS}/Q2_K.gguf": 2.1e-4,
    f"{QUANTS}/Q2_0.gguf": 1.4e-4,
    f"{QUANTS}/IQ2_XS.gguf": 2.2e-4,
    f"{QUANTS}/IQ2_XXS.gguf": 2.9e-4,
    f"{QUANTS}/TQ2_0.gguf": 5.3e-4,
    f"{QUANTS}/TQ1_0.gguf": 5.3e-4,
    f"{QUANTS}/IQ1_M.gguf": 3.9e-4,
    f"{QUANTS}/IQ1_S.gguf": 3.2e-4,
    f"{QUANTS}/Q1_0.gguf": 1.2e-4,
}
FLOAT_FILES = [name for name in BOUNDS if not name.startswith(QUANTS)]
N_GREEDY = 64


@pytest.fixture(scope="module")
def recorded(shared_data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared_data / "recorded.json").read_text())
    return found


@pytest.fixture(scope="module")
def recorded_logits(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / "recorded_logits.npz") as file:
        return dict(file)


def test_every_recorded_file_has_a_bound(recorded: dict[str, Any]) -> None:
    assert recorded["files"].keys() == BOUNDS.keys()


@pytest.mark.parametrize("name", BOUNDS)
def test_logits(name: str, recorded: dict[str, Any], recorded_logits: dict[str, np.ndarray], shared_data: Path) -> None:
    logits = []
    for how in ("on", "off"):
        options = ModelOptions(device="cpu", dequantize=how, weight_dtype=torch.float32)
        decoder, plan = load_model(GGUFFile(shared_data / name), options)
        logits.append(Session(decoder, plan.n_ctx).logits(recorded["logits_ids"]))
    assert torch.equal(logits[0], logits[1]), "decoding when loaded and decoding when used must give the same bits"
    assert nmse(logits[0], torch.from_numpy(recorded_logits[name])) < BOUNDS[name]


@pytest.mark.parametrize("name", FLOAT_FILES)
def test_greedy_text(name: str, recorded: dict[str, Any], shared_data: Path) -> None:
    with LLM(shared_data / name, device="cpu") as llm:
        for prompt, text in recorded["files"][name]["greedy"].items():
            assert llm.generate(prompt, temperature=0, max_tokens=N_GREEDY).text == text
