"""How each `tokenizer.ggml.pre` cuts text into words before byte-pair merging: one table.

Names, flags and rules are those of llama.cpp's llama-vocab.cpp and unicode.cpp. Where llama.cpp approximates a
model's own rule (it folds the letter categories into one, and its spaces include every Unicode space), the table says
what llama.cpp does. Expressions are Oniguruma's. They are written so that no text takes quadratic time: digits that
are grouped from the right are counted once per run, and nothing scans to the end of a run from each of its letters.
Known difference: the tokenizers library classifies by Unicode 16, llama.cpp by Unicode 15.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..quote import quoted

CONTRACTION = r"'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
MARK = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s+(?!\S)|\s+"
LINES = r"\s*[\r\n]+|" + SPACES

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{MARK}|{LINES}"
QWEN2 = rf"{CONTRACTION}|{WORD}|\p{{N}}|{MARK}|{LINES}"
QWEN35 = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{LINES}"
# A long run of spaces is cut into pieces; the look-behind says that a piece before this one has already looked for
# a newline in the rest of the run.
JAIS2 = (
    rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{MARK}|(?<![^\S\r\n])\s*[\r\n]+|"
    + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s"
)
MINICPM5 = rf"{CONTRACTION}|{WORD}|\p{{N}}+|{MARK}|{LINES}"
UFAKZEKA = rf"{WORD}|\p{{N}}|{MARK}|{LINES}"
SEED_CODER = rf"{CONTRACTION}|{WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{LINES}"
BAILINGMOE = rf"{CONTRACTION}|{WORD}|\p{{N}}|{MARK}|\s*[\r\n]|{SPACES}"
EXAONE_MOE = (
    rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{SPACES}"
)


def _camel(upper: str, lower: str, ending: str, digits: str) -> str:
    """Words cut where a lower-case letter meets an upper-case one, for the two character classes."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = f"{lead}{upper}*{lower}+{ending}|{lead}{upper}+{lower}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{LINES}"


TEKKEN = _camel(r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]", "", r"\p{N}")
GPT4O = _camel(r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]", f"(?:{CONTRACTION})?", r"\p{N}{1,3}")
GRANITE_MULTI = _camel(r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]", f"(?:{CONTRACTION})?", r"\p{N}{1,3}")
# llama.cpp folds the case categories of these two into "letter".
ONE_CASE = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{CONTRACTION})?"
TINY_AYA = rf"{ONE_CASE}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{LINES}"
YOUTU = rf"{ONE_CASE}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{LINES}"

HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\U0002ceb0-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f"
)
KIMI_K2 = rf"[{HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{HAN}]]+(?:{CONTRACTION})?|\p{{N}}{{1,3}}|{MARK}|{LINES}"

# A run of digits in groups of three from its right end. The first group looks at the whole run once; the others
# only know that they follow a digit.
GROUPED = r"(?=(?:\p{N}{3})*+(?!\p{N}))"
# As llama.cpp: what precedes a run joins its first group.
DIGITS_FROM_RIGHT = rf"\P{{N}}++(?:\p{{N}}{{1,3}}{GROUPED}|\z)|\A\p{{N}}{{1,3}}{GROUPED}|(?<=\p{{N}})\p{{N}}{{3}}"
# The same for ASCII digits among other numbers, which stay with the group before them.
SUPERBPE_FILL = r"(?:[^0-9]++|(?<![0-9])[0-9]{1,2}(?=(?:[0-9]{3})*+(?![0-9])))"
SUPERBPE = rf"{SUPERBPE_FILL}+|[0-9]{{3}}{SUPERBPE_FILL}*"

HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
EAST_ASIAN = r"[\x{800}-\x{9fa5}\x{ac00}-\x{d7ff}&&\S]+"
AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01…“”‘’—\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|"
    + HAN_KANA
)
ASCII_MARK_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
DEEPSEEK_WORD = rf"{ASCII_MARK_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
DEEPSEEK3 = rf"{DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{LINES}"
SPARK = rf"{DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{SPACES}"
DEEPSEEK_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛ"
    "ὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ"
    "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
DEEPSEEK_PUNCTUATION = r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3001}-\x{3002}]+"
# "\s+$" of the original, tried only where a run of spaces begins.
TRAILING_SPACES = r"(?<!\s)\s++\z"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
NEWLINES = r"[^\n]+|\n+"


