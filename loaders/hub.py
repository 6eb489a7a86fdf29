"""Fetches models from the Hugging Face Hub, by llama.cpp's way of naming them: `user/model[:quant]`.

What was downloaded before is used when the Hub cannot be asked, whatever keeps it. The Hub's library makes paths of
what an endpoint's headers say; `_checked_answers` lets no answer lead out of the cache.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .hub_files import choose_gguf, listed, split_parts

LIST_SECONDS = 10.0
# Longer ones are no files' names.
MAX_NAME = 1024
DOWNLOADS = 4
# What becomes part of a path in the cache: headers of an answer to HEAD.
PATH_HEADERS = ("ETag", "X-Linked-ETag", "X-Repo-Commit", "X-Xet-Hash")
PATH_PART = re.compile(r'(?:W/)?"?(?!\.\.?"?$)[^/\\:"\x00-\x1f]{1,200}"?')

# A file of the repository, by its name, as a path.
Open = Callable[[str], Path]


def fetch_model(repo: str, file: str | None = None) -> Path:
    """Downloads (or finds in the Hub's cache) a model and returns its path: a GGUF file, or a safetensors folder.

    repo: `user/model`, with `:QUANT` for one of its GGUF files; without, Q4_K_M, Q8_0 or the first there is.
    file: one GGUF file of the repository by name, which overrides the quant.
    A repository that was downloaded before is found when the Hub cannot be asked, too; a warning says why.
    Raises ValueError for a malformed name, a repository without a model or an endpoint whose answers are no
    repository's, OSError when the Hub cannot be reached.
    """
    repo_id, _, quant = repo.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"expected a repository as user/model[:quant], found {repo!r}")
    wanted = _Wanted(repo_id, quant, file)
    try:
        names = _listing(repo_id)
    except Exception as error:
        # The Hub's library raises errors of its HTTP client, which change with its versions.
        return _cached(wanted, error)
    with _checked_answers():
        try:
            return wanted.found(names, lambda name: _download(repo_id, name))
        except Exception as error:
            if isinstance(error, ValueError | OSError) and not type(error).__module__.startswith("huggingface_hub"):
                raise
            return _cached(wanted, error)


class _Wanted:
    """What is asked for, looked for among the names of files wherever they are."""

    def __init__(self, repo_id: str, quant: str, file: str | None) -> None:
        self.repo_id, self.quant, self.file = repo_id, quant, file

    def found(self, names: Sequence[str], get: Open) -> Path:
        """The model among a repository's files, which `get` opens; only what will be read. ValueError if none."""
        chosen = self.file or choose_gguf(names, self.quant)
        if chosen is None and not self.quant and "config.json" in names:
            return self._folder(names, get)
        parts = [] if chosen is None else split_parts(chosen)
        if chosen is None or not set(parts) <= set(names):
            kind = f"file {self.file}" if self.file else f"GGUF file{f' for {self.quant}' if self.quant else ''}"
            raise ValueError(f"{self.repo_id} has no {kind}: {listed(names)}")
        return _together([get(name) for name in parts])[parts.index(chosen)]

    def _folder(self, names: Sequence[str], get: Open) -> Path:
        """A safetensors checkpoint: its configuration, its weights once, and what is read beside them."""
        from .hf.files import CONFIG, INDEX, SIDE_FILES, WEIGHTS, index_files, reads_index
        from .hf.json_file import read_json

        weights = [WEIGHTS]
        if INDEX in names:
            parts = index_files(read_json(get(INDEX)), f"{self.repo_id}: {INDEX}")
            weights = [INDEX, *parts] if reads_index(parts, names) else weights
        if missing := [name for name in weights if name not in names]:
            raise ValueError(f"{self.repo_id} has no {missing[0]}: {listed(names)}")
        wanted = [CONFIG, *(name for name in SIDE_FILES if name in names), *weights]
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            return _together(list(pool.map(get, wanted)))[0].parent


def _listing(repo_id: str) -> list[str]:
    """The names of a repository's files, as the Hub has them now."""
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(repo_id, timeout=LIST_SECONDS).siblings
    if siblings is None:
        raise OSError("the answer has no list of files")
    return [name for sibling in siblings if len(name := sibling.rfilename) <= MAX_NAME]


def _download(repo_id: str, name: str) -> Path:
    """A file in the cache; downloaded, unless it is there. ValueError where an endpoint's answer leads elsewhere."""
    from huggingface_hub import constants, hf_hub_download

    path = Path(hf_hub_download(repo_id, name))
    home = _repo_folder(repo_id)
    # People link caches to other disks, so what counts is where they lead.
    homes = [place.resolve() for place in (home.parent, home, home / "blobs")]
    if constants.ENDPOINT != "https://huggingface.co" and not any(map(path.resolve().is_relative_to, homes)):
        raise ValueError(f"{constants.ENDPOINT}: {repo_id}/{name} was led out of the cache, to {path.resolve()}")
    return path


def _together(paths: list[Path]) -> list[Path]:
    """The paths, if they are of one commit."""
    if len({path.parent for path in paths}) > 1:
        raise OSError("the repository changed while it was downloaded: try again")
    return paths


def _repo_folder(repo_id: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"


def _cached(wanted: _Wanted, error: Exception) -> Path:
    """The newest snapshot of the cache that has what is wanted; OSError with what happened if there is none."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    for folder in _snapshots(_repo_folder(wanted.repo_id)):
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        try:
            path = wanted.found(names, folder.joinpath)
        except ValueError:
            continue
        warnings.warn(f"{wanted.repo_id} is taken from the cache, the Hub could not be asked: {reason}", stacklevel=3)
        return path
    raise OSError(f"cannot fetch {wanted.repo_id}: {reason}") from error


def _snapshots(home: Path) -> list[Path]:
    """The cached commits: what `main` was at last, then the others, the newest first."""
    main = home / "refs" / "main"
    commit = main.read_bytes()[:200].decode("utf-8", "replace").strip() if main.is_file() else ""
    folders = [path for path in home.glob("snapshots/*") if path.is_dir()]
    return sorted(folders, key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)


@contextmanager
def _checked_answers() -> Iterator[None]:
    """Meanwhile the Hub's library refuses answers whose headers are no names of files."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    make = _http._GLOBAL_CLIENT_FACTORY

    def checked() -> Any:
        client: Any = make()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "response": [*hooks.get("response", ()), _check_answer]}
        return client

    set_client_factory(checked)
    try:
        yield
    finally:
        set_client_factory(make)


def _check_answer(response: Any) -> None:
    for name in PATH_HEADERS if response.request.method == "HEAD" else ():
        value = response.headers.get(name)
        if value is not None and not PATH_PART.fullmatch(value):
            host = response.request.url.host
            raise ValueError(f"{host} answers with {name} {value[:80]!r}, which cannot name a file of the cache")
