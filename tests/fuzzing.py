"""Runs many random cases and watches over each: no hang, no memory, no error but those that are meant."""

from __future__ import annotations

import json
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest

# In `make test` a few of each kind, in `make test-slow` many.
CASES = [pytest.param(300, id="some"), pytest.param(100_000, id="many", marks=pytest.mark.slow)]
# Processor time of one case, on a slow machine.
SECONDS = 5
MAX_MESSAGE = 2000


def fuzz(n: int, case: Callable[[random.Random], object], *, megabytes: int = 200) -> None:
    """Calls case(rng) n times; what it raises must be a ValueError with a short message.

    megabytes: by how much the process may grow. AssertionError names the case that failed: the seed is its number.
    """

    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {SECONDS} s of processor time")

    before, n_refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    previous = signal.signal(signal.SIGVTALRM, hangs)
    try:
        for seed in range(n):
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            start = time.process_time()
            try:
                case(random.Random(seed))
            except ValueError as error:
                n_refused += 1
                assert len(str(error)) < MAX_MESSAGE, f"case {seed}: a message of {len(str(error))} characters"
            except Exception as error:
                raise AssertionError(f"case {seed} raises {type(error).__name__}: {str(error)[:500]}") from error
            # Code that is not Python's is not interrupted.
            assert time.process_time() - start < SECONDS, f"case {seed} is slow"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < megabytes, f"{grown} MB more than before"
    assert 0.02 * n < n_refused < 0.98 * n, f"{n_refused} of {n} cases are refused: most are of one kind"


def mutated(rng: random.Random, data: bytes, tempting: Sequence[bytes]) -> bytes:
    """A few pieces cut out, doubled, moved, overwritten by random bytes or by what tempts."""
    out = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        start = rng.randrange(len(out) + 1)
        stop = start + rng.choice([0, 1, 4, 8, rng.randrange(64)])
        piece = bytes(out[start:stop])
        out[start:stop] = rng.choice(
            [b"", piece * 2, piece * 50, rng.randbytes(rng.randrange(12)), rng.choice(tempting), piece[::-1]]
        )
    return bytes(out)


def deep(depth: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(depth):
        nest = [nest]
    return nest


NASTY: list[Callable[[random.Random], Any]] = [
    lambda rng: None,
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([-1, 0, 1, 2, 3, 255, 2**31, 2**53, 2**64, 10**40]),
    lambda rng: rng.choice([0.5, -1e30, 1e300, float("nan"), float("inf")]),
    lambda rng: "".join(rng.choices("ab \u0120\u2581<|>{}%\x1b\ud800\udcffé😀", k=rng.randrange(6))),
    lambda rng: "x" * rng.choice([300, 70_000]),
    lambda rng: [rng.choice(["a", 1, None, [], {}]) for _ in range(rng.randrange(4))],
    lambda rng: {rng.choice(["id", "content", "type", "a"]): rng.choice(["a", 1, [], {}]) for _ in range(2)},
    lambda rng: deep(rng.choice([3, 150])),
]


def nasty(rng: random.Random) -> Any:
    return rng.choice(NASTY)(rng)


def changed(rng: random.Random, value: Any) -> Any:
    """JSON's values with a few places replaced, dropped or repeated."""
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        value = _changed_once(rng, value)
    return value


def _changed_once(rng: random.Random, value: Any) -> Any:
    if not isinstance(value, list | dict) or not value or rng.random() < 0.1:
        return nasty(rng)
    if isinstance(value, list):
        i = rng.randrange(len(value))
        n = rng.choice([0, 1, 1, 2])
        middle = [_changed_once(rng, value[i])] if n == 1 else [value[i]] * n
        return [*value[:i], *middle, *value[i + 1 :]]
    key = rng.choice(list(value))
    kind = rng.random()
    if kind < 0.1:
        return {k: v for k, v in value.items() if k != key}
    if kind < 0.2:
        return {**value, rng.choice(["a", "x" * 500, "id", "\ud800"]): value[key]}
    return {**value, key: _changed_once(rng, value[key])}


def as_json(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    return text.encode("utf-8", "surrogatepass")
