"""Mixtures of experts as early GGUF files have them: a tensor for each matrix of each expert, read as stacks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from .stored import Bytes, ModelSource, StoredTensor

SINGLE = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d+)\.weight")


class StackedExperts:
    """A source whose tensors blk.N.ffn_gate.E.weight (and ffn_up, ffn_down) are found as blk.N.ffn_gate_exps.weight.

    ValueError where the matrices of a stack differ in format or shape, or one is missing.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.tensors: dict[str, StoredTensor] = {}
        self._parts: dict[str, list[StoredTensor]] = {}
        found: dict[str, dict[int, StoredTensor]] = {}
        for name, tensor in source.tensors.items():
            if match := SINGLE.fullmatch(name):
                stack = f"{match[1]}_exps.weight"
                if stack in source.tensors:
                    raise ValueError(f"{self.name}: it has both {name!r} and {stack!r}")
                found.setdefault(stack, {})[int(match[2])] = tensor
                # Stacks come where their first part was.
                self.tensors.setdefault(stack, tensor)
            else:
                self.tensors[name] = tensor
        for stack, parts in found.items():
            self._parts[stack] = self._checked(stack, parts)
            self.tensors[stack] = _stack(stack, self._parts[stack])

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def kv(self) -> Mapping[str, Any]:
        return self.source.kv

    def release(self, tensor: StoredTensor) -> None:
        for part in self._parts.get(tensor.name, [tensor]):
            self.source.release(part)

    def _checked(self, stack: str, parts: Mapping[int, StoredTensor]) -> list[StoredTensor]:
        if max(parts) >= len(parts):
            absent = next(i for i in range(max(parts)) if i not in parts)
            raise ValueError(f"{self.name}: {stack!r} lacks expert {absent}, though it has expert {max(parts)}")
        first = parts[0]
        for part in parts.values():
            if (part.shape, part.format) != (first.shape, first.format):
                raise ValueError(
                    f"{self.name}: tensor {part.name!r} is {part.format.name} {list(part.shape)}, expected "
                    f"{first.format.name} {list(first.shape)} as in {first.name!r}"
                )
        return [parts[i] for i in range(len(parts))]


def with_stacks(source: ModelSource) -> ModelSource:
    """The source itself unless it has experts in single tensors."""
    return StackedExperts(source) if any(map(SINGLE.fullmatch, source.tensors)) else source


def _stack(name: str, parts: list[StoredTensor]) -> StoredTensor:
    first = parts[0]
    return StoredTensor(name, first.format, (len(parts), *first.shape), partial(_joined, parts))


def _joined(parts: list[StoredTensor]) -> Bytes:
    return np.concatenate([np.asarray(part.read()) for part in parts])
