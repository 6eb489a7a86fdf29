"""The demo model's tokenizer: byte-level BPE with the digit-splitting pre-tokenizer that GGUF calls qwen2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import END_OF_TEXT, TURN_END, TURN_START, Document

PRE_TOKENIZER = "qwen2"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], n_vocab: int) -> Tokenizer:
    """A BPE with `n_vocab` tokens at most: the special ones, the 256 bytes, and merges learnt from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(documents: Iterable[Document], tokenizer: Tokenizer, length: int) -> Iterator[list[int]]:
    """Rows of `length` ids: whole documents, each with its end marker; the last of a row is cut off.

    Every row begins with a document, as every prompt does later.
    """
    row: list[int] = []
    for document in documents:
        row += tokenizer.encode(document.render() + END_OF_TEXT).ids
        if len(row) >= length:
            yield row[:length]
            row = []
