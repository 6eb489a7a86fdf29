"""Records llama.cpp's samplers on random logits: tokens chosen and candidates left, over several tokens per case.

python tests/data/record_sampling.py, with a Python that has naiad and llama-cpp-python, writes sampling.json:
{"cases": [{"params": what differs from SamplingParams, "scale", "tokens", "candidates"}, …]}, one choice after another;
candidates are {token: probability}, likeliest first, 40 at most, and "sizes" says how many have 1e-7 or more.
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from naiad.loaders.gguf_write import write_gguf
from naiad.runtime.sampling import SamplingParams

sys.path.insert(0, str(Path(__file__).parents[1]))
from sampling_cases import N_STEPS, N_VOCAB, cases, logits_of, prompt_of, vocab_kv


class Chain:
    """llama.cpp's chain for these parameters, as its common_sampler_init makes it."""

    def __init__(self, vocab: Any, params: SamplingParams) -> None:
        self.vocab, self.params = vocab, params
        self.chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        self.biases()
        seed, p = params.seed, params
        if p.mirostat:
            self.add("temp", p.temperature)
            if p.mirostat == 1:
                self.add("mirostat", N_VOCAB, seed, p.mirostat_tau, p.mirostat_eta, 100)
            else:
                self.add("mirostat_v2", seed, p.mirostat_tau, p.mirostat_eta)
            return
        for name in p.samplers:
            self.named(name)
        if "adaptive_p" in p.samplers:
            self.add("adaptive_p", p.adaptive_target, p.adaptive_decay, seed)
        else:
            self.add("dist", seed)

    def named(self, name: str) -> None:
        p = self.params
        arguments: dict[str, tuple[str, tuple[Any, ...]]] = {
            "penalties": (
                "penalties",
                (N_VOCAB, p.repeat_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty),
            ),
            "top_n_sigma": ("top_n_sigma", (p.top_n_sigma,)),
            "top_k": ("top_k", (p.top_k,)),
            "typ_p": ("typical", (p.typical_p, p.min_keep)),
            "top_p": ("top_p", (p.top_p, p.min_keep)),
            "min_p": ("min_p", (p.min_p, p.min_keep)),
            "xtc": ("xtc", (p.xtc_probability, p.xtc_threshold, p.min_keep, p.seed)),
            "temperature": ("temp_ext", (p.temperature, p.dynatemp_range, p.dynatemp_exponent)),
        }
        if name == "dry":
            texts = [text.encode() for text in p.dry_sequence_breakers]
            breakers = (ctypes.c_char_p * len(texts))(*texts)
            limits = (p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_penalty_last_n)
            self.add("dry", self.vocab, *limits, breakers, len(texts))
        elif name != "adaptive_p":
            function, values = arguments[name]
            self.add(function, *values)

    def biases(self) -> None:
        biases = dict(self.params.logit_bias)
        if self.params.ignore_eos:
            biases[2] = -np.inf
        if biases:
            array = (llama_cpp.llama_logit_bias * len(biases))(*biases.items())
            self.add("logit_bias", N_VOCAB, len(biases), array)

    def add(self, name: str, *arguments: Any) -> None:
        sampler = getattr(llama_cpp, f"llama_sampler_init_{name}")(*arguments)
        llama_cpp.llama_sampler_chain_add(self.chain, sampler)

    def accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self.chain, token)

    def sample(self, logits: npt.NDArray[np.float32]) -> tuple[int, list[tuple[int, float]]]:
        """The token and all candidates with their probabilities."""
        data = (llama_cpp.llama_token_data * N_VOCAB)(*((i, x, 0.0) for i, x in enumerate(logits)))
        array = llama_cpp.llama_token_data_array(data, N_VOCAB, -1, False)
        llama_cpp.llama_sampler_apply(self.chain, ctypes.byref(array))
        left = [(array.data[i].id, array.data[i].p) for i in range(array.size)]
        token = left[array.selected][0]
        self.accept(token)
        return token, left


def record(vocab: Any, number: int, case: dict[str, Any]) -> dict[str, Any]:
    chain = Chain(vocab, SamplingParams(**case["params"]))
    for token in prompt_of(number):
        chain.accept(token)
    answer: dict[str, Any] = {**case, "tokens": [], "candidates": [], "sizes": []}
    for step in range(N_STEPS):
        token, left = chain.sample(logits_of(number, step, case["scale"]))
        left = sorted((c for c in left if c[1] >= 1e-7), key=lambda pair: -pair[1])
        answer["tokens"].append(token)
        answer["sizes"].append(len(left))
        answer["candidates"].append({str(i): float(f"{p:.7g}") for i, p in left[:40]})
    return answer


def main() -> None:
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        write_gguf(file.name, vocab_kv(), [])
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(file.name.encode(), params)
    vocab = llama_cpp.llama_model_get_vocab(model)
    recorded = {"cases": [record(vocab, number, case) for number, case in enumerate(cases())]}
    path = Path(__file__).with_name("sampling.json")
    path.write_text(json.dumps(recorded, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
