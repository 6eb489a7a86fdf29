"""Tokenizers from GGUF metadata, with llama.cpp's answers.

Where they differ, on purpose or by necessity:
- Letters are classified by Unicode 16 in BPE models (the tokenizers library) and by Python's own Unicode version in
  BERT's; llama.cpp has Unicode 15. It matters for letters that are younger than one of them.
- Where llama.cpp's answer hangs on the order of a hash table or of an unstable sort (two end-of-turn tokens in one
  vocabulary, two special tokens of equal length that overlap in the text), ours is the first listed.
- A user-defined token that begins with a letter outside ASCII breaks other such letters in llama.cpp's unigram
  normaliser, which compares bytes; here whole letters are compared.
- What makes llama.cpp abort (a letter that has neither a token nor byte tokens) becomes the unknown token, and a
  vocabulary whose merges lead to texts that are no tokens is refused.
"""

from .stream import StreamDecoder
from .tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
