"""The names of the types of a key/value cache, as -ctk and -ctv take them; cache_types.py says what they are."""

CACHE_TYPE_NAMES = ("f32", "f16", "bf16", "fp8", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
