"""Fetches models from the Hugging Face Hub, by llama.cpp's way of naming them: `user/model[:quant]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

DEFAULT_QUANT = "Q4_K_M"
SPLIT_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def fetch_model(repo: str, file: str | None = None) -> Path:
    """Downloads (or finds in the Hub's cache) a model and returns its path: a GGUF file, or a safetensors folder.

    repo: `user/model`, with `:QUANT` for one of its GGUF files; without, Q4_K_M and then the first there is.
    file: one file of the repository by name, which overrides the quant.
    A repository that was downloaded before is found without a network, too.
    Raises ValueError for a malformed name or a repository without a model, OSError when the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    repo_id, _, quant = repo.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"expected a repository as user/model[:quant], found {repo!r}")
    try:
        names = [file] if file else _files(repo_id)
        chosen = file or choose_gguf(names, quant)
        if chosen is None and "config.json" in names and not quant:
            patterns = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]
            return Path(snapshot_download(repo_id, allow_patterns=patterns))
        if chosen is None:
            raise ValueError(f"{repo_id} has no GGUF file{f' for {quant}' if quant else ''}: {_listed(names)}")
        first, *_ = [hf_hub_download(repo_id, name) for name in split_parts(chosen)]
        return Path(first)
    except Exception as error:
        if isinstance(error, ValueError | OSError) and not type(error).__module__.startswith("huggingface_hub"):
            raise
        # The Hub's library raises errors of its HTTP client, which change with its versions.
        raise OSError(f"cannot fetch {repo_id}: {error}") from error


def _files(repo_id: str) -> list[str]:
    """The names of a repository's files; without a network, of those that the cache holds."""
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return list_repo_files(repo_id)
    except HfHubHTTPError:
        raise
    except Exception:
        try:
            folder = Path(snapshot_download(repo_id, local_files_only=True))
        except LocalEntryNotFoundError:
            folder = None
        if folder is None:
            raise
        return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]


def choose_gguf(names: Sequence[str], quant: str) -> str | None:
    """The file for a quant (case does not matter) among a repository's; the first part of a split one."""
    files = sorted(n for n in names if n.endswith(".gguf") and "mmproj" not in n.lower())
    files = [n for n in files if not (m := SPLIT_PART.search(n)) or int(m[1]) == 1]
    for wanted in [quant] if quant else [DEFAULT_QUANT, ""]:
        # Quants end a name's last part, so that Q4_K does not take a Q4_K_M file.
        pattern = re.compile(rf"(^|[-./_]){re.escape(wanted)}([-.]|$)", re.IGNORECASE)
        found = [n for n in files if not wanted or pattern.search(n)]
        if found:
            return found[0]
    return None


def split_parts(name: str) -> list[str]:
    """All parts' names of a split file, given its first; the name alone otherwise."""
    match = SPLIT_PART.search(name)
    if not match:
        return [name]
    n_parts = int(match[2])
    return [SPLIT_PART.sub(f"-{i + 1:05}-of-{n_parts:05}.gguf", name) for i in range(n_parts)]


def _listed(names: Sequence[str]) -> str:
    files = [n for n in names if n.endswith((".gguf", ".safetensors"))]
    return ", ".join(files[:20]) if files else "no model files at all"
