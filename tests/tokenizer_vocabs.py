"""Small vocabularies, as GGUF metadata, that show what a tokenizer does; their llama.cpp answers are recorded.

Everything here is made from fixed seeds: tests/data/record_tokenizer.py gives these vocabularies to llama.cpp, the
tests give the same ones to naiad.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from naiad.loaders.tokenizer.byte_letters import LETTERS

KV = dict[str, Any]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "▁"

# Every rule of every pre-tokenizer decides something about one of these.
TEXTS = (
    "",
    " ",
    "Hello  World, it's I'M you'RE we'll 'tis o'Clock'd",
    "HTTPServer iPhone ÉCOLEs straßeÀ eÉe ǅa ʰb ªc",
    " a \n b\n\n c \r\n\r\n  d\t\te   \n  \n   f  ",
    "x  1 12 123 1234 12345 123456 1234567 1,234.5 a1b22",
    "٣٤٥٦ 1٢3 ²½Ⅻ 12³4567 〇",
    "!? a.b ...c (d) [e]{f} $5+~g^ `h` |i <j=k> _l_ a/b//\n#m!\n\n",
    "中文，字。 日本語のカナ・한국어 ㄅㄆ 、！ a中b 中 d",
    "हिन्दी বাংলা ไทย e\u0301e \u0301x a\u0300\u0301 !\u0301",
    "a\u00a0b\u3000c\u2003\u2003d \u3000e\u2028f\u0085g\u000b\u000ch\u1680",
    "😀👨‍👩‍👧 🇩🇪 \u200db \ue000c \ufffd \U000e0001 \u0378d",
    "“q” ‘s’ —–… 'ſ 'S «r» ¡s¿",
    "IMGIMGABCDZ<sentinel:12> 　、。",
    "  leading <|mark|>and  <|mark|> <s> </s>trailing  ",
    "\0a\x1cb\x7f\x1f c",
    "abc" + " " * 21 + "def" + "\n" * 7 + "=" * 9,
    "a \t\t  \t \t\t\t   \t  \t \t\tb \t\t  \t \t\t",
    "'sabc x'LLama ''tis I'MM 'Re 've.",
)


def texts_of(alphabet: str, seed: int, n: int, length: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randint(1, length))) for _ in range(n)]


def vocab_kv(model: str, tokens: Sequence[str], types: Sequence[int] | None = None, **extra: Any) -> KV:
    """Metadata; keywords are keys below tokenizer.ggml, double underscores in them are dots, "" is no key."""
    kv: KV = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": np.array(types or [NORMAL] * len(tokens), np.int32),
    }
    for key, value in extra.items():
        if isinstance(value, str) and not value:
            continue
        name = key.replace("__", ".")
        kv[name if name.startswith("general.") else f"tokenizer.ggml.{name}"] = value
    return kv


def with_frame(tokens: Iterable[str], types: Iterable[int] = ()) -> tuple[list[str], list[int]]:
    """<unk>, <s>, </s> and a user-defined token in front."""
    rest = list(dict.fromkeys(tokens))
    frame = ["<unk>", "<s>", "</s>", "<|mark|>"]
    return frame + rest, [UNKNOWN, CONTROL, CONTROL, USER_DEFINED, *(list(types) or [NORMAL] * len(rest))]


def bpe_kv(pre: str, **extra: Any) -> KV:
    """Any two byte letters that TEXTS has can merge, in random order, so that every cut between words shows."""
    letters = sorted({LETTERS[byte] for text in TEXTS for byte in text.encode()})
    pairs = [a + " " + b for a in letters for b in letters]
    random.Random(1).shuffle(pairs)
    tokens, types = with_frame([*LETTERS, *(pair.replace(" ", "") for pair in pairs)])
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pre": pre}
    return vocab_kv("gpt2", tokens, types, merges=pairs, **ids, **extra)


def raw_bpe_kv(pre: str, model: str = "gpt2", **extra: Any) -> KV:
    """The same for vocabularies of plain text, some of whose letters are missing."""
    letters = sorted({letter for text in TEXTS for letter in text if letter not in " \n\0한ʰ"} | {SPACE})
    pairs = [a + " " + b for a in letters[::2] for b in letters[::3]]
    random.Random(2).shuffle(pairs)
    newlines = ["\n", "\n\n", "\n" * 3, "\n" * 7]
    words = [*BYTE_TOKENS, *newlines, *letters, *(pair.replace(" ", "") for pair in pairs)]
    tokens, _ = with_frame(words)
    types = [UNKNOWN, CONTROL, CONTROL, USER_DEFINED]
    types += [BYTE if token in BYTE_TOKENS else NORMAL for token in tokens[4:]]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pre": pre}
    return vocab_kv(model, tokens, types, merges=["\n \n", *pairs], **ids, **extra)


def pre_kv(name: str, raw_utf8: bool) -> KV:
    """A vocabulary for a tokenizer.ggml.pre ("": the key is missing)."""
    if name == "whitespace":
        # llama.cpp takes this one only with the model of the same name.
        return raw_bpe_kv(name, "whitespace")
    return raw_bpe_kv(name) if raw_utf8 else bpe_kv(name)


def random_words(alphabet: str, seed: int, n: int, length: int) -> list[str]:
    words = [*dict.fromkeys(alphabet), *texts_of(alphabet, seed, n, length)]
    return list(dict.fromkeys(words))


def spm_kv(seed: int, **extra: Any) -> KV:
    """Few distinct scores: nearly every merge is decided by position."""
    words = random_words("ab▁c=é", seed, 120, 5)
    tokens, _ = with_frame([*BYTE_TOKENS, *words])
    types = [UNKNOWN, CONTROL, CONTROL, USER_DEFINED, *[BYTE] * 256, *[NORMAL] * len(words)]
    scores = np.random.default_rng(seed).integers(-4, 1, len(tokens)).astype(np.float32)
    return vocab_kv("llama", tokens, types, scores=scores, **extra)


def wpm_kv(**extra: Any) -> KV:
    letters = "abcdefghijklmnopqrstuvwxyzABCEÉÀéß0123456789.,!?'$+-—“中文日本語のカナ한е\u0301"
    words = [w for w in random_words(letters, 3, 300, 3) if SPACE not in w]
    tokens, types = with_frame([*words, *(SPACE + w for w in words)])
    tokens += ["[MASK]", "<mask>"]
    types += [CONTROL, CONTROL]
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "seperator_token_id": 2}
    return vocab_kv("bert", tokens, types, **{**ids, **extra})


def ugm_kv(charsmap: dict[str, str] | None = None, **extra: Any) -> KV:
    """A unigram model with ties, unused and user-defined tokens."""
    words = random_words("ab▁c=éxX1ﬁ", 5, 150, 4)
    tokens, types = with_frame([*words, "<|mask|>", "unused▁b", "cab=X"])
    types[-3:] = [USER_DEFINED, UNUSED, USER_DEFINED]
    scores = -np.random.default_rng(5).integers(2, 40, len(tokens)).astype(np.float32) / 4
    extra = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "scores": scores, **extra}
    if charsmap is not None:
        extra["precompiled_charsmap"] = precompiled(charsmap)
    return vocab_kv("t5", tokens, types, **extra)


def precompiled(charsmap: dict[str, str]) -> np.ndarray:
    """The map as a double-array trie in which every node has 256 entries of its own."""
    replacements, offsets = b"", {}
    for new in dict.fromkeys(charsmap.values()):
        offsets[new] = len(replacements)
        replacements += new.encode() + b"\0"
    keys = {key.encode(): offsets[new] for key, new in charsmap.items()}
    nodes = sorted({key[:n] for key in keys for n in range(len(key) + 1)}, key=len)
    block = {node: 256 * (i + 1) for i, node in enumerate(nodes)}
    units = np.zeros(256 * (len(nodes) + 1), np.uint32)
    place = {b"": 0}
    for node in nodes:
        # Children and the value lie at place ^ offset ^ label, which is this node's block plus the label.
        if node:
            place[node] = block[node[:-1]] + node[-1]
        label, is_key = node[-1] if node else 0, node in keys
        units[place[node]] = label | is_key << 8 | (place[node] ^ block[node]) << 10
        if is_key:
            units[block[node]] = keys[node] | 1 << 31
    index = units.tobytes()
    return np.frombuffer(len(index).to_bytes(4, "little") + index + replacements, np.uint8)


CHARSMAP = {
    "ﬁ": "fi",
    "é": "e",
    "e\u0301": "é",
    "\t": " ",
    "\n": " ",
    "Ａ": "A",
    "x1": "1x",
    "x1X": "=",
    "\u200b": "",
    "½": "1 2",
    "\u3000": " ",
    "c": "b",
}
SPM_TEXTS = tuple(texts_of("ab c=é ▁d\n", 11, 14, 30))
UGM_TEXTS = tuple(texts_of("ab c=éxX1ﬁ  \t\n½\u3000\u200bＡe\u0301", 12, 14, 24))
MARKED = (
    "a <mask> b",
    " <s> a \t</s>\n <unk>  [MASK] ",
    "<|mark|>  <|user|> a\n\n<|user|>",
    "a<s><s> b</s></s>",
    "<|user|>",
    "abab ababab a <|endoftext|> b",
)


def marked_kv(kv: KV, **extra: Any) -> KV:
    """More control tokens, for the rules about the spaces beside them and about tokens inside others."""
    new = ["<mask>", "[MASK]", "<|endoftext|>", "<|user|>", "abab", "ababab"]
    kv = {**kv, **{key.replace("__", "."): value for key, value in extra.items()}}
    kv["tokenizer.ggml.tokens"] = kv["tokenizer.ggml.tokens"] + new
    for key, value in (("token_type", CONTROL), ("scores", 0.0)):
        if (old := kv.get(f"tokenizer.ggml.{key}")) is not None:
            kv[f"tokenizer.ggml.{key}"] = np.append(old, np.full(len(new), value, old.dtype))
    return kv


def cases() -> dict[str, tuple[KV, Sequence[str]]]:
    """Vocabularies that the named pre-tokenizers do not cover, and texts for each."""
    ugm_flags = [(prefix, merge) for prefix in (False, True) for merge in (False, True)]
    spm = {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True}
    return {
        **{f"spm-{seed}": (spm_kv(seed), SPM_TEXTS) for seed in range(3)},
        "spm-no-prefix": (spm_kv(9, **spm), SPM_TEXTS),
        "wpm": (wpm_kv(), TEXTS),
        "wpm-cased": (wpm_kv(normalizer__lowercase=False), TEXTS),
        "wpm-accents": (wpm_kv(normalizer__strip_accents=False), TEXTS),
        "ugm-plain": (ugm_kv(), UGM_TEXTS),
        **{
            f"ugm-prefix-{prefix}-merge-{merge}": (
                ugm_kv(CHARSMAP, add_space_prefix=prefix, remove_extra_whitespaces=merge),
                UGM_TEXTS,
            )
            for prefix, merge in ugm_flags
        },
        "gemma4-model": (raw_bpe_kv("", "gemma4", add_bos_token=False), TEXTS),
        "whitespace-model": (raw_bpe_kv("whitespace", "whitespace", normalizer__lowercase=True), TEXTS),
        "bos-and-eos": (bpe_kv("qwen2", add_bos_token=True, add_eos_token=True), MARKED),
        "marked-bpe": (marked_kv(bpe_kv("qwen2")), MARKED),
        "marked-jina": (marked_kv(bpe_kv("jina-v2-de")), MARKED),
        "marked-xlm": (marked_kv(ugm_kv(), general__architecture="nomic-bert-moe"), MARKED),
        "marked-phi-3": (marked_kv(spm_kv(1), general__name="A PHI3 model"), MARKED),
        "marked-modern-bert": (marked_kv(bpe_kv("gpt-2"), general__name="Modern-BERT"), MARKED),
    }


def eog_kv(texts: Sequence[str], types: Sequence[int], **extra: Any) -> KV:
    tokens = ["<unk>", "<s>", "</s>", *texts, *BYTE_TOKENS]
    token_types = [UNKNOWN, CONTROL, CONTROL, *types, *[BYTE] * 256]
    return vocab_kv("llama", tokens, token_types, scores=np.zeros(len(tokens), np.float32), **extra)


N, C, U = NORMAL, CONTROL, USER_DEFINED
# Texts and types of tokens, and the metadata beside them.
EOG_TABLE: dict[str, tuple[list[str], list[int], dict[str, int]]] = {
    "nothing": ([], [], {}),
    "llama-3": (["<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"], [C, C, C, C], {}),
    "chatml-typed-normal": (["<|im_start|>", "<|im_end|>"], [N, N], {}),
    "qwen-fim": (["<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"], [C, C, C, U, U], {}),
    "gemma": (["<eos>", "<end_of_turn>", "<start_of_turn>"], [C, C, C], {"eos_token_id": 3}),
    "gemma4": (["<turn|>", "<|tool_response>", "<eos>"], [C, N, C], {}),
    "gpt-oss": (
        ["<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"],
        [C] * 7,
        {"eos_token_id": 4},
    ),
    "gpt-oss-without-call": (["<|end|>", "<|return|>", "<|start|>"], [C, C, C], {}),
    "solar-open": (["<|end|>", "<|flush|>", "<|calls|>"], [C, C, C], {}),
    "phi-3": (["<|end|>", "<|user|>"], [C, C], {"eos_token_id": 2}),
    "plamo": (["<|plamo:eos|>"], [C], {"eos_token_id": 3}),
    "kimi": (["[EOS]", "[EOT]", "[PAD]"], [C, C, C], {}),
    "eot-by-id": (["<|im_end|>", "stop"], [C, N], {"eot_token_id": 4}),
    "eom-by-id": (["<|im_end|>", "wait"], [C, N], {"eom_token_id": 4}),
    "deepseek": (["<｜end▁of▁sentence｜>", "<｜fim▁hole｜>"], [C, N], {"eos_token_id": 3}),
    "ids-out-of-range": (["<|im_end|>"], [C], {"eos_token_id": 10**6, "bos_token_id": 2**32 - 1}),
    "minimax": (["[e~[", "<|im_start|>"], [N, C], {}),
}
