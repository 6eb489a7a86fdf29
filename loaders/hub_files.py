"""Which of a repository's files are its model: by llama.cpp's rules for GGUF, by transformers' for safetensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

# Without a quant in the request, these are looked for before whatever there is.
PREFERRED_QUANTS = ("Q4_K_M", "Q8_0")
SPLIT_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
# What lies beside models under the same ending: projectors, importance matrices, heads that draft tokens, adapters.
# Some are told by a word anywhere in the name, some only by its beginning, because models have these words, too.
BESIDE_MODELS = re.compile(
    r"mm-?proj|projector|imatrix|importance[-_.]?matrix|(?-i:mtp-)|ggml-vocab"
    r"|^(?:mtp|draft|lora|adapter)(?![a-z0-9])"
    r"|(?<![a-z0-9])(?:eagle-?3|dflash|dspark|lora|adapter|control[-_.]?vector)(?![a-z0-9])(?!.*merged)",
    re.IGNORECASE,
)


def is_model(name: str) -> bool:
    """Whether a file of a repository can be run by itself, going by its name."""
    return name.endswith(".gguf") and not BESIDE_MODELS.search(name.rpartition("/")[2].removesuffix(".gguf"))


def choose_gguf(names: Collection[str], quant: str) -> str | None:
    """The file for a quant (case does not matter) among a repository's; the first part of a split one.

    Without a quant Q4_K_M, then Q8_0, then the first there is. A split file counts if all its parts are there.
    """
    known = set(names)
    files = [name for name in sorted(known) if is_model(name) and split_parts(name)[0] == name]
    files = [name for name in files if known.issuperset(split_parts(name))]
    for wanted in [quant] if quant else PREFERRED_QUANTS:
        # Quants end a name's last part or name a folder, so that Q4_K does not take a Q4_K_M file.
        pattern = re.compile(rf"(?:^|[-./_]){re.escape(wanted)}(?:[-./]|$)", re.IGNORECASE)
        if found := [name for name in files if pattern.search(name)]:
            return found[0]
    return files[0] if files and not quant else None


def split_parts(name: str) -> list[str]:
    """All parts' names of a split file, given any of them; the name alone otherwise."""
    match = SPLIT_PART.search(name)
    if not match or not int(match[2]):
        return [name]
    return [SPLIT_PART.sub(f"-{i + 1:05}-of-{match[2]}.gguf", name) for i in range(int(match[2]))]


def listed(names: Sequence[str]) -> str:
    """The model files among a repository's, for a message."""
    files = sorted(n for n in names if n.endswith((".gguf", ".safetensors")))
    if not files:
        return "no model files at all"
    return ", ".join(name[-80:] for name in files[:20]) + (f" and {len(files) - 20} more" if len(files) > 20 else "")
