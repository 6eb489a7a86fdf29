"""Text to tokens and back, with llama.cpp's answers, for the vocabulary of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .bpe import BPE
from .eog import Attr
from .pieces import Pieces, clean_spaces
from .special import SPACE, SpecialTokens
from .spm import SPM
from .stream import StreamDecoder
from .ugm import UGM
from .unicode import well_formed
from .vocab import EMBEDDED_KEY, PREFIX, Vocab
from .wpm import WPM

if TYPE_CHECKING:
    from ..stored import ModelSource


class Encoder(Protocol):
    def encode(self, fragments: Sequence[str | int]) -> list[int]: ...

    def kept(self, text: str) -> int:
        """How many letters or bytes of a text certainly end up in tokens that are not larger; 0 if nobody can say."""
        ...


class Tokenizer:
    """A GGUF vocabulary: encode, decode, and what its special tokens are.

    n_vocab: the number of tokens. bos_id, eos_id, eot_id, eom_id, unk_id, sep_id, pad_id, mask_id, fim_pre_id,
    fim_suf_id, fim_mid_id, fim_pad_id, fim_rep_id, fim_sep_id: a token or None. add_bos, add_eos: whether encode
    adds that token. add_sep: whether a separator belongs between two texts. eog_ids: the tokens that end a
    generation. suppressed_ids: tokens that the file wants never to be generated.
    Instances may be used from several threads.
    """

    def __init__(self, vocab: Vocab, encoder: Encoder) -> None:
        self._vocab, self._encoder = vocab, encoder
        self._special_tokens = SpecialTokens(vocab)
        self._pieces = Pieces(vocab)
        special = vocab.special
        self.n_vocab = len(vocab.tokens)
        self.bos_id, self.eos_id = special["bos"], special["eos"]
        self.eot_id, self.eom_id = special["eot"], special["eom"]
        self.unk_id, self.sep_id = special["unk"], special["sep"]
        self.pad_id, self.mask_id = special["pad"], special["mask"]
        self.fim_pre_id, self.fim_suf_id, self.fim_mid_id = special["fim_pre"], special["fim_suf"], special["fim_mid"]
        self.fim_pad_id, self.fim_rep_id, self.fim_sep_id = special["fim_pad"], special["fim_rep"], special["fim_sep"]
        self.add_bos = vocab.rules.add_bos and self.bos_id is not None
        self.add_eos = vocab.rules.add_eos and self.eos_id is not None
        self.add_sep = vocab.rules.add_sep
        self.eog_ids = vocab.eog
        self.suppressed_ids = vocab.suppressed

    @classmethod
    def from_kv(cls, kv: Mapping[str, Any]) -> Tokenizer:
        """From GGUF metadata; ValueError says which key is missing, wrong or not supported."""
        if EMBEDDED_KEY in kv and PREFIX + "model" not in kv:
            from ..hf.tokenizer import embedded_tokenizer_kv

            kv = embedded_tokenizer_kv(kv)
        vocab = Vocab.from_kv(kv)
        encoder: Encoder
        if vocab.rules.kind == "bpe":
            encoder = BPE(vocab, kv)
        elif vocab.rules.kind == "spm":
            encoder = SPM(vocab)
        elif vocab.rules.kind == "wpm":
            encoder = WPM(vocab)
        else:
            encoder = UGM(vocab, kv)
        return cls(vocab, encoder)

    @classmethod
    def from_source(cls, source: ModelSource) -> Tokenizer:
        """From an open model; errors name its file."""
        try:
            return cls.from_kv(source.kv)
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from None

    @classmethod
    def from_gguf(cls, path: str | Path) -> Tokenizer:
        from ..gguf import GGUFFile

        with GGUFFile(path) as file:
            return cls.from_source(file)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokens of `text`, as llama_tokenize.

        add_special: put the model's own first and last tokens around it, as the file asks for. parse_special:
        "<|im_end|>" in the text is that token; without it, plain text (user-defined tokens are found either way).
        """
        ids = self._encoder.encode(self._special_tokens.split(well_formed(text), parse_special))
        if not add_special:
            return ids
        if self._vocab.rules.kind == "wpm":
            # BERT's frame is [CLS] text [SEP], whatever the flags say.
            first, last = self.bos_id, self.sep_id
        else:
            first, last = self.bos_id if self.add_bos else None, self.eos_id if self.add_eos else None
        return [*([] if first is None else [first]), *ids, *([] if last is None else [last])]

    def least_tokens(self, text: str) -> int:
        """A number of tokens that encode certainly reaches, from the length of the text and of the longest token.

        Much faster than encode: a text that is far too long need not be tokenised to find that out.
        """
        if self._special_tokens.swallow:
            text = text.translate(dict.fromkeys(map(ord, SPACE)))
        return -(-self._encoder.kept(well_formed(text)) // self._longest)

    @cached_property
    def _longest(self) -> int:
        """What one token can cover of a text, in bytes of UTF-8, which are no fewer than letters."""
        return max(len(token.encode("utf-8", "surrogateescape")) for token in self._vocab.tokens)

    def decode(
        self,
        ids: Sequence[int],
        *,
        remove_special: bool = False,
        unparse_special: bool = True,
        raw: bool = False,
    ) -> str:
        """Text of the tokens, as llama_detokenize; bytes that are not UTF-8 become U+FFFD.

        remove_special: drop the first and last token that encode added. unparse_special: control and unknown
        tokens show their text; without it they are empty. The space that encode put in front is taken away, and
        some vocabularies want spaces before punctuation gone, too; `raw` leaves all of it as the tokens have it,
        which is right for a continuation.
        """
        ids = list(ids)
        drop_space = self._vocab.rules.add_space_prefix and not raw
        if remove_special and self.add_bos and ids[:1] == [self.bos_id]:
            del ids[0]
            drop_space = False
        if remove_special and self.add_eos and ids[-1:] == [self.eos_id]:
            del ids[-1]
        pieces = [self._pieces(token, unparse_special) for token in ids]
        if drop_space and pieces:
            pieces[0] = pieces[0].removeprefix(b" ")
        text = b"".join(pieces)
        if self._vocab.rules.clean_spaces and not raw:
            text = clean_spaces(text)
        return text.decode("utf-8", "replace")

    def stream(self, *, unparse_special: bool = True, raw: bool = False) -> StreamDecoder:
        """A decoder for tokens that come one at a time, with decode's options."""
        rules = self._vocab.rules
        return StreamDecoder(
            self._pieces, unparse_special, rules.add_space_prefix and not raw, rules.clean_spaces and not raw
        )

    def token_to_piece(self, token: int, special: bool = True) -> bytes:
        """The bytes that the token stands for; control and unknown tokens are empty unless `special`."""
        return self._pieces(token, special)

    def lone_piece(self, token: int) -> bytes:
        """The bytes of a text that is this token alone: without the space that `encode` puts in front."""
        piece = self._pieces(token, True)
        return piece.removeprefix(b" ") if self._vocab.rules.add_space_prefix else piece

    def token_text(self, token: int) -> str:
        """The token as the file spells it: "Ġthe", "▁the", "<0x0A>"."""
        self._vocab.check(token)
        return self._vocab.tokens[token]

    def token_id(self, text: str) -> int | None:
        """The token that the file spells `text`."""
        return self._vocab.ids.get(text)

    def is_control(self, token: int) -> bool:
        self._vocab.check(token)
        return bool(self._vocab.attrs[token] & Attr.CONTROL)
