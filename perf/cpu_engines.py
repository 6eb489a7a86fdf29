"""naiad and llama.cpp behind the same calls, each in a process of its own that times itself.

As a program: a model and how to run it as JSON in the argument, then a command [name, numbers …] per line of stdin and
its answer per line of stdout. Neither process loads the other's libraries, so that peak memory is that of one engine.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

Json = dict[str, Any]
# Time for the threads of the engine that ran before to fall asleep.
REST_SECONDS = 0.05
# What llama-bench runs with.
LLAMA_BATCH, LLAMA_STEP = 2048, 512


class Engine(Protocol):
    """Sequences of the same length. n_vocab: random tokens are below it. cache_bytes: what was set aside for them."""

    n_vocab: int
    cache_bytes: int
    about: str

    def add(self, tokens: list[list[int]]) -> None:
        """Computes more tokens of each of the first len(tokens) sequences, with logits for the last ones."""

    def cut(self, length: int) -> None:
        """Forgets what lies behind so many tokens of each."""


class Naiad:
    """The decoder on pages of its own, in steps as the engine makes them. logits: those of the last step."""

    def __init__(
        self, path: str, n_threads: int, n_ctx: int, n_seqs: int, dequantize: str, cpu_isa: str | None = None
    ) -> None:
        from naiad import LLM
        from naiad.runtime.cache import PagedCache, cache_groups
        from naiad.runtime.defaults import N_BATCH
        from naiad.runtime.engine.pages import PAGE_SIZE

        form: Json = {"dequantize": dequantize, "cpu_isa": cpu_isa}
        self.llm = LLM(path, device="cpu", n_threads=n_threads, n_ctx=n_ctx, max_seqs=1, **form)
        self.n_batch, self.length, self.n_vocab = N_BATCH, 0, self.llm.decoder.n_vocab
        self.n_pages = -(-n_ctx // PAGE_SIZE)
        self.n_groups = len(cache_groups(self.llm.decoder.config))
        devices = [layer.ops.device for layer in self.llm.decoder.layers]
        types, n_pages = self.llm.memory.options, [1 + n_seqs * self.n_pages] * self.n_groups
        self.cache = PagedCache(self.llm.decoder.config, devices, types.k_type, types.v_type, n_pages)
        self.cache_bytes = self.cache.n_bytes
        backends = " and ".join(line for ops in self.llm.decoder.output_ops.backends for line in ops.describe())
        self.about = f"{backends}; {self.llm.plan.describe(self.llm.decoder.config)[-1]}"

    def add(self, tokens: list[list[int]]) -> None:
        for step in self._steps(tokens):
            self._run(step)
        self.length += len(tokens[0])

    def cut(self, length: int) -> None:
        self.length = length

    def _steps(self, tokens: list[list[int]]) -> Iterator[list[tuple[int, int, list[int]]]]:
        """(sequence, start, tokens) of each step: n_batch tokens of as many sequences as have them."""
        step: list[tuple[int, int, list[int]]] = []
        room = self.n_batch
        for i, own in enumerate(tokens):
            start = 0
            while start < len(own):
                step.append((i, start, own[start : start + room]))
                start += len(step[-1][2])
                room -= len(step[-1][2])
                if not room:
                    yield step
                    step, room = [], self.n_batch
        if step:
            yield step

    def _run(self, step: list[tuple[int, int, list[int]]]) -> None:
        from naiad.runtime.batch import Batch, NewTokens
        from naiad.runtime.engine.pages import PAGE_SIZE

        new = []
        for i, start, tokens in step:
            n_cached = self.length + start
            first = 1 + i * self.n_pages
            pages = range(first, first - (-(n_cached + len(tokens)) // PAGE_SIZE))
            new.append(NewTokens(tokens, n_cached, [pages] * self.n_groups))
        self.logits = self.llm.decoder.forward(Batch.build(new, PAGE_SIZE), self.cache)


class LlamaCpp:
    """llama.cpp's C interface with llama-bench's defaults."""

    def __init__(
        self, path: str, n_threads: int, n_ctx: int, n_seqs: int, dequantize: str, cpu_isa: str | None = None
    ) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        # A sequence's share of the cache is a multiple of 256 tokens.
        params.n_ctx, params.n_seq_max = n_seqs * -(-n_ctx // 256) * 256, n_seqs
        params.n_batch, params.n_ubatch = LLAMA_BATCH, LLAMA_STEP
        params.n_threads = params.n_threads_batch = n_threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError(f"llama.cpp cannot make a context of {params.n_ctx} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.cache_bytes = params.n_ctx * self._token_bytes()
        self.batch = llama_cpp.llama_batch_init(LLAMA_BATCH, 0, 1)
        self.length, self.n_seqs = 0, n_seqs
        self.about = llama_cpp.llama_print_system_info().decode()

    def _token_bytes(self) -> int:
        """Bytes of a token's keys and values in 16 bits."""
        api, model = self.api, self.model

        def integer(key: str) -> int:
            text = ctypes.create_string_buffer(64)
            found = api.llama_model_meta_val_str(model, f"{architecture}.{key}".encode(), text, 64)
            return int(text.value) if found > 0 else 0

        name = ctypes.create_string_buffer(64)
        api.llama_model_meta_val_str(model, b"general.architecture", name, 64)
        architecture = name.value.decode()
        plain = api.llama_model_n_embd(model) // api.llama_model_n_head(model)
        widths = [integer(f"attention.{part}_length") or plain for part in ("key", "value")]
        n_kv_heads: int = api.llama_model_n_head_kv(model)
        n_layers: int = api.llama_model_n_layer(model)
        return 2 * n_layers * n_kv_heads * sum(widths)

    def add(self, tokens: list[list[int]]) -> None:
        last = len(tokens[0]) - 1
        rows = [(t, self.length + j, i, j == last) for i, own in enumerate(tokens) for j, t in enumerate(own)]
        for start in range(0, len(rows), LLAMA_BATCH):
            self._decode(rows[start : start + LLAMA_BATCH])
        self.api.llama_synchronize(self.context)
        self.length += last + 1

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self.batch
        batch.n_tokens = len(rows)
        for row, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, wanted
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        code = self.api.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode gives {code}")

    def cut(self, length: int) -> None:
        for i in range(self.n_seqs):
            self.api.llama_memory_seq_rm(self.memory, i, length, -1)
        self.length = length


