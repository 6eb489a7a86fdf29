"""Special tokens that llama.cpp recognises by their text, and which of them end a generation.

GGUF files name only some special tokens by id. The texts below are facts of llama.cpp's llama-vocab.cpp; where
several candidates of one role exist it takes whichever its hash table yields first, naiad the first one listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag


class Attr(IntFlag):
    """What a token is, in llama.cpp's bits; 0 is a token of no known type."""

    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32
    LSTRIP = 128
    RSTRIP = 256


# Plain integers, for loops over a whole vocabulary.
NORMAL, BYTE, USER_DEFINED, UNUSED = (int(a) for a in (Attr.NORMAL, Attr.BYTE, Attr.USER_DEFINED, Attr.UNUSED))
HIDDEN = int(Attr.CONTROL | Attr.UNKNOWN)
SPECIAL = int(Attr.CONTROL | Attr.UNKNOWN | Attr.USER_DEFINED)


ROLE_TEXTS = {
    "eot": (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}

EOG_ROLES = ("fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom")
EOG_TEXTS = (
    *ROLE_TEXTS["eot"],
    *ROLE_TEXTS["eom"],
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)

# The frame of gpt-oss messages: shown to the reader of the output, who parses it.
RENDERED_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def find_roles(ids: Mapping[str, int], special: dict[str, int | None], attrs: list[int]) -> None:
    """Fills the roles that the metadata left open, by text; a token found so becomes a control token."""
    for role, texts in ROLE_TEXTS.items():
        if special.get(role) is None:
            special[role] = next((ids[text] for text in texts if text in ids), None)
            _add_control(attrs, special[role])


def find_eog(ids: Mapping[str, int], special: Mapping[str, int | None], attrs: list[int]) -> frozenset[int]:
    """The tokens after which generation ends; sets the attributes that hang on it."""
    eog = {special[role] for role in EOG_ROLES}
    for text in EOG_TEXTS:
        eog.add(ids.get(text))
        _add_control(attrs, ids.get(text))
    for text in RENDERED_TEXTS:
        if text in ids:
            attrs[ids[text]] = int(Attr.USER_DEFINED)
    found = {text for text in (*EOG_TEXTS, "<|plamo:eos|>") if ids.get(text) in eog and text in ids}

    # gpt-oss and solar-open end a part of a message, not the answer, with <|end|>.
    calls = found & {"<|call|>", "<|calls|>"}
    if "<|end|>" in found and calls and found & {"<|return|>", "<|flush|>"}:
        eog.discard(ids["<|end|>"])
        attrs[ids["<|end|>"]] = int(Attr.USER_DEFINED)
    # In gemma 4 and PLaMo </s> is ordinary text.
    if "</s>" in found and found & {"<|tool_response>", "<|plamo:eos|>"}:
        eog.discard(ids["</s>"])
        attrs[ids["</s>"]] = int(Attr.NORMAL)
    return frozenset(i for i in eog if i is not None)


def _add_control(attrs: list[int], token: int | None) -> None:
    if token is not None:
        attrs[token] |= int(Attr.CONTROL)
