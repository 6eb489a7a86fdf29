"""What `naiad bench` prints: llama-bench's formats, its columns and the names of its fields."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One test and its times. The fields before `route` are llama-bench's, in its order; sizes in bytes.

    n_gpu_layers: -1 for all. flash_attn: 1 on, 0 off, -1 auto. samples_ns: nanoseconds of each repetition.
    """

    cpu_info: str
    gpu_info: str
    backends: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    type_k: str
    type_v: str
    n_gpu_layers: int
    flash_attn: int
    devices: str
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    samples_ns: tuple[int, ...]
    route: str
    weights: str
    naiad_version: str
    torch_version: str

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [1e9 * (self.n_prompt + self.n_gen) / ns for ns in self.samples_ns]

    @property
    def test(self) -> str:
        parts = [f"{name}{n}" for name, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def values(self) -> dict[str, str | int | float]:
        """All fields as they are printed, without the samples."""
        ts = self.samples_ts
        values = {name: getattr(self, name) for name in _NAMES if name != "samples_ns"}
        times = {
            "avg_ns": mean_ns(self.samples_ns),
            "stddev_ns": stddev_ns(self.samples_ns),
            "avg_ts": sum(ts) / len(ts),
            "stddev_ts": stddev(ts),
        }
        return {name: {**values, **times}[name] for name in FIELDS}


def mean_ns(samples: Sequence[int]) -> int:
    return sum(samples) // len(samples)


def stddev_ns(samples: Sequence[int]) -> int:
    """As llama-bench has it, in whole numbers, but without its overflow; 0 for a single sample."""
    n, mean = len(samples), mean_ns(samples)
    return math.isqrt(sum(s * s for s in samples) // (n - 1) - mean * mean * n // (n - 1)) if n > 1 else 0


def stddev(samples: Sequence[float]) -> float:
    n = len(samples)
    if n < 2:
        return 0.0
    mean = sum(samples) / n
    return math.sqrt(max(0.0, sum(s * s for s in samples) / (n - 1) - mean * mean * n / (n - 1)))


_NAMES = [field.name for field in fields(Result)]
_TIMES = ["avg_ns", "stddev_ns", "avg_ts", "stddev_ts"]
FIELDS = [name for field in _NAMES for name in (_TIMES if field == "samples_ns" else [field])]
_TEXTS = {field.name for field in fields(Result) if field.type == "str"}


class Printer:
    """Prints results as they come, through `write`."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write

    def begin(self) -> None: ...
    def test(self, result: Result) -> None: ...
    def end(self) -> None: ...


class Markdown(Printer):
    """A table. columns: those that differ from the usual, beside the ones that are always there."""

    WIDTHS: ClassVar[dict[str, int]] = {
        "model": -30, "size": 10, "params": 10, "backend": -10, "n_gpu_layers": 3, "n_threads": 7, "n_batch": 7,
        "type_k": 6, "type_v": 6, "flash_attn": 3, "devices": -12, "route": -10, "test": 15, "t/s": 20,
    }  # fmt: skip
    TITLES: ClassVar[dict[str, str]] = {
        "n_gpu_layers": "ngl",
        "n_threads": "threads",
        "flash_attn": "fa",
        "devices": "dev",
    }

    def __init__(self, write: Callable[[str], object], columns: Sequence[str], version: str) -> None:
        super().__init__(write)
        self.columns, self.version = ["model", "size", "params", "backend", *columns, "test", "t/s"], version

    def begin(self) -> None:
        self._row([self.TITLES.get(column, column) for column in self.columns])
        widths = [self.WIDTHS[column] for column in self.columns]
        self._row(["-" * (abs(width) - 1) + ("-" if width < 0 else ":") for width in widths])

    def test(self, result: Result) -> None:
        values = result.values
        shown = {
            "model": result.model_type,
            "size": _size(result.model_size),
            "params": _count(result.model_n_params),
            "backend": result.backends,
            "test": result.test,
            "t/s": f"{values['avg_ts']:.2f} ± {values['stddev_ts']:.2f}",
        }
        self._row([shown.get(column) or str(values[column]) for column in self.columns])

    def end(self) -> None:
        self.write(f"\nbuild: {self.version}\n")

    def _row(self, cells: Sequence[str]) -> None:
        aligned = []
        for column, cell in zip(self.columns, cells, strict=True):
            width = self.WIDTHS[column]
            aligned.append(cell.ljust(-width) if width < 0 else cell.rjust(width))
        self.write("| " + " | ".join(aligned) + " |\n")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.2f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.2f} GiB"


def _count(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n < 10**9 else f"{n / 1e9:.2f} B"


def _plain(value: str | int | float) -> str:
    return f"{value:f}" if isinstance(value, float) else str(value)


def _json_fields(result: Result) -> list[str]:
    pairs = [f'"{name}": {_json_value(value)}' for name, value in result.values.items()]
    pairs.append(f'"samples_ns": [ {", ".join(map(str, result.samples_ns))} ]')
    pairs.append(f'"samples_ts": [ {", ".join(f"{ts:g}" for ts in result.samples_ts)} ]')
    return pairs


def _json_value(value: str | int | float) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _plain(value)


class Json(Printer):
    separator = ""

    def begin(self) -> None:
        self.write("[\n")

    def test(self, result: Result) -> None:
        self.write(self.separator + "  {\n" + ",\n".join(f"    {pair}" for pair in _json_fields(result)) + "\n  }")
        self.separator = ",\n"

    def end(self) -> None:
        self.write("\n]\n")


class JsonLines(Printer):
    def test(self, result: Result) -> None:
        self.write("{" + ", ".join(_json_fields(result)) + "}\n")


class Csv(Printer):
    def begin(self) -> None:
        self.write(",".join(FIELDS) + "\n")

    def test(self, result: Result) -> None:
        cells = (_plain(value).replace('"', '""') for value in result.values.values())
        self.write(",".join(f'"{cell}"' for cell in cells) + "\n")


class Sql(Printer):
    """Statements for SQLite; the table has llama-bench's name."""

    def begin(self) -> None:
        kinds = {name: "TEXT" if name in _TEXTS else "REAL" if name.endswith("_ts") else "INTEGER" for name in FIELDS}
        columns = ",\n".join(f"  {name} {kind}" for name, kind in kinds.items())
        self.write(f"CREATE TABLE IF NOT EXISTS llama_bench (\n{columns}\n);\n\n")

    def test(self, result: Result) -> None:
        cells = ", ".join("'" + _plain(value).replace("'", "''") + "'" for value in result.values.values())
        self.write(f"INSERT INTO llama_bench ({', '.join(FIELDS)}) VALUES ({cells});\n")


FORMATS: dict[str, Callable[[Callable[[str], object]], Printer]] = {
    "json": Json,
    "jsonl": JsonLines,
    "csv": Csv,
    "sql": Sql,
}