@dataclass(frozen=True)
class PreTokenizer:
    """One row: the names it goes by, its splitters in order, and what it changes about the vocabulary.

    splits: each isolates its matches inside the pieces that the ones before left.
    clean_spaces: detokenised text loses the spaces before punctuation and in contractions.
    ignore_merges: a word that is a token as it stands is not merged from letters.
    add_bos: whether a beginning-of-sequence token is prepended where the file does not say; forced: also where it
    says no. bos_by_default: False drops the default id of that token.
    raw_utf8: tokens are text with U+2581 for a space and <0x0A> for lone bytes, not GPT-2's byte alphabet.
    escape_spaces: a space in the text becomes U+2581. newline_tokens: a run of newlines that is a token is one.
    carried: the steps as a tokenizer.json has them (carried.py), in place of splits.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    clean_spaces: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    force_bos: bool = False
    bos_by_default: bool = True
    add_sep: bool = False
    lowercase: bool = True
    raw_utf8: bool = False
    escape_spaces: bool = False
    newline_tokens: bool = False
    carried: str = ""


PRE_TOKENIZERS = (
    # "" is a file without the key: llama.cpp warns and goes on with its oldest rule.
    PreTokenizer(("", "default"), (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), clean_spaces=True),
    PreTokenizer(
        (
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
        (LLAMA3,),
        clean_spaces=True,
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe"), (LLAMA3,), clean_spaces=True),
    PreTokenizer(("chatglm-bpe",), (LLAMA3,), clean_spaces=True, bos_by_default=False),
    PreTokenizer(("glm4", "glm5"), (LLAMA3,), clean_spaces=True, bos_by_default=False, ignore_merges=True),
    PreTokenizer(("jais-2",), (JAIS2,), clean_spaces=True),
    PreTokenizer(("minicpm5",), (r"\p{N}{1,3}", MINICPM5), clean_spaces=True, ignore_merges=True),
    PreTokenizer(
        ("deepseek-llm",),
        (
            r"[\r\n]",
            rf"\s?[{DEEPSEEK_CASED}]+",
            DEEPSEEK_PUNCTUATION,
            TRAILING_SPACES,
            EAST_ASIAN,
            r"\p{N}+",
        ),
    ),
    PreTokenizer(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, r"\p{N}")),
    PreTokenizer(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), (r"\p{N}{1,3}", HAN_KANA, DEEPSEEK3)),
    PreTokenizer(("spark2_5",), (r"\p{N}{1,3}", HAN_KANA, SPARK, r"\p{N}")),
    PreTokenizer(("youtu",), (YOUTU_SCRIPTS, YOUTU), ignore_merges=True),
    PreTokenizer(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"), clean_spaces=True),
    PreTokenizer(
        ("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (r"\p{N}", GPT2),
        clean_spaces=True,
    ),
    PreTokenizer(("command-r", "smollm"), (r"\p{N}", GPT2)),
    PreTokenizer(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
        ),
        (GPT2,),
        clean_spaces=True,
    ),
    PreTokenizer(("jina-v1-en", "jina-v2-code", "roberta-bpe"), (GPT2,), clean_spaces=True, add_sep=True),
    PreTokenizer(("trillion", "granite-docling"), (GPT2,)),
    PreTokenizer(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "hunyuan", "solar-open", "grok-2"), (QWEN2,)),
    PreTokenizer(("stablelm2", "megrez"), (QWEN2,), clean_spaces=True),
    PreTokenizer(("qwen35",), (QWEN35,)),
    PreTokenizer(("poro-chat",), (BLOOM,)),
    PreTokenizer(("bloom", "gpt3-finnish"), (BLOOM,), clean_spaces=True),
    PreTokenizer(("viking",), (BLOOM, r"\p{N}")),
    PreTokenizer(("tekken",), (TEKKEN,), ignore_merges=True, add_bos=True),
    PreTokenizer(
        ("chameleon",),
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
        add_bos=True,
    ),
    PreTokenizer(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (GPT4O,)),
    PreTokenizer(("granite-embed-multi-97m",), (GRANITE_MULTI,), ignore_merges=True),
    PreTokenizer(("tiny_aya", "cohere2moe"), (DIGITS_FROM_RIGHT, TINY_AYA)),
    PreTokenizer(("kimi-k2",), (KIMI_K2,)),
    PreTokenizer(("superbpe",), (r"\p{N}+", SUPERBPE)),
    PreTokenizer(("bailingmoe", "bailingmoe2", "llada-moe"), (BAILINGMOE,)),
    PreTokenizer(("seed-coder",), (SEED_CODER,)),
    PreTokenizer(("ufakzeka",), (UFAKZEKA,)),
    PreTokenizer(("afmoe",), (DIGITS_FROM_RIGHT, AFMOE_SCRIPTS, DEEPSEEK3)),
    PreTokenizer(("laguna",), (NEWLINES, QWEN2)),
    PreTokenizer(("exaone-moe",), (EXAONE_MOE,), clean_spaces=True),
    PreTokenizer(
        ("gemma4", "granite-embed-multi-311m"),
        (NEWLINES,),
        clean_spaces=True,
        force_bos=True,
        raw_utf8=True,
        escape_spaces=True,
        newline_tokens=True,
    ),
    PreTokenizer(("sarvam-moe",), (NEWLINES,), raw_utf8=True, escape_spaces=True),
    PreTokenizer(("whitespace",), (r"\S+",), clean_spaces=True, raw_utf8=True, lowercase=False),
)


def pre_tokenizer(name: str) -> PreTokenizer:
    """The row that goes by `name`; ValueError for a name that is in none."""
    for row in PRE_TOKENIZERS:
        if name in row.names:
            return row
    known = ", ".join(sorted(n for row in PRE_TOKENIZERS for n in row.names if n))
    raise ValueError(f"tokenizer.ggml.pre {quoted(name)} is not supported; supported: {known}")
