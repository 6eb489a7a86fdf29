"""How prompts are multiplied with `--route mixed`: by the integer kernels, or by torch with decoded weights.

Which is faster depends on what the processor has (AMX multiplies bfloat16 faster than anything else); it is measured
when the first prompt arrives, and kept in a file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Literal

import torch

from ...loaders.private import PrivateFolder
from ..cpu_kernels import Kernels

Route = Literal["int8", "float32", "bfloat16"]
ROUTES: tuple[Route, ...] = ("int8", "float32", "bfloat16")
# From this many rows on, decoding a matrix is little beside multiplying with it.
MIN_ROWS = 64
# torch has to win by this much, since with it layers run in many calls instead of one.
MARGIN = 0.8
REPETITIONS = 3
FILE, MAX_BYTES = "routes.json", 2**20


def fastest_route(kernels: Kernels, measure: Callable[[Route], float]) -> Route:
    """The route for prompts. measure: seconds that a product takes by each."""
    folder = kernels.compiler.private()
    known = _read(folder)
    key = f"{kernels.compiler.host.cpu} {kernels.plans.batch.n_threads} torch-{torch.__version__}"
    if known.get(key) not in ROUTES:
        seconds = {route: min(measure(route) for _ in range(REPETITIONS)) for route in ROUTES}
        best = min(ROUTES[1:], key=lambda route: seconds[route])
        known[key] = best if seconds[best] < MARGIN * seconds["int8"] else "int8"
        if folder is not None:
            folder.write(FILE, json.dumps(known, indent=1).encode())
    found: Route = known[key]  # type: ignore[assignment]
    return found


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _read(folder: PrivateFolder | None) -> dict[str, str]:
    data = folder.read(FILE, MAX_BYTES) if folder is not None else None
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
