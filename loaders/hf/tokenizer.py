"""A checkpoint's tokenizer as GGUF metadata: from tokenizer.json or tokenizer.model and the files beside them."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..quote import quoted, written
from ..tokenizer.carried import CARRIED, step_kinds
from ..tokenizer.vocab import EMBEDDED_KEY
from .files import GENERATION
from .json_file import parse_json, passed_over, read_json, read_side_json
from .sentencepiece_file import TokenType, read_sentencepiece

SPACE = "\u2581"
# JSON can write halves of characters, which no text has.
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_TEMPLATE_BYTES = 2**20
ADDED_SCORE, PADDING_SCORE = -1000.0, -10000.0
ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
}

# How tokenizer.json of known models cuts text into words, and GGUF's names for it.
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORD, MARKS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD, CASED_MARKS = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{MARKS}|{SPACES}"
QWEN2 = rf"{CONTRACTION}|{WORD}|\p{{N}}|{MARKS}|{SPACES}"
QWEN35 = rf"{CONTRACTION}|{LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
TEKKEN = rf"{LEAD}{UPPER}*{LOWER}+|{LEAD}{UPPER}+{LOWER}*|\p{{N}}|{CASED_MARKS}|{SPACES}"
GPT4O = (
    rf"{LEAD}{UPPER}*{LOWER}+{CONTRACTION}?|{LEAD}{UPPER}+{LOWER}*{CONTRACTION}?|\p{{N}}{{1,3}}|{CASED_MARKS}|{SPACES}"
)
DIGIT = r"\p{N}"
HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + SPACES
)
PRE_NAMES: dict[tuple[str, ...], str] = {
    (LLAMA3,): "dbrx",
    (QWEN2,): "qwen2",
    (QWEN35,): "qwen35",
    (GPT2,): "gpt-2",
    (DIGIT, GPT2): "smollm",
    (TEKKEN,): "tekken",
    (GPT4O,): "gpt-4o",
    (r"\p{N}{1,3}", HAN_KANA, DEEPSEEK3): "deepseek-v3",
}
# The same words, but a word that is a token is not merged from letters.
PRE_NAMES_IGNORING_MERGES = {**PRE_NAMES, (LLAMA3,): "llama-bpe"}


@dataclass(slots=True)
class _Vocabulary:
    """One entry per row of the embedding; rows that no token uses have a filler."""

    where: str
    tokens: list[str]
    scores: list[float]
    types: list[TokenType]

    @classmethod
    def empty(cls, where: str, n_vocab: int) -> _Vocabulary:
        unused = [TokenType.UNUSED] * n_vocab
        return cls(where, [f"[PAD{i}]" for i in range(n_vocab)], [PADDING_SCORE] * n_vocab, unused)

    def put(self, token: Any, text: Any, score: float, kind: TokenType) -> None:
        if type(token) is not int or not 0 <= token < len(self.tokens):
            raise ValueError(f"{self.where}: token id {quoted(token)} is outside 0 ... {len(self.tokens) - 1}")
        if not isinstance(text, str) or SURROGATE.search(text):
            raise ValueError(f"{self.where}: token {token} must be valid text, found {quoted(text)}")
        self.tokens[token], self.scores[token], self.types[token] = text, score, kind

    def put_added(self, token: Any, entry: Mapping[str, Any], score: float = ADDED_SCORE) -> None:
        """A token that is found in the text before anything else happens to it."""
        text = entry.get("content")
        if entry.get("special") or (isinstance(text, str) and looks_special(text)):
            self.put(token, text, score, TokenType.CONTROL)
        else:
            plain = text.replace(SPACE, " ") if isinstance(text, str) else text
            self.put(token, plain, score, TokenType.USER_DEFINED)


def tokenizer_kv(
    folder: Path, architecture: str, n_vocab: int, generation: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The metadata tokenizer.*; none where the folder has no tokenizer. ValueError for one that cannot be used.

    generation: what generation_config.json holds, where it has been read.
    """
    files: dict[str, Mapping[str, Any]] = {}
    files |= {name: read_json(folder / name) for name in ("tokenizer.json", "config.json") if (folder / name).exists()}
    files |= {name: read_side_json(folder / name) for name in ("tokenizer_config.json", "added_tokens.json")}
    files[GENERATION] = read_side_json(folder / GENERATION) if generation is None else generation
    fast = files.get("tokenizer.json")
    where = str(folder / ("tokenizer.json" if fast else "tokenizer.model"))
    vocabulary, carried = _Vocabulary.empty(where, n_vocab), dict[str, Any]()
    if (folder / "tokenizer.model").exists() and not (fast and _is_byte_level(fast)):
        dummy_prefix = _fill_from_sentencepiece(vocabulary, folder / "tokenizer.model", files, architecture)
        kv: dict[str, Any] = {"model": "llama", "pre": "default", "add_space_prefix": dummy_prefix}
    elif fast:
        kv = _json_kv(vocabulary, fast)
        if kv.get("pre") == CARRIED:
            carried[EMBEDDED_KEY] = (folder / "tokenizer.json").read_text("utf-8")
    else:
        return {}
    kv |= _tokens_kv(vocabulary, scored=kv["model"] == "llama")
    kv |= _special_kv(files, vocabulary)
    _space_prefix(kv, files, architecture)
    return {f"tokenizer.ggml.{key}": value for key, value in kv.items()} | carried | _template_kv(folder, files)


