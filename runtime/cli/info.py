"""`naiad info FILE`: what a model file holds, without reading its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...loaders.gguf import GGUFFile
from ...loaders.gguf_metadata import GGUFMetadata
from ...loaders.open import open_model
from ...loaders.quote import quoted
from ...loaders.stored import ModelSource
from ..demo import demo_model
from .options import Option, Parser
from .screen import written_out

N_POSITIONAL = 1
MAX_SHOWN = 100
PARSER = Parser(
    "info FILE",
    "Shows a model file's metadata and tensors.",
    [
        Option(("-m", "--model"), "the file, in place of FILE", str, "FILE", env="LLAMA_ARG_MODEL"),
        Option(("--tensors",), "list every tensor"),
    ],
)


def main(values: dict[str, Any]) -> int:
    source = open_model((values["positional"] or [values["model"]])[0] or demo_model())
    print(source.name)
    if isinstance(source, GGUFFile):
        order = "little" if source.byte_order == "<" else "big"
        print(f"GGUF version {source.version}, {order} endian, alignment {source.alignment}")
    print(f"\nmetadata ({len(source.kv)}):")
    for key in source.kv:
        print(f"  {_shown_key(key)} = {_shown_value(source.kv, key)}")
    _print_tensors(source, listed=values["tensors"])
    return 0


def _shown_key(key: str) -> str:
    return written_out(key) if len(key) <= MAX_SHOWN else quoted(key, MAX_SHOWN)


def _shown_value(kv: Mapping[str, Any], key: str) -> str:
    value, n_bytes = kv.beginning(key, MAX_SHOWN) if isinstance(kv, GGUFMetadata) else (kv[key], 0)
    if n_bytes:
        return f"{repr(value)[:MAX_SHOWN]}... ({n_bytes} bytes)"
    if not isinstance(value, list | np.ndarray):
        return quoted(value, MAX_SHOWN)
    strings = isinstance(value, list) and len(value) > 0 and isinstance(value[0], str)
    kind = value.dtype.name if isinstance(value, np.ndarray) else "str" if strings else "array"
    first = ", ".join(quoted(v, MAX_SHOWN) for v in value[:6])
    return f"{kind}[{len(value)}] {first[:MAX_SHOWN]}" + (", ..." if len(value) > 6 else "")


def _print_tensors(source: ModelSource, *, listed: bool) -> None:
    tensors = source.tensors.values()
    n_elements, n_bytes = sum(t.n_elements for t in tensors), sum(t.n_bytes for t in tensors)
    bits = f", {8 * n_bytes / n_elements:.2f} bits per weight" if n_elements else ""
    print(f"\ntensors ({len(source.tensors)}): {n_elements:,} weights, {n_bytes / 2**20:.1f} MiB{bits}")
    by_format: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        by_format[tensor.format.name] += 1
        sizes[tensor.format.name] += tensor.n_bytes
    for name, size in sizes.most_common():
        print(f"  {name:<8} {by_format[name]:>5} tensors {size / 2**20:>12.2f} MiB")
    if listed:
        for tensor in tensors:
            print(f"  {written_out(tensor.name):<40} {tensor.format.name:<8} {list(tensor.shape)}")
