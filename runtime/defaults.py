"""What options and their help name before torch is imported: default values, and the names of types."""

MIB = 2**20
# Tokens of a step, of all sequences together, and sequences that run at a time.
N_BATCH = 512
MAX_SEQS = 64
# llama.cpp's --fit-target: what a GPU keeps free for its driver and other programs.
MARGIN_BYTES = 1024 * MIB
# What weights are decoded to; "auto" chooses.
WEIGHT_TYPES = ("auto", "f32", "bf16", "f16")
