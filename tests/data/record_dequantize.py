"""Records what ggml decodes for the formats that the gguf package cannot: python record_dequantize.py LIBRARY.

LIBRARY is the path of llama.cpp's libggml-base shared library. Needs only numpy. Writes dequantize.npz beside
this file: per format NAME_blocks (uint8 [n, bytes per block]) and NAME_weights (float32 [n, block]).
"""

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np

# weights and bytes per block, the bytes of the scale d and numpy's type of it
FORMATS = {
    "q1_0": (128, 18, slice(0, 2), "<f2"),
    "q2_0": (64, 18, slice(0, 2), "<f2"),
    "q8_K": (256, 292, slice(0, 4), "<f4"),
}
SCALES = (1.0, -0.37, 6e-8, 60000.0, 0.0, -0.0, np.inf, np.nan)


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    rng = np.random.default_rng(1)
    recorded: dict[str, Any] = {}
    for name, (block_size, type_size, place, dtype) in FORMATS.items():
        blocks = rng.integers(0, 256, (len(SCALES), type_size), dtype=np.uint8)
        blocks[:, place] = np.array(SCALES, dtype).reshape(-1, 1).view(np.uint8)
        weights = np.empty((len(SCALES), block_size), np.float32)
        decode = getattr(library, f"dequantize_row_{name}")
        decode.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        decode.restype = None
        decode(blocks.ctypes.data, weights.ctypes.data, weights.size)
        recorded[f"{name.upper()}_blocks"] = blocks
        recorded[f"{name.upper()}_weights"] = weights
    np.savez_compressed(Path(__file__).with_name("dequantize.npz"), **recorded)


if __name__ == "__main__":
    main()
