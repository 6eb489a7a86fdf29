"""Files that a process keeps for the next one: read only where nobody but this user, or root, can have written them.

A folder is trusted if everything on the way to it is: every entry belongs to this user or to root, and stands in a
folder that nobody else may write to, or that lets nobody touch what is others' (/tmp). Then no name on the way can be
made to mean something else, now or later (Kupsch and Miller, "How to Open a File and Not Get Hacked", 2008).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

# As many as Linux follows.
MAX_LINKS = 40
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# Nothing is followed, and nothing waited for: a pipe may have the name.
READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def user_cache(name: str) -> Path | None:
    """~/.cache/naiad/name, which need not be there; None for a user without a home."""
    try:
        return Path.home() / ".cache" / "naiad" / name
    except RuntimeError:
        return None


def private_folder(path: Path) -> PrivateFolder:
    """A folder of this user's, made with rights for nobody else where it is not there yet.

    PermissionError, saying what is wrong, for one that somebody else could have put files into; OSError for one that
    cannot be made. On Windows a user's folders are closed to others by themselves, and nothing is checked.
    """
    if sys.platform == "win32":
        path.mkdir(parents=True, exist_ok=True)
        return PrivateFolder(path)
    if not path.is_absolute():
        raise PermissionError(f"expected an absolute path, found {str(path)!r}")
    real, missing = _walk(path)
    for name in missing:
        real = real / name
        with contextlib.suppress(FileExistsError):  # Others make it at the same time.
            real.mkdir(mode=0o700)
    if missing:
        real, _ = _walk(real)
    found = real.lstat()
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{real} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & OTHERS_WRITE:
        raise PermissionError(f"{real} may be written to by others (mode {found.st_mode & 0o7777:o})")
    return PrivateFolder(real)


@dataclass(frozen=True, slots=True)
class PrivateFolder:
    """A folder that `private_folder` has found trusted. path: without symbolic links."""

    path: Path

    @property
    def writable(self) -> bool:
        """Whether files can be kept; a folder of a read-only file system is only good for reading."""
        return os.access(self.path, os.W_OK)

    def read(self, name: str, most: int) -> bytes | None:
        """A file's bytes; None for one that is not there, has more than `most`, or that others may have written."""
        try:
            descriptor = os.open(self.path / name, READ)
        except OSError:
            return None
        try:
            found = os.fstat(descriptor)
            if not _is_private(found) or found.st_size > most:
                return None
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(most)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> bool:
        """Puts a file there in one piece, whoever else writes the same; false where that is not possible."""
        part = self.path / f".{name}.{secrets.token_hex(8)}"
        try:
            with open(os.open(part, WRITE, 0o600), "wb") as file:
                file.write(data)
            part.replace(self.path / name)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            return False
        return True


def _is_private(found: os.stat_result) -> bool:
    if not stat.S_ISREG(found.st_mode):
        return False
    if sys.platform == "win32":
        return True
    # A file of this user's that has a second name may be one that somebody else chose. Replaced since, it has none.
    return found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE and found.st_nlink <= 1


def _walk(path: Path) -> tuple[Path, list[str]]:
    """A path without its symbolic links, as far as it is there, and the names that are not.

    PermissionError where somebody else could change what a name on the way means.
    """
    here, names, n_links = Path("/"), list(reversed(path.parts[1:])), 0
    _check(here, here.lstat())
    while names:
        name = names.pop()
        if name == "..":
            here = here.parent
            continue
        entry = here / name
        try:
            found = entry.lstat()
        except FileNotFoundError:
            missing = [name, *reversed(names)]
            if ".." in missing:
                raise
            return here, missing
        _check(entry, found)
        if not stat.S_ISLNK(found.st_mode):
            here = entry
            continue
        n_links += 1
        if n_links > MAX_LINKS:
            raise PermissionError(f"{path} has more than {MAX_LINKS} symbolic links on its way")
        target = Path(os.readlink(entry))
        names.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        here = Path("/") if target.is_absolute() else here
    return here, []


def _check(entry: Path, found: os.stat_result) -> None:
    """PermissionError for an entry of somebody else's, or a folder in which others may replace entries."""
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{entry} belongs to user {found.st_uid}, neither to {os.geteuid()} nor to root")
    if stat.S_ISLNK(found.st_mode):
        return
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{entry} is no folder")
    if found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        raise PermissionError(f"{entry} may be written to by others (mode {found.st_mode & 0o7777:o})")
