"""What activation records are made of (activations.py writes them)."""

from __future__ import annotations

# Of 8-bit codes of weights: 128 where they are multiplied as unsigned numbers, else 0.
FULL = -1

# A record: 32 codes from -127 to 127, their scale, minus the sums of codes (first half, second half, all), and the same
# times the scale.
RECORD, SCALE, SUMS, SCALED_SUMS = 64, 32, 36, 48
LARGEST_CODE = 127
