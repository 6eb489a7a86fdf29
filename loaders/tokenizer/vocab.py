"""The vocabulary of a GGUF file: its metadata, checked once, with llama.cpp's defaults and repairs applied."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace

from ..quote import quoted
from .carried import CARRIED, carried_pre_tokenizer
from .eog import SPECIAL, Attr, find_eog, find_roles
from .kv import KV, read_bool, read_int, read_numbers, read_str, read_strings
from .pretokenizers import PreTokenizer, pre_tokenizer

log = logging.getLogger(__name__)

PREFIX = "tokenizer.ggml."
# More tokens that end a generation; checkpoints name several, GGUF's own keys hold one for each role.
EOG_KEY = PREFIX + "eog_token_ids"
# Of a token; a hundred times the longest in use.
MAX_LETTERS = 2**16
# Where a GGUF file may carry a whole tokenizer.json.
EMBEDDED_KEY = "tokenizer.huggingface.json"
# tokenizer.ggml.token_type -> attribute, by position; other values mean a token of no known type.
ATTRS_BY_TYPE = (0, Attr.NORMAL, Attr.UNKNOWN, Attr.CONTROL, Attr.USER_DEFINED, Attr.UNUSED, Attr.BYTE)
ID_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    # The second key of each pair is an older spelling, and wins.
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}


@dataclass(frozen=True)
class Rules:
    """What a tokenizer model does unless the file says otherwise; `ids` are its default special tokens."""

    kind: str
    ids: dict[str, int] = field(default_factory=dict)
    pre: str | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False
    add_space_prefix: bool = False
    remove_extra_spaces: bool = False
    escape_spaces: bool = True
    clean_spaces: bool = False
    lowercase: bool = True
    strip_accents: bool = True


MODELS = {
    "llama": Rules("spm", {"bos": 1, "eos": 2, "unk": 0}, add_bos=True, add_space_prefix=True),
    "gpt2": Rules("bpe", {"bos": 11, "eos": 11}),
    "whitespace": Rules("bpe", {"bos": 11, "eos": 11}),
    "gemma4": Rules("bpe", pre="gemma4"),
    "bert": Rules(
        "wpm",
        {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
        add_bos=True,
        add_sep=True,
        clean_spaces=True,
    ),
    "t5": Rules("ugm", {"eos": 1, "unk": 2, "pad": 0}, add_eos=True),
}


@dataclass(frozen=True)
class Vocab:
    """tokens[id] and ids[text]; attrs[id] after llama.cpp's repairs, types[id] as the file has them (both as Attr).

    special: role -> id or None, the roles of ID_KEYS. eog: the ids that end a generation. pre: only for BPE models.
    """

    model: str
    rules: Rules
    pre: PreTokenizer | None
    tokens: list[str]
    ids: dict[str, int]
    scores: list[float]
    types: list[int]
    attrs: list[int]
    special: dict[str, int | None]
    eog: frozenset[int]
    suppressed: tuple[int, ...]

    @classmethod
    def from_kv(cls, kv: KV) -> Vocab:
        """Reads and checks the metadata; ValueError names the key that is missing or wrong."""
        model, rules, pre = _model_rules(kv)
        tokens, ids = _tokens(kv)
        types = _types(kv, tokens)
        attrs = list(types)
        special = _special_ids(kv, rules, len(tokens))
        find_roles(ids, special, attrs)
        eog = find_eog(ids, special, attrs) | set(_valid_ids(kv, EOG_KEY, len(tokens)))
        _set_strip_attrs(kv, ids, attrs)
        return cls(
            model=model,
            rules=rules,
            pre=pre,
            tokens=tokens,
            ids=ids,
            scores=_scores(kv, len(tokens)),
            types=types,
            attrs=attrs,
            special=special,
            eog=eog,
            suppressed=_valid_ids(kv, PREFIX + "suppress_tokens", len(tokens)),
        )

    def check(self, token: int) -> None:
        """ValueError for an id that is no token."""
        if not 0 <= token < len(self.tokens):
            raise ValueError(f"token {token} is outside the vocabulary of {len(self.tokens)}")

    def require(self, role: str) -> int:
        """The id of a special token that this kind of tokenizer cannot do without."""
        token = self.special[role]
        if token is None:
            raise ValueError(
                f"a {self.model!r} tokenizer needs the special token {PREFIX}{ID_KEYS[role][0]}, and it is not there"
            )
        return token


def _model_rules(kv: KV) -> tuple[str, Rules, PreTokenizer | None]:
    model = read_str(kv, PREFIX + "model")
    if model not in MODELS:
        found = f"tokenizer model {quoted(model)} is not supported" if model else f"{PREFIX}model is missing"
        raise ValueError(f"{found}; supported: {', '.join(sorted(MODELS))}")
    rules, pre = MODELS[model], None
    if rules.kind == "bpe":
        pre = pre_tokenizer(rules.pre) if rules.pre else _pre_tokenizer(kv)
        rules = _with_pre_tokenizer(rules, pre)
    lowercase = read_bool(kv, PREFIX + "normalizer.lowercase", rules.lowercase)
    rules = replace(
        rules,
        add_bos=read_bool(kv, PREFIX + "add_bos_token", rules.add_bos),
        add_eos=read_bool(kv, PREFIX + "add_eos_token", rules.add_eos),
        add_sep=read_bool(kv, PREFIX + "add_sep_token", rules.add_sep),
        add_space_prefix=read_bool(kv, PREFIX + "add_space_prefix", rules.add_space_prefix),
        remove_extra_spaces=read_bool(kv, PREFIX + "remove_extra_whitespaces", rules.remove_extra_spaces),
        lowercase=lowercase,
        strip_accents=read_bool(kv, PREFIX + "normalizer.strip_accents", lowercase),
    )
    return model, replace(rules, add_bos=True) if pre and pre.force_bos else rules, pre


def _pre_tokenizer(kv: KV) -> PreTokenizer:
    """By its name, or that of the tokenizer.json in the metadata where they ask for it or give no name."""
    name = read_str(kv, PREFIX + "pre")
    if name not in ("", CARRIED) or EMBEDDED_KEY not in kv:
        return pre_tokenizer(name)
    from ..hf.json_file import parse_json
    from ..hf.tokenizer import pre_name

    tokenizer = parse_json(read_str(kv, EMBEDDED_KEY).encode("utf-8", "surrogateescape"), EMBEDDED_KEY)
    found = pre_name(tokenizer, EMBEDDED_KEY)
    return carried_pre_tokenizer(tokenizer, EMBEDDED_KEY) if found == CARRIED else pre_tokenizer(found)


def _with_pre_tokenizer(rules: Rules, pre: PreTokenizer) -> Rules:
    ids = rules.ids if pre.bos_by_default else {k: v for k, v in rules.ids.items() if k != "bos"}
    return replace(
        rules,
        ids=ids,
        add_bos=pre.add_bos,
        add_sep=pre.add_sep,
        clean_spaces=pre.clean_spaces,
        escape_spaces=pre.escape_spaces,
        lowercase=pre.lowercase,
    )


def _tokens(kv: KV) -> tuple[list[str], dict[str, int]]:
    key = PREFIX + "tokens"
    tokens = read_strings(kv, key)
    if not tokens:
        raise ValueError(f"{key} is {'missing' if tokens is None else 'empty'}: the file has no vocabulary")
    if (longest := max(tokens, key=len)) and len(longest) > MAX_LETTERS:
        raise ValueError(f"{key} has a token of {len(longest)} characters, expected at most {MAX_LETTERS}")
    if "" in tokens:
        tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        text, count = Counter(tokens).most_common(1)[0]
        raise ValueError(f"{key} has the token {quoted(text)} {count} times, expected every token once")
    return tokens, ids


def _types(kv: KV, tokens: list[str]) -> list[int]:
    types = read_numbers(kv, PREFIX + "token_type", "iu", len(tokens))
    if types is None:
        return [int(Attr.NORMAL)] * len(tokens)
    attr_of = {i: int(attr) for i, attr in enumerate(ATTRS_BY_TYPE)}
    return [attr_of.get(t, 0) for t in types.tolist()]


def _scores(kv: KV, n_tokens: int) -> list[float]:
    scores = read_numbers(kv, PREFIX + "scores", "iuf", n_tokens)
    if scores is None:
        return [0.0] * n_tokens
    if (scores != scores).any():
        raise ValueError(
            f"{PREFIX}scores has a value that is not a number, at token {int((scores != scores).argmax())}"
        )
    values: list[float] = scores.astype("float32").tolist()
    return values


def _special_ids(kv: KV, rules: Rules, n_tokens: int) -> dict[str, int | None]:
    special: dict[str, int | None] = {}
    for role, names in ID_KEYS.items():
        default = rules.ids.get(role)
        special[role] = default if default is not None and default < n_tokens else None
        for name in names:
            found = read_int(kv, PREFIX + name)
            if found is None:
                continue
            if 0 <= found < n_tokens:
                special[role] = found
            else:
                # Files with such ids are in use (-1 for "none"); llama.cpp goes on with the default, too.
                log.warning("%s%s is %d, outside the vocabulary of %d: ignored", PREFIX, name, found, n_tokens)
    return special


def _valid_ids(kv: KV, key: str, n_tokens: int) -> tuple[int, ...]:
    """A list of tokens, without those that there are not."""
    found = read_numbers(kv, key, "iu")
    return () if found is None else tuple(i for i in found.tolist() if 0 <= i < n_tokens)


def _set_strip_attrs(kv: KV, ids: dict[str, int], attrs: list[int]) -> None:
    """Special tokens that swallow the spaces beside them: GGUF has no field for it, llama.cpp goes by names."""
    name, arch = read_str(kv, "general.name").lower(), read_str(kv, "general.architecture")
    pre = read_str(kv, PREFIX + "pre")
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in arch for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        _add_attr(ids, attrs, "<mask>", Attr.LSTRIP)
    elif "phi-3" in name or "phi3" in name:
        keep = {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        for token, attr in enumerate(attrs):
            if attr & SPECIAL and token not in keep:
                attrs[token] = attr | int(Attr.RSTRIP)
        _add_attr(ids, attrs, "</s>", Attr.RSTRIP)
    elif "modern-bert" in name:
        _add_attr(ids, attrs, "[MASK]", Attr.LSTRIP)


def _add_attr(ids: dict[str, int], attrs: list[int], text: str, attr: Attr) -> None:
    if text in ids:
        attrs[ids[text]] |= int(attr)
