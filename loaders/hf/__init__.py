"""Hugging Face checkpoint folders, read as if they were GGUF files."""

from .model import SafetensorsModel

__all__ = ["SafetensorsModel"]
