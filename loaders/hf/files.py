"""The files that a checkpoint folder is read from. Others are never opened."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# What is read if it is there.
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "tokenizer.model")
GENERATION = "generation_config.json"
SIDE_FILES = (*TOKENIZER_FILES, GENERATION, *TEMPLATE_FILES)
MAX_FILES = 10_000


def index_files(index: Mapping[str, Any], where: str) -> list[str]:
    """The safetensors files that an index names. ValueError for an index that is none, or leads out of its folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{where}: weight_map must be an object of file names")
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_FILES:
        raise ValueError(f"{where} names {len(names)} files, expected at most {MAX_FILES}")
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{where}: {name[:80]!r} is not the name of a safetensors file")
    return names


def reads_index(parts: Collection[str], present: Collection[str]) -> bool:
    """Whether the parts of an index are read: a single file goes before an index whose parts are not all there."""
    return WEIGHTS not in present or set(parts) <= set(present)
