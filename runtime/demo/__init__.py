"""The bundled demo model and the program that makes it."""

from pathlib import Path


def demo_model() -> Path:
    """The path of the bundled model."""
    return Path(__file__).parent / "naiad-demo.gguf"
