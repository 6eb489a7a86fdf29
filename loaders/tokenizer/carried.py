"""A checkpoint's own way of cutting text into words, run by the tokenizers library as its tokenizer.json has it.

For checkpoints whose way has no name in GGUF. Metadata then have the whole tokenizer.json beside the tokens, and no
name that others might take for another way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer as LibraryPreTokenizer

from ..quote import quoted
from .library import guarded
from .pretokenizers import PreTokenizer

# tokenizer.ggml.pre of such a vocabulary.
CARRIED = "huggingface"
# Many times the longest in use, and more steps than anybody writes.
MAX_LETTERS, MAX_STEPS = 2**18, 64
KINDS = frozenset(
    [
        "Split",
        "Digits",
        "ByteLevel",
        "Punctuation",
        "Whitespace",
        "WhitespaceSplit",
        "CharDelimiterSplit",
        "UnicodeScripts",
        "FixedLength",
        "BertPreTokenizer",
    ]
)


def step_kinds(tokenizer: Mapping[str, Any], where: str) -> list[str]:
    """The steps of a tokenizer.json's pre-tokenizer, in order.

    ValueError, beginning with `where`, for one that a byte-level vocabulary cannot have.
    """
    kinds = [step.get("type") for step in _steps(tokenizer.get("pre_tokenizer"), where)]
    if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in KINDS]:
        raise ValueError(
            f"{where}: its pre-tokenizer has a step {quoted(unknown[0])}, expected some of {', '.join(sorted(KINDS))}"
        )
    if "ByteLevel" not in kinds:
        raise ValueError(f"{where}: its pre-tokenizer has the steps {kinds}, expected ByteLevel among them")
    return [str(kind) for kind in kinds]


def carried_pre_tokenizer(tokenizer: Mapping[str, Any], where: str) -> PreTokenizer:
    """The row of a vocabulary that comes with a tokenizer.json. ValueError, beginning with `where`, if it cannot be."""
    step_kinds(tokenizer, where)
    model = tokenizer.get("model")
    ignore_merges = isinstance(model, dict) and model.get("ignore_merges") is True
    text = json.dumps(tokenizer["pre_tokenizer"])
    if len(text) > MAX_LETTERS:
        raise ValueError(f"{where}: its pre-tokenizer has {len(text)} letters, expected at most {MAX_LETTERS}")
    return PreTokenizer((CARRIED,), (), ignore_merges=ignore_merges, carried=text)


def library_steps(text: str) -> LibraryPreTokenizer:
    """What the library makes of a pre-tokenizer's JSON; ValueError where it refuses it."""
    model = '{"type": "BPE", "vocab": {}, "merges": []}'
    whole = f'{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {text}, "model": {model}}}'
    found = guarded("bad pre-tokenizer", lambda: Tokenizer.from_str(whole)).pre_tokenizer
    assert isinstance(found, LibraryPreTokenizer)
    return found


def _steps(node: Any, where: str) -> Iterator[dict[str, Any]]:
    """The steps of sequences in sequences."""
    left = [node]
    for _ in range(MAX_STEPS):
        if not left:
            return
        node = left.pop()
        parts = node.get("pretokenizers") if isinstance(node, dict) and node.get("type") == "Sequence" else None
        if isinstance(parts, list):
            left.extend(reversed(parts))
        else:
            yield node if isinstance(node, dict) else {"type": node}
    raise ValueError(f"{where}: its pre-tokenizer has more than {MAX_STEPS} steps")
