"""Prompts and generation of one model with random weights, timed through the engine; what a step launches."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from kernels import use
from random_model import SHAPES, RandomSource, prompt_flops, read_bytes
from timing import clocks

from naiad.runtime.cli.timing import SPARE_TOKENS, RandomTokens, advance, finish, greedy
from naiad.runtime.config import ModelConfig
from naiad.runtime.decoder import Decoder
from naiad.runtime.engine.build import EngineOptions, engine_memory, make_engine
from naiad.runtime.engine.engine import Engine, Handle
from naiad.runtime.engine.pages import PAGE_SIZE, GroupSpec
from naiad.runtime.engine.vocabulary import Vocabulary
from naiad.runtime.footprint import page_bytes
from naiad.runtime.model import ModelOptions, load_model, read_model_config
from naiad.runtime.sampling import SamplingParams
from naiad.runtime.session import Session

Record = dict[str, Any]
Options = argparse.Namespace

# Steps that are not timed, and those that the profiler sees.
WARM_STEPS, PROFILED_STEPS = 8, 4
# Tokens of the prompts that are served, and those that warm up, prompt and generated.
SERVED_TOKENS, SERVED_WARM = 1000, (64, 16)
# The prompt whose logits are looked at before anything is timed.
CHECKED_TOKENS = 33
# Share of the limit in generation of one sequence: what must be reached, and what is aimed at.
GATES = {
    **{"llama-3-8b": (0.60, 0.75), "qwen2.5-7b": (0.60, 0.75), "qwen2.5-32b": (0.75, 0.87)},
    **{"llama-3-70b": (0.80, 0.90), "qwen3-30b-a3b": (0.25, 0.45), "llama-3.2-1b": (0.40, 0.55)},
}


@dataclass(frozen=True, slots=True)
class Case:
    """pp: a prompt of n_prompt tokens; tg: generation by so many sequences; served: so many requests at once, each with
    a prompt of n_prompt tokens and as many to generate; kernels: what a step of generation launches."""

    kind: str
    batch: int = 1
    depth: int = 0
    n_prompt: int = 0
    sampling: str = "greedy"

    def __str__(self) -> str:
        if self.kind == "pp":
            return f"pp {self.n_prompt} on {self.depth}"
        if self.kind == "served":
            return f"served {self.batch} x ({self.n_prompt} + {self.n_prompt})"
        return f"{self.kind} x {self.batch} on {self.depth}, {self.sampling}"

    def n_tokens(self, options: Options) -> int:
        """Of a sequence at the end."""
        if self.kind == "served":
            return 2 * self.n_prompt
        steps = PROFILED_STEPS if self.kind == "kernels" else options.steps * options.repeats
        return self.depth + (self.n_prompt or 1 + WARM_STEPS + steps) + 1


def cases(options: Options) -> list[Case]:
    """In the order of their weight, as time may not suffice for all."""
    first = [b for b in options.batches if b == 1]
    chains = [b for b in options.batches if b in (1, 64)]
    found = [Case("tg", b, depth) for depth in options.depths for b in first]
    found += [Case("pp", 1, depth, n) for depth in options.depths for n in options.prompts]
    found += [Case("tg", b, depth) for depth in options.depths for b in options.batches if b != 1]
    found += [Case("tg", b, sampling="default") for b in chains if 0 in options.depths]
    found += [Case("served", options.served, n_prompt=SERVED_TOKENS)] if options.served else []
    # Last: after the profiler, times are not what they were.
    return found + [Case("kernels", b) for b in chains]


class Model:
    """A model, its engine, and what its cases need. ValueError where its logits are not finite."""

    def __init__(self, name: str, options: Options, limits: Mapping[str, Any]) -> None:
        start = time.monotonic()
        self.name, self.shape, self.options, self.limits = name, SHAPES[name], options, limits
        self.device = use(options.device)
        self.source = RandomSource(name, self.shape, self.device)
        longest = max(case.n_tokens(options) for case in options.cases)
        wanted = ModelOptions(device=str(self.device), n_ctx=longest + SPARE_TOKENS)
        engine_options = EngineOptions(n_batch=options.n_batch, max_seqs=max(case.batch for case in options.cases))
        self.config = read_model_config(self.source)
        _, memory = engine_memory(self.source, self.config, wanted, engine_options, use_mmap=False)
        decoder, _ = load_model(self.source, replace(wanted, n_ctx=memory.n_ctx))
        rms = logits_rms(decoder)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        k_type, v_type = memory.options.k_type, memory.options.v_type
        self.engine = make_engine(
            decoder,
            Vocabulary(decoder.n_vocab),
            n_ctx=memory.n_ctx,
            k_type=k_type,
            v_type=v_type,
            groups=[GroupSpec(group.n_pages, group.window, group.n_host_pages) for group in memory.groups],
            options=engine_options,
        )
        for group in range(len(memory.groups)):
            for _, plane in self.engine.runner.cache.planes(group):
                plane.normal_()
        self.tokens = RandomTokens(SimpleNamespace(n_vocab=decoder.n_vocab, bos_id=None, add_bos=False))
        self.host = HostClock(self.engine)
        self.kv_bytes = token_bytes(self.config, k_type, v_type)
        self.facts: Record = {
            "weight_bytes": round(read_bytes(self.source, self.shape)),
            "file_bytes": sum(tensor.n_bytes for tensor in self.source.tensors.values()),
            "kv_bytes": self.kv_bytes,
            "cache_types": [k_type, v_type],
            "cache_tokens": memory.pool_tokens,
            "n_batch": options.n_batch,
            "logits_rms": round(rms, 3),
            "load_s": round(time.monotonic() - start, 1),
        }

    # ---- cases ----

    def run(self, case: Case) -> Record:
        """A case's record. ValueError for requests that fail, and whatever the device raises."""
        # Requests that are served may wait for others to end.
        together = 1 if case.kind == "served" else case.batch
        needed = together * -(-case.n_tokens(self.options) // PAGE_SIZE)
        self.engine.forget()
        if needed > self.engine.scheduler.pool.n_free():
            return {"skipped": f"it needs {needed * PAGE_SIZE} tokens of cache, {self.facts['cache_tokens']} fit"}
        runs = {"pp": self._prompt, "tg": self._generate, "served": self._serve, "kernels": self._kernels}
        return runs[case.kind](case)

    def _prompt(self, case: Case) -> Record:
        seconds = []
        for _ in range(1 + self.options.repeats):
            self.engine.forget()
            before = self.tokens.text(case.depth)
            fill(self.engine, [before])
            prompt = [*before, *self.tokens.more(case.n_prompt)]
            self.engine.synchronize()
            start = time.perf_counter()
            handle = self.engine.submit(prompt, greedy(1))
            finish(self.engine, [handle])
            seconds.append(time.perf_counter() - start)
            check_cached([handle], case)
        n, (median, low, high) = case.n_prompt, spread(seconds[1:])
        tflops = n * prompt_flops(self.source, self.shape) / median / 1e12
        return {
            "ms": [round(s * 1e3, 3) for s in (median, low, high)],
            "tokens_per_s": [round(n / s, 1) for s in (median, high, low)],
            "tflops": round(tflops, 2),
            "share_of_mm": share(tflops, self.limits.get("mm_8192_tflops")),
        }

    def _generate(self, case: Case) -> Record:
        n, repeats = self.options.steps, self.options.repeats
        with self._running(case) as (handles, first_s):
            seconds, self.host.waited, begin = [], 0.0, time.perf_counter()
            for _ in range(repeats):
                before = sum(len(handle.tokens) for handle in handles)
                start = time.perf_counter()
                for _ in range(n):
                    self.engine.step()
                seconds.append((time.perf_counter() - start) / n)
                made = sum(len(handle.tokens) for handle in handles) - before
                if made != n * case.batch:
                    raise ValueError(f"{n} steps made {made} tokens: {failure(handles) or 'not all took part'}")
            host = (time.perf_counter() - begin - self.host.waited) / (n * repeats)
            distinct = len({handle.tokens[-1] for handle in handles})
        if case.batch >= 8 and distinct == 1:
            raise ValueError(f"all {case.batch} sequences get token {handles[0].tokens[-1]}: their logits are wrong")
        record = {"first_s": round(first_s, 2), "distinct": distinct, **self._rates(case, spread(seconds))}
        if self.device.type == "cuda":
            record |= {"host_us": round(host * 1e6, 1), "memory": torch.cuda.max_memory_allocated(self.device)}
        return record

    def _rates(self, case: Case, seconds: tuple[float, float, float]) -> Record:
        context = case.depth + 1 + WARM_STEPS + self.options.steps * self.options.repeats / 2
        n_bytes = read_bytes(self.source, self.shape, case.batch) + case.batch * context * self.kv_bytes
        gb_s = n_bytes / seconds[0] / 1e9
        record: Record = {
            "ms": [round(s * 1e3, 4) for s in seconds],
            "tokens_per_s": [round(case.batch / seconds[i], 1) for i in (0, 2, 1)],
            "bytes": round(n_bytes),
            "gb_s": round(gb_s, 1),
            "share_of_read": share(gb_s, self.limits.get("read_gb_s")),
            "share_of_spec": share(gb_s, self.limits.get("spec_gb_s")),
        }
        if case.batch == 1 and case.sampling == "greedy" and self.name in GATES and record["share_of_read"]:
            gate, aim = GATES[self.name]
            reached = "aim" if record["share_of_read"] >= aim else "gate" if record["share_of_read"] >= gate else "none"
            record |= {"gate": gate, "aim": aim, "reached": reached}
        return record

    def _serve(self, case: Case) -> Record:
        """Generated tokens per second, from the first request's arrival to the last one's end."""
        for n_prompt, n_generate in (SERVED_WARM, (case.n_prompt, case.n_prompt)):
            self.engine.forget()
            prompts = [self.tokens.text(n_prompt) for _ in range(case.batch)]
            self.engine.synchronize()
            start = time.perf_counter()
            handles = [self.engine.submit(prompt, greedy(n_generate)) for prompt in prompts]
            finish(self.engine, handles)
            seconds = time.perf_counter() - start
        made = sum(len(handle.tokens) for handle in handles)
        if made != case.batch * case.n_prompt:
            raise ValueError(f"expected {case.batch * case.n_prompt} tokens, found {made}: {failure(handles)}")
        return {"ms": [round(seconds * 1e3, 1)], "tokens_per_s": [round(made / seconds, 1)]}

    def _kernels(self, case: Case) -> Record:
        if self.device.type != "cuda":
            return {"skipped": "the profiler counts kernels on a GPU"}
        with self._running(case):
            events = profiled(self.engine)
        return {**by_kernel(events, PROFILED_STEPS, self.shape.n_layers), "clocks": clocks(self.device)}

    @contextmanager
    def _running(self, case: Case) -> Iterator[tuple[list[Handle], float]]:
        """Sequences that get a token in every step, and the seconds that the first one took, compiling included."""
        engine = self.engine
        befores = [self.tokens.text(case.depth) for _ in range(case.batch)]
        fill(engine, befores)
        start = time.perf_counter()
        try:
            handles = [
                engine.submit([*before, *self.tokens.more(1)], chain(case.sampling, seed))
                for seed, before in enumerate(befores)
            ]
            advance(engine, handles, lambda: all(handle.tokens for handle in handles))
            first_s = time.perf_counter() - start
            for _ in range(WARM_STEPS):
                engine.step()
            if why := failure(handles):
                raise ValueError(why)
            check_cached(handles, case)
            yield handles, first_s
        finally:
            engine.abort_all("the case is over")


class HostClock:
    """Counts the seconds in which the host waits for the device; what is left of a step is the host's own work."""

    def __init__(self, engine: Engine) -> None:
        self.waited = 0.0
        launch = engine.runner.launch

        def launched(step: Any) -> Any:
            results: Any = launch(step)
            if results.arrived is not None:
                results.arrived = SimpleNamespace(synchronize=partial(self.wait, results.arrived.synchronize))
            return results

        engine.runner.launch = launched  # type: ignore[method-assign]

    def wait(self, synchronize: Callable[[], object]) -> None:
        start = time.perf_counter()
        synchronize()
        self.waited += time.perf_counter() - start


def logits_rms(decoder: Decoder) -> float:
    """The size of the logits of a prompt and of a token after it. ValueError where they are not ordinary numbers."""
    session = Session(decoder, CHECKED_TOKENS + 1)
    tokens = list(range(1, CHECKED_TOKENS + 1))
    logits = torch.cat([session.logits(tokens)[-4:], session.logits([0])])
    rms = float(logits.double().square().mean().sqrt())
    if not 1e-3 < rms < 1e3:
        raise ValueError(f"expected logits of ordinary size, found a root mean square of {rms:g}")
    return rms


def token_bytes(config: ModelConfig, k_type: str, v_type: str) -> int:
    """KV, the bytes of the keys and values of a token in all layers."""
    return page_bytes(config, k_type, v_type) * config.n_layers // PAGE_SIZE


def fill(engine: Engine, prefixes: Sequence[Sequence[int]]) -> None:
    """Lets the engine find these prefixes in its cache: their keys and values are what lies there."""
    pool = engine.scheduler.pool

    def adopt() -> None:
        for prefix in prefixes:
            pages = pool.adopt(prefix) if prefix else None
            if pages is not None:
                engine.runner.cache.move(pool.take_moves())
                pool.release(pages, prefix)

    engine.between_steps(adopt)


def chain(sampling: str, seed: int) -> SamplingParams:
    usual = SamplingParams(seed=seed, ignore_eos=True)
    return replace(usual, temperature=0.0) if sampling == "greedy" else usual


def failure(handles: Iterable[Handle]) -> str:
    """Why the first of the requests that have ended did so; empty for none."""
    ended = [handle for handle in handles if handle.finish_reason is not None]
    return f"a request ended with {ended[0].finish_reason!r}: {ended[0].error}" if ended else ""


def check_cached(handles: Iterable[Handle], case: Case) -> None:
    """ValueError where what should have been in the cache was computed."""
    found = min(handle.n_cached for handle in handles)
    if found < case.depth:
        raise ValueError(f"expected {case.depth} tokens of each sequence in the cache, found {found}")


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def share(value: float, limit: float | None) -> float | None:
    return round(value / limit, 4) if limit else None


# ---- what a step launches -------------------------------------------------------------------------------------------


def profiled(engine: Engine) -> list[tuple[str, float]]:
    """Name and microseconds of all that runs on the device in PROFILED_STEPS steps."""
    from torch.profiler import ProfilerActivity, profile

    engine.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(PROFILED_STEPS):
            engine.step()
        engine.synchronize()
    events = [event for event in found.events() or () if event.device_type.name == "CUDA"]
    return [(event.name, event.time_range.elapsed_us()) for event in events]


def by_kernel(events: Iterable[tuple[str, float]], steps: int, n_layers: int) -> Record:
    """Launches and microseconds per step: of kernels together, in a layer, and by name; copies apart.

    Of a layer as most are: before the first and behind the last one, single launches come and go.
    """
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, us in events:
        found[name][0] += 1 / steps
        found[name][1] += us / steps
    kernels = {name: pair for name, pair in found.items() if not name.startswith(("Memcpy", "Memset"))}
    slowest = sorted(kernels, key=lambda name: -kernels[name][1])
    return {
        "per_step": round(sum(n for n, _ in kernels.values()), 2),
        "per_layer": sum(round(n / n_layers) for n, _ in kernels.values()),
        "copies": round(sum(found[name][0] for name in found.keys() - kernels.keys()), 2),
        "device_us": round(sum(us for _, us in kernels.values()), 1),
        "kernels": {name[:120]: [round(value, 2) for value in kernels[name]] for name in slowest},
    }
