"""What naiad is to reach on one H200, and what was measured: the table of perf/README.md.

python perf/targets.py [--arch sm_90] [--write]

Gates must be reached, aims are what good work would reach; others' figures are the best that were found published, on
the card that they name. Measured values come from results/models-*, kernels-* and peer-*.json of the architecture.
--write puts the table into README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_cases import GATES

PERF = Path(__file__).parent
README, RESULTS = PERF / "README.md", PERF / "results"
BEGIN, END = "<!-- targets: python perf/targets.py --write -->", "<!-- end of targets -->"
HEAD = "| Q4_K_M, one H200 | gate | aim | others | measured | llama.cpp beside it |\n|---|---|---|---|---|---|"
NONE = "not yet"
HEADS = "32/8 x 128"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Results:
    """Of one architecture: records of whole models, of kernels by part, and tokens per second of llama.cpp by test."""

    models: dict[str, list[Record]]
    kernels: dict[str, list[Record]]
    peers: dict[str, dict[str, list[float]]]

    def model(self, name: str, kind: str, **fields: Any) -> Record | None:
        """The record of a case, unless it was skipped or failed."""
        usual = {"kind": kind, "batch": 1, "depth": 0, "n_prompt": 0, "sampling": "greedy"} | fields
        found = (r for r in self.models.get(name, ()) if all(r.get(k) == v for k, v in usual.items()))
        return next((r for r in found if "ms" in r), None)

    def attention(self, case: str, field: str) -> float | None:
        """naiad's value of a case with Llama-3-8B's heads."""
        found = (r for r in self.kernels.get("attention", ()) if (r["case"], r.get("heads")) == (case, HEADS))
        values = [r[field]["naiad"] for r in found if "naiad" in r.get(field, {})]
        return next((value[0] if isinstance(value, list) else value for value in values), None)

    def peer(self, name: str, test: str) -> str:
        rates = self.peers.get(name, {}).get(test)
        return f"{statistics.median(rates):,.0f}" if rates else ""


def load(folder: Path, arch: str) -> Results:
    found = Results({}, {}, {})
    for path in sorted(folder.glob(f"*-{arch}*.json")):
        content = json.loads(path.read_text())
        if path.name.startswith("models-"):
            for name, model in content["models"].items():
                found.models.setdefault(name, []).extend(model["records"])
        elif path.name.startswith("kernels-"):
            for part, records in content["records"].items():
                found.kernels.setdefault(part, []).extend(records)
        elif path.name.startswith("peer-"):
            for name, model in content["models"].items():
                found.peers[name] = model["tokens_per_s"]["llama.cpp"]
    return found


# ---- the rows -------------------------------------------------------------------------------------------------------

LABELS = {
    "llama-3-8b": "Llama-3-8B",
    "qwen2.5-7b": "Qwen2.5-7B",
    "qwen2.5-32b": "Qwen2.5-32B",
    "llama-3-70b": "Llama-3-70B",
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
    "llama-3.2-1b": "Llama-3.2-1B",
}
# Tokens per second at 4.3 TB/s; the best that others reach, in tokens per second.
LIMITS = {
    **{"llama-3-8b": 931, "qwen2.5-7b": 984, "qwen2.5-32b": 222, "llama-3-70b": 103},
    **{"qwen3-30b-a3b": 2240, "llama-3.2-1b": 5376},
}
OTHERS = {
    "llama-3-8b": "255 (SGLang int4, H100)",
    "qwen2.5-7b": "154 (vLLM GPTQ, A100)",
    "qwen2.5-32b": "71 (llama.cpp, 31B, H200)",
    "llama-3-70b": "51 (TensorRT-LLM FP8, H200)",
    "qwen3-30b-a3b": "204 (llama.cpp, 35B-A3B, H200)",
    "llama-3.2-1b": "796 (llama.cpp, 1.2B, H200)",
}


def generation(results: Results) -> Iterator[str]:
    """One sequence: tokens per second and the share of what the card's read bandwidth allows."""
    for name, (gate, aim) in GATES.items():
        found = results.model(name, "tg")
        measured = NONE
        if found is not None:
            measured = f"{found['tokens_per_s'][0]:,.0f} ({found['share_of_read']:.0%})"
        wanted = (f"{share * LIMITS[name]:,.0f} ({share:.0%})" for share in (gate, aim))
        what = f"{LABELS[name]}, one sequence, tokens/s"
        yield row(what, *wanted, OTHERS[name], measured, results.peer(name, "tg128"))


