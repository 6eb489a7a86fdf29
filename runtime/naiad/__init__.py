"""naiad: GGUF language models on GPUs and CPUs, from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "Completion", "SamplingParams", "Tokenizer", "__version__"]

if TYPE_CHECKING:
    from naiad.loaders.tokenizer import Tokenizer
    from naiad.runtime.async_llm import AsyncLLM
    from naiad.runtime.generation import Completion
    from naiad.runtime.llm import LLM
    from naiad.runtime.sampling import SamplingParams

_MODULES = {
    "LLM": "naiad.runtime.llm",
    "AsyncLLM": "naiad.runtime.async_llm",
    "Completion": "naiad.runtime.generation",
    "SamplingParams": "naiad.runtime.sampling",
    "Tokenizer": "naiad.loaders.tokenizer",
}


def __getattr__(name: str) -> object:
    """Imports on first use: `naiad --version` and the tokenizer alone need not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'naiad' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