ENGINES: dict[str, type[Naiad] | type[LlamaCpp]] = {"naiad": Naiad, "llama.cpp": LlamaCpp}


def peak_bytes() -> int:
    """The most memory that this process had, mapped pages of files included."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss it does not begin with what the parent had.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Timed:
    """The commands of a process."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.random = engine, random.Random(0)

    def _tokens(self, n_seqs: int, n: int) -> list[list[int]]:
        return [[self.random.randrange(self.engine.n_vocab) for _ in range(n)] for _ in range(n_seqs)]

    def prompt(self, n_seqs: int, n: int) -> float:
        """Seconds of n tokens of each sequence at once."""
        return self._seconds([self._tokens(n_seqs, n)])

    def generate(self, n_seqs: int, n: int) -> float:
        """Seconds of n tokens of each sequence, one after another. They are random, nothing is sampled."""
        return self._seconds([self._tokens(n_seqs, 1) for _ in range(n)])

    def cut(self, length: int) -> None:
        self.engine.cut(length)

    def about(self) -> Json:
        return {"about": self.engine.about, "cache": self.engine.cache_bytes}

    def peak(self) -> int:
        return peak_bytes()

    def _seconds(self, steps: list[list[list[int]]]) -> float:
        time.sleep(REST_SECONDS)
        start = time.perf_counter()
        for tokens in steps:
            self.engine.add(tokens)
        return time.perf_counter() - start


class EngineProcess:
    """Such a process, seen from outside."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"engine": name, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            info = self.call("about")
        except RuntimeError:
            self.close()
            raise
        self.about, self.cache_bytes = info["about"], info["cache"]

    def call(self, command: str, *numbers: int) -> Any:
        """RuntimeError where the process has ended; what it complained of is on stderr."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([command, *numbers]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.name} ended")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def serve(arguments: Json, write: Callable[[str], object]) -> None:
    timed = Timed(ENGINES[arguments.pop("engine")](**arguments))
    for line in sys.stdin:
        command, *numbers = json.loads(line)
        write(json.dumps(getattr(timed, command)(*numbers)) + "\n")


if __name__ == "__main__":
    # What libraries print goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(json.loads(sys.argv[1]), answers.write)