def embedded_tokenizer_kv(kv: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a GGUF file whose tokenizer is a whole tokenizer.json, under EMBEDDED_KEY.

    What the file has under tokenizer.ggml.* wins over what the JSON says.
    """
    text = kv[EMBEDDED_KEY]
    if not isinstance(text, str):
        raise ValueError(f"{EMBEDDED_KEY} must be a string, found {type(text).__name__}")
    fast = parse_json(text.encode("utf-8", "surrogateescape"), EMBEDDED_KEY)
    ids = [entry.get("id") for entry in _added_tokens(fast, EMBEDDED_KEY)]
    vocab = _part(fast, "model").get("vocab")
    ids += vocab.values() if isinstance(vocab, dict) else []
    n_vocab = 1 + max((i for i in ids if type(i) is int), default=-1)
    if n_vocab > len(ids):
        raise ValueError(f"{EMBEDDED_KEY}: {len(ids)} tokens have ids up to {n_vocab - 1}")
    vocabulary = _Vocabulary.empty(EMBEDDED_KEY, n_vocab)
    found = _json_kv(vocabulary, fast)
    found |= _tokens_kv(vocabulary, scored=found["model"] == "llama") | _special_kv(
        {"tokenizer.json": fast}, vocabulary
    )
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()} | dict(kv)


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    return _part(tokenizer, "decoder").get("type") == "ByteLevel"


def _json_kv(vocabulary: _Vocabulary, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Fills the vocabulary from a tokenizer.json; the kind of model, and what belongs to it."""
    where = vocabulary.where
    _fill_from_json(vocabulary, tokenizer)
    merges = _merges(where, tokenizer)
    if _is_byte_level(tokenizer):
        return {"model": "gpt2", "pre": pre_name(tokenizer, where), "merges": [" ".join(pair) for pair in merges]}
    _score_by_merges(vocabulary, merges)
    return {"model": "llama", "pre": "default", "add_space_prefix": _puts_space_before(tokenizer)}


def _tokens_kv(vocabulary: _Vocabulary, *, scored: bool) -> dict[str, Any]:
    kv: dict[str, Any] = {"tokens": vocabulary.tokens}
    if scored:
        kv["scores"] = np.array(vocabulary.scores, np.float32)
    kv["token_type"] = np.array(vocabulary.types, np.int32)
    return kv


def _space_prefix(kv: dict[str, Any], files: Mapping[str, Mapping[str, Any]], architecture: str) -> None:
    """Whether a space is put before the text: Gemma's never is, Llama's may be said in tokenizer_config.json."""
    wish = files.get("tokenizer_config.json", {}).get("add_prefix_space")
    if architecture == "llama" and isinstance(wish, bool):
        kv["add_space_prefix"] = wish
    elif architecture in ("gemma2", "gemma3"):
        kv["add_space_prefix"] = False


def _fill_from_json(vocabulary: _Vocabulary, tokenizer: Mapping[str, Any]) -> None:
    model = _part(tokenizer, "model")
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ValueError(
            f"{vocabulary.where}: a model of type BPE with a vocab is expected, found {quoted(model.get('type'))}"
        )
    unknown = model.get("unk_token")
    for text, token in model["vocab"].items():
        kind = TokenType.NORMAL
        if model.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
            kind = TokenType.BYTE
        elif text == unknown:
            kind = TokenType.UNKNOWN
        vocabulary.put(token, text, 0.0, kind)
    for entry in _added_tokens(tokenizer, vocabulary.where):
        if unknown is None or entry.get("content") != unknown:
            vocabulary.put_added(entry.get("id"), entry)


def _fill_from_sentencepiece(
    vocabulary: _Vocabulary, path: Path, files: Mapping[str, Mapping[str, Any]], architecture: str
) -> bool:
    """Tokens of tokenizer.model and those added beside it; whether a space is put before the text."""
    model = read_sentencepiece(path)
    for token, piece in enumerate(model.pieces[: len(vocabulary.tokens)]):
        # Whether these tokens are found before others is said by the files beside.
        kind = TokenType.NORMAL if piece.type is TokenType.USER_DEFINED else piece.type
        vocabulary.put(token, piece.text, piece.score, kind)
    for text, token in files.get("added_tokens.json", {}).items():
        vocabulary.put(token, text, ADDED_SCORE, TokenType.USER_DEFINED)
    decoder = files.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for number, entry in decoder.items():
            vocabulary.put_added(
                int(number) if number.isdecimal() and len(number) < 20 else number,
                entry if isinstance(entry, dict) else {},
            )
    # llama.cpp's converter takes all of these for Phi-3 only; others keep what SentencePiece calls control or unknown.
    if architecture == "phi3" or not isinstance(decoder, dict):
        special = (TokenType.UNKNOWN, TokenType.CONTROL)
        kept = {(str(i), vocabulary.tokens[i]) for i, kind in enumerate(vocabulary.types) if kind in special}
        for entry in _added_tokens(files.get("tokenizer.json", {}), vocabulary.where):
            number = entry.get("id")
            place = str(number) if isinstance(number, int | str) else ""
            if architecture == "phi3" or (place, _text_of(entry)) not in kept:
                vocabulary.put_added(entry.get("id"), entry)
    return model.add_dummy_prefix


def _score_by_merges(vocabulary: _Vocabulary, merges: Sequence[tuple[str, str]]) -> None:
    """Scores that make SentencePiece's rule, highest score first, join what the list of merges joins, in its order."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    for token, text in enumerate(vocabulary.tokens):
        if vocabulary.types[token] is TokenType.NORMAL:
            vocabulary.scores[token] = -float(ranks.get(text, len(merges)))


def _merges(where: str, tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, which older files write as "left right" and newer ones as lists; spaces in them are made visible."""
    merges = _part(tokenizer, "model").get("merges")
    if not isinstance(merges, list):
        raise ValueError(f"{where}: the model has no list of merges")
    pairs = []
    for merge in merges:
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)]:
                pairs.append((left.replace(" ", "\u0120"), right.replace(" ", "\u0120")))
            case _:
                raise ValueError(f"{where}: a merge must be a pair of tokens, found {written(merge)}")
    if SURROGATE.search("".join(map("".join, pairs))):
        raise ValueError(f"{where}: the merges must be valid text")
    return pairs


