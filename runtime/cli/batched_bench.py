"""`naiad batched-bench`: how fast many sequences run together; llama-batched-bench's options and table.

First the prompts alone, then, from one token more for each sequence, the generation: as many steps of one token per
sequence as there are to generate.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..threads import plan_threads
from .lists import listed, number_list
from .model_options import MODEL_OPTIONS, load_llm
from .options import Option, Parser, one_of
from .thread_options import thread_options
from .timing import SPARE_TOKENS, Engine, RandomTokens, finish, greedy

N_POSITIONAL = 0
WARMUP_PROMPT, WARMUP_STEPS = 16, 2
LISTS = [
    (Option(("-npp",), "tokens of a prompt (default: 512)", number_list(1), "LIST", many=True), [512]),
    (Option(("-ntg",), "tokens to generate in each sequence (default: 128)", number_list(1), "LIST", many=True), [128]),
    (
        Option(("-npl",), "sequences at a time (default: 1,2,4,8,16,32)", number_list(1), "LIST", many=True),
        [1, 2, 4, 8, 16, 32],
    ),
]
PARSER = Parser(
    "batched-bench",
    "Times prompts and generation of several sequences at a time. What needs more than -c tokens together is left out.",
    [
        *(option for option in MODEL_OPTIONS if option.key != "parallel"),
        *(option for option, _ in LISTS),
        Option(("-pps",), "let all sequences share one prompt"),
        Option(("--output-format",), "md or jsonl", one_of("md", "jsonl"), "FORMAT", "md"),
    ],
)
TITLES = ("PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s")
WIDTHS = (6, 6, 4, 6, 8, 8, 8, 8, 8, 8)


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences at a time, each with a prompt and tokens to generate."""

    n_prompt: int
    n_gen: int
    n_seqs: int
    shared: bool

    @property
    def n_prompts(self) -> int:
        """Tokens of all prompts that are computed."""
        return self.n_prompt * (1 if self.shared else self.n_seqs)

    @property
    def n_kv(self) -> int:
        return self.n_prompts + self.n_seqs * self.n_gen

    def results(self, prompt_seconds: float, gen_seconds: float) -> dict[str, int | float]:
        """Under the names of llama-batched-bench's JSON lines, in the order of its table."""
        n_gen, seconds = self.n_seqs * self.n_gen, prompt_seconds + gen_seconds
        return {
            "pp": self.n_prompt,
            "tg": self.n_gen,
            "pl": self.n_seqs,
            "n_kv": self.n_kv,
            "t_pp": prompt_seconds,
            "speed_pp": self.n_prompts / prompt_seconds,
            "t_tg": gen_seconds,
            "speed_tg": n_gen / gen_seconds,
            "t": seconds,
            "speed": self.n_kv / seconds,
        }


def main(values: dict[str, Any]) -> int:
    values = {**values, **{option.key: listed(option, values) or usual for option, usual in LISTS}}
    loads = list(_loads(values))
    with load(values, loads) as llm:
        settings = _settings(values, loads)
        if values["output_format"] == "md":
            _print_head(settings)
        tokens = RandomTokens(llm.tokenizer)
        for n_seqs in sorted({case.n_seqs for case in loads}):
            run_load(llm.engine, tokens, Load(WARMUP_PROMPT, WARMUP_STEPS, n_seqs, bool(values["pps"])))
        for case in loads:
            if case.n_kv > llm.memory.pool_tokens:
                print(f"left out, the cache holds {llm.memory.pool_tokens} tokens: {case}", file=sys.stderr)
                continue
            results = case.results(*run_load(llm.engine, tokens, case))
            if values["output_format"] == "md":
                _print_row(
                    [f"{v:.{3 if k[0] == 't' else 2}f}" if isinstance(v, float) else str(v) for k, v in results.items()]
                )
            else:
                print(json.dumps({**settings, **{k: _rounded(v) for k, v in results.items()}}), flush=True)
    return 0


def _rounded(value: int | float) -> int | float:
    return round(value, 6) if isinstance(value, float) else value


def _loads(values: Mapping[str, Any]) -> Iterator[Load]:
    """What fits into -c tokens; ValueError where nothing does."""
    cases = [Load(*sizes, bool(values["pps"])) for sizes in product(values["npp"], values["ntg"], values["npl"])]
    fitting = [case for case in cases if not values["ctx_size"] or case.n_kv <= values["ctx_size"]]
    if not fitting:
        least = min(case.n_kv for case in cases)
        raise ValueError(f"-c {values['ctx_size']} is too small: {least} tokens are needed at least")
    yield from fitting


def load(values: Mapping[str, Any], loads: list[Load]) -> Any:
    """The model, with room for as many sequences as the largest of the loads has."""
    longest = max(WARMUP_PROMPT + WARMUP_STEPS, *(case.n_prompt + case.n_gen for case in loads))
    n_seqs = max(case.n_seqs for case in loads)
    return load_llm({**values, "ctx_size": longest + SPARE_TOKENS, "parallel": n_seqs})


def run_load(engine: Engine, tokens: RandomTokens, case: Load) -> tuple[float, float]:
    """Seconds of the prompts, until the first token of each is known, and of the generation.

    The generation finds the prompts in the cache. Each sequence goes on with a token of its own, so that none of them
    shares more than the prompt.
    """
    engine.forget()
    prompts = [tokens.text(case.n_prompt) for _ in range(1 if case.shared else case.n_seqs)]
    engine.synchronize()
    start = time.perf_counter_ns()
    finish(engine, [engine.submit(prompt, greedy(1)) for prompt in prompts])
    middle = time.perf_counter_ns()
    following = [[*prompts[0 if case.shared else i], *tokens.more(1)] for i in range(case.n_seqs)]
    engine.synchronize()
    second = time.perf_counter_ns()
    finish(engine, [engine.submit(prompt, greedy(case.n_gen)) for prompt in following])
    end = time.perf_counter_ns()
    return max(1, middle - start) / 1e9, max(1, end - second) / 1e9


def _settings(values: Mapping[str, Any], loads: list[Load]) -> dict[str, int]:
    """Under llama-batched-bench's names."""
    threads = plan_threads(thread_options(values))
    n_gpu_layers = values["n_gpu_layers"]
    return {
        "n_kv_max": values["ctx_size"] or max(case.n_kv for case in loads),
        "n_batch": values["batch_size"],
        "n_ubatch": values["batch_size"],
        "flash_attn": {"auto": -1, "off": 0, "on": 1}[values["flash_attn"]],
        "is_pp_shared": int(bool(values["pps"])),
        "n_gpu_layers": -1 if n_gpu_layers is None else n_gpu_layers,
        "n_threads": threads.decode.n_threads,
        "n_threads_batch": threads.batch.n_threads,
    }


def _print_head(settings: Mapping[str, int]) -> None:
    print("naiad batched-bench: " + ", ".join(f"{name} = {value}" for name, value in settings.items()), file=sys.stderr)
    _print_row(list(TITLES))
    print("|" + "|".join("-" * (width + (1 if i == 0 else 2)) for i, width in enumerate(WIDTHS)) + "|")


def _print_row(cells: list[str]) -> None:
    # llama-batched-bench has no space before the first column.
    print("|" + " | ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True)) + " |", flush=True)
