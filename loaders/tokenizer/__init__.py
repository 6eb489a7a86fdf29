"""Tokenizers from GGUF metadata, with llama.cpp's answers.

Where they differ, on purpose or by necessity:
- Letters are classified by Unicode 16 in BPE models (the tokenizers library) and by Python's own Unicode version in
  BERT's; llama.cpp has Unicode 15. It matters for letters that are younger than one of them.
- Where llama.cpp's answer hangs on the order of a hash table or of an unstable sort (two end-of-turn tokens in one
  vocabulary, two special tokens of equal length that overlap in the text), ours is the first listed.
- A user-defined token that begins with a letter outside ASCII breaks other such letters in llama.cpp's unigram
  normaliser, which compares bytes; here whole letters are compared.
- A token of more than 256 letters, some of which stand for no byte, does not appear in the marks that take their place.
- What makes llama.cpp abort (a letter that has neither a token nor byte tokens) becomes the unknown token, and a
  vocabulary whose merges lead to texts that are no tokens is refused.

What a file can cost, on one core of 2023: building takes at most 35 bytes of memory and 0.3 us per byte of the
vocabulary (300 bytes in a unigram model of up to 3 MB). Encoding a text takes 10 us per letter and, where SentencePiece
merges one word, 300 bytes; 50 us where each letter begins 5,000 tokens of a unigram model, or nearly one of 50,000.
Expressions of named pre-tokenizers are linear, too (`pretokenizers.py`). Those that a tokenizer.json brings
(`carried.py`) are stopped with an error when they have stepped back ten million times from one place; short of that,
nothing bounds them.
"""

from .stream import StreamDecoder
from .tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