def _puts_space_before(tokenizer: Mapping[str, Any]) -> bool:
    def steps(node: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        parts = node.get(key, [node])
        return [p for p in parts if isinstance(p, dict)] if isinstance(parts, list) else []

    if any(step.get("type") == "Prepend" for step in steps(_part(tokenizer, "normalizer"), "normalizers")):
        return True
    meta = [s for s in steps(_part(tokenizer, "pre_tokenizer"), "pretokenizers") if s.get("type") == "Metaspace"]
    return any(step.get("prepend_scheme", "always") != "never" for step in meta)


def pre_name(tokenizer: Mapping[str, Any], where: str = "tokenizer.json") -> str:
    """GGUF's name (tokenizer.ggml.pre) for how a byte-level tokenizer.json cuts text into words.

    CARRIED where there is none, so that it is carried as it is; ValueError for what no byte-level vocabulary has.
    """
    kinds = step_kinds(tokenizer, where)
    if kinds.index("ByteLevel") < len(kinds) - 1:
        # What follows cuts letters that stand for bytes, which no name says.
        return CARRIED
    names = PRE_NAMES_IGNORING_MERGES if _part(tokenizer, "model").get("ignore_merges") else PRE_NAMES
    return names.get(tuple(_cuts(_part(tokenizer, "pre_tokenizer"))), CARRIED)


def _cuts(node: Mapping[str, Any]) -> list[str]:
    """The expressions whose matches become words, one after another."""
    kind = node.get("type")
    if kind == "Sequence" and isinstance(node.get("pretokenizers"), list):
        return [cut for part in node["pretokenizers"] if isinstance(part, dict) for cut in _cuts(part)]
    if kind == "ByteLevel" and not node.get("add_prefix_space"):
        return [GPT2] if node.get("use_regex", True) else []
    if kind == "Digits" and node.get("individual_digits"):
        return [DIGIT]
    pattern = node.get("pattern")
    # Expressions that match everything isolate the same words as their inverse removes.
    isolates = (node.get("behavior"), bool(node.get("invert"))) in (("Isolated", False), ("Removed", True))
    if kind == "Split" and isolates and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        return [pattern["Regex"]]
    return [f"{quoted(kind)} ..."]


def looks_special(text: str) -> bool:
    """Added tokens that some models forget to call special, by llama.cpp's converter's list."""
    framed = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(start) and text.endswith(end) for start, end in framed
    )