def prompts(results: Results) -> Iterator[str]:
    for name, n, gate, aim, others in (
        ("llama-3-8b", 512, "17,000", "28,000", ""),
        ("llama-3-8b", 2048, "20,000", "34,000", "11,800 (llama.cpp, Gemma-4 E4B, H100)"),
        ("llama-3-70b", 2048, "2,300", "3,700", "1,000 (llama.cpp 2024, H100 PCIe)"),
        ("qwen3-30b-a3b", 2048, "12,000", "30,000", "33,800 (vLLM bf16, 26B-A4B, H100)"),
    ):
        found = results.model(name, "pp", n_prompt=n)
        measured = NONE if found is None else f"{found['tokens_per_s'][0]:,.0f}"
        what = f"{LABELS[name]}, prompt of {n}, tokens/s"
        yield row(what, gate, aim, others, measured, results.peer(name, f"pp{n}"))


def batches(results: Results) -> Iterator[str]:
    def rate(kind: str, **fields: Any) -> str:
        found = results.model("llama-3-8b", kind, **fields)
        return NONE if found is None else f"{found['tokens_per_s'][0]:,.0f}"

    yield row(
        "Llama-3-8B, 32 sequences of 1k, tokens/s",
        *("7,000", "9,300", "3,200 (SGLang int4, H100)", rate("tg", batch=32, depth=1024)),
        results.peer("llama-3-8b", "tg64 x 32 @ d1024"),
    )
    yield row(
        "Llama-3-8B, 256 requests of 1000 + 1000, tokens/s",
        *("9,000", "14,000", "17,700 (TensorRT-LLM FP8, H200)", rate("served", batch=256, n_prompt=1000), ""),
    )
    steps = {b: results.model("llama-3-8b", "tg", batch=b) for b in (1, 2, 4, 8)}
    known = {b: found["ms"][0] for b, found in steps.items() if found is not None}
    kept = f"{known[1] / max(known.values()):.2f}" if len(known) == len(steps) else NONE
    yield row("Llama-3-8B, a step's speed with 2 to 8 sequences / one", "0.85", "0.92", "", kept, "")
    alone = steps[1]
    host = f"{alone['host_us']:.0f} of {alone['ms'][0] * 1e3:.0f}" if alone and "host_us" in alone else NONE
    yield row("the host's work per token, µs", "a step", "200", "", host, "")


def attention(results: Results) -> Iterator[str]:
    def text(value: float | None) -> str:
        return NONE if value is None else f"{value:,.0f}"

    prefill = [results.attention(f"prefill {n * 1024}", "tflops") for n in (1, 2, 4, 8, 16, 32)]
    best = max((value for value in prefill if value is not None), default=None)
    yield row("attention of a prompt, TFLOP/s", "400", "600", "740 (FlashAttention 3, H100)", text(best), "")
    many = text(results.attention("decode 32 x 4096", "gb_s"))
    yield row("attention, 32 sequences of 4k, GB/s", "3,400", "3,900", "3,980 (TileOPs, H200)", many, "")
    one = text(results.attention("decode 1 x 4096", "us"))
    yield row("attention, one sequence of 4k, µs", "12", "7", "7 to 19 (TileOPs, FlashAttention 3)", one, "")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(results: Results) -> str:
    parts = (generation, prompts, batches, attention)
    return "\n".join([HEAD, *(line for part in parts for line in part(results))])


def written(text: str, made: str) -> str:
    """The text with the table between the marks. ValueError where a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN} and {END} in {README}")
    return f"{before}{begin}\n{made}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90", help="by default sm_90")
    parser.add_argument("--write", action="store_true", help="into README.md")
    options = parser.parse_args(argv)
    made = table(load(RESULTS, options.arch))
    print(made)
    if options.write:
        README.write_text(written(README.read_text(), made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