def _special_kv(files: Mapping[str, Mapping[str, Any]], vocabulary: _Vocabulary) -> dict[str, Any]:
    """Ids of special tokens, and whether they are put around the text."""
    settings = files.get("tokenizer_config.json", {})
    texts = {role: _text_of(settings.get(f"{role}_token")) for role in ID_KEYS}
    kv: dict[str, Any] = {}
    ids = {text: token for token, text in enumerate(vocabulary.tokens)}
    configs = [files.get(name, {}) for name in ("config.json", "generation_config.json")]
    configs.insert(1, _part(configs[0], "text_config"))
    for role, key in ID_KEYS.items():
        candidates = [ids.get(texts[role] or ""), *(_first(config.get(f"{role}_token_id")) for config in configs)]
        for token in candidates:
            if type(token) is int and 0 <= token < len(vocabulary.tokens):
                kv[key] = token
                break
    ends = sorted({*_token_ids(configs, "eos_token_id", len(vocabulary.tokens))} - {kv.get(ID_KEYS["eos"])})
    if ends:
        kv["eog_token_ids"] = np.array(ends, np.int32)
    added = _added_by_template(_part(files.get("tokenizer.json", {}), "post_processor"), texts)
    for role in ("bos", "eos", "sep"):
        wish = settings.get(f"add_{role}_token")
        if isinstance(wish, bool):
            added[role] = wish
    return kv | {f"add_{role}_token": value for role, value in added.items()}


def _token_ids(configs: Sequence[Mapping[str, Any]], key: str, n_vocab: int) -> Iterator[int]:
    """All tokens that configurations name for a role, one or a list each."""
    for config in configs:
        found = config.get(key)
        for token in found if isinstance(found, list) else [found]:
            if type(token) is int and 0 <= token < n_vocab:
                yield token


def _added_by_template(node: Mapping[str, Any], texts: Mapping[str, str | None]) -> dict[str, bool]:
    """Which special tokens the templates for one text and for a pair of texts put around them."""
    added: dict[str, bool] = {}
    processors = node.get("processors", [node])
    for processor in processors if isinstance(processors, list) else []:
        if not isinstance(processor, dict) or processor.get("type") != "TemplateProcessing":
            continue
        single, pair = _template(processor, "single"), _template(processor, "pair")
        if len(single) > 1 and single[0] is not None:
            added["bos"] = single[0] == texts["bos"]
        if len(single) > 1 and single[-1] is not None:
            added["eos"] = single[-1] == texts["eos"]
        if pair.count(None) == 2:
            first = pair.index(None)
            between = pair[first + 1 : pair.index(None, first + 1)]
            if between:
                ends = [t for t in between if t in (texts["sep"], texts["eos"])]
                added["sep"] = len(ends) > ("eos" in added)
    return added


def _template(processor: Mapping[str, Any], key: str) -> list[str | None]:
    """Special tokens by their text; None stands for a text of the input."""
    steps = processor.get(key)
    if not isinstance(steps, list):
        return []
    specials = [_part(step, "SpecialToken").get("id") for step in steps if isinstance(step, dict)]
    return [text if isinstance(text, str) else None for text in specials]


def _template_kv(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Chat templates: from tokenizer_config.json or else a file of their own; several have names."""
    found = files.get("tokenizer_config.json", {}).get("chat_template")
    if found is None and (folder / "chat_template.jinja").exists():
        found = _template_text(folder / "chat_template.jinja")
    elif found is None:
        found = read_side_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, str):
        return {"tokenizer.chat_template": found}
    kv = {}
    for entry in found if isinstance(found, list) else []:
        name, template = _text_of(entry, "name"), _text_of(entry, "template")
        if name == "default" and template:
            kv["tokenizer.chat_template"] = template
        elif name and template:
            allowed = string.ascii_letters + string.digits
            kv["tokenizer.chat_template." + "".join(c if c in allowed else "_" for c in name)] = template
    return kv


def _template_text(path: Path) -> str | None:
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ValueError(f"{path} has more than {MAX_TEMPLATE_BYTES} bytes")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        passed_over(path, error)
        return None


def _added_tokens(tokenizer: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    entries = tokenizer.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where}: added_tokens must be a list of objects")
    return entries


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside an object; empty where there is none."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _text_of(value: Any, key: str = "content") -> str | None:
    """A text, alone or inside an object."""
    value = value.get(key) if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value
