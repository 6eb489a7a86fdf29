"""Files that a process keeps for the next: whose folders and files are trusted, and how they are written."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory

from naiad.loaders.private import private_folder, user_cache
from naiad.runtime.cli.history import _history

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
NOBODY = 65534


def give_away(path: Path) -> None:
    """Makes it somebody else's."""
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def folders(root: Path, *names: str) -> Path:
    """Nested folders that only their owner may write to."""
    for name in names:
        root = root / name
        root.mkdir(mode=0o755)
    return root


def test_what_is_missing_is_made_for_this_user_alone(tmp_path: Path) -> None:
    found = private_folder(tmp_path / "a" / "b")
    assert found.path == tmp_path / "a" / "b"
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700
    assert found.writable
    assert private_folder(tmp_path / "a" / "b") == found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    assert folder.read("x", 100) is None
    assert folder.write("x", b"one") and folder.write("x", b"three")
    assert folder.read("x", 5) == b"three"
    assert folder.read("x", 4) is None
    assert mode(tmp_path / "x") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# What is done to the path top/middle/kept, and what is then said of it; None: it is trusted.
def _writable(name: str, bits: int) -> Callable[[Path], None]:
    return lambda top: (top / name).chmod(bits)


CASES: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "nothing": (lambda top: None, None),
    "read by all": (_writable("middle/kept", 0o755), None),
    "a group may write": (_writable("middle/kept", 0o770), r"kept may be written to by others \(mode 770\)"),
    "all may write": (_writable("middle/kept", 0o707), r"kept may be written to by others"),
    "all may write, none may replace": (_writable("middle/kept", 0o1777), r"kept may be written to by others"),
    "a group may replace the folder": (_writable("middle", 0o775), r"middle may be written to by others"),
    "all may replace the folder above": (_writable(".", 0o777), r"may be written to by others"),
    "all may add beside it": (_writable("middle", 0o1777), None),
    "somebody else's": (lambda top: give_away(top / "middle/kept"), r"kept belongs to user 65534"),
    "in somebody else's": (lambda top: give_away(top / "middle"), r"middle belongs to user 65534, neither to"),
    "a file": (lambda top: (top / "middle/kept").rmdir() or (top / "middle/kept").touch(), "kept is no folder"),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("name", CASES)
def test_whose_folders_are_trusted(tmp_path: Path, name: str) -> None:
    path, (change, message) = folders(tmp_path, "top", "middle", "kept"), CASES[name]
    change(tmp_path / "top")
    if message is None:
        assert private_folder(path).path == path
    else:
        with pytest.raises(OSError, match=message):
            private_folder(path)


def test_a_missing_folder_is_not_made_where_others_may_write(tmp_path: Path) -> None:
    open_to_all = folders(tmp_path, "open")
    open_to_all.chmod(0o777)
    with pytest.raises(PermissionError, match="open may be written to"):
        private_folder(open_to_all / "a")
    assert not list(open_to_all.iterdir())
    open_to_all.chmod(0o1777)
    assert private_folder(open_to_all / "a").writable


def test_symbolic_links_are_followed_as_far_as_they_are_ours(tmp_path: Path) -> None:
    folders(tmp_path, "real", "inner")
    (tmp_path / "absolute").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to("../real/inner")
    for path in (tmp_path / "absolute" / "inner", tmp_path / "absolute" / "up", tmp_path / "real" / "up"):
        assert private_folder(path).path == tmp_path / "real" / "inner"
    assert private_folder(tmp_path / "absolute" / "new").path == tmp_path / "real" / "new"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(PermissionError, match="more than 40 symbolic links"):
        private_folder(tmp_path / "circle")
    give_away(tmp_path / "absolute")
    with pytest.raises(PermissionError, match="absolute belongs to user 65534"):
        private_folder(tmp_path / "absolute" / "inner")


def test_a_link_out_of_a_closed_folder_does_not_make_its_target_trusted(tmp_path: Path) -> None:
    target = folders(tmp_path, "open", "target")
    folders(tmp_path, "closed")
    (tmp_path / "closed" / "link").symlink_to(target)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError, match="open may be written to"):
        private_folder(tmp_path / "closed" / "link")


def test_a_path_that_depends_on_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PermissionError, match="expected an absolute path, found 'a'"):
        private_folder(Path("a"))
    with pytest.raises(OSError):
        private_folder(tmp_path / "missing" / ".." / "a")
    assert not list(tmp_path.iterdir())


def test_another_user_does_not_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a fork that gives up root's rights."""
    folder, me = private_folder(tmp_path), os.geteuid()
    folder.write("x", b"data")
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert folder.read("x", 100) is None
    with pytest.raises(PermissionError, match=f"belongs to user {me}, "):
        private_folder(tmp_path)


PLANTED: dict[str, Callable[[Path], None]] = {
    "a group may write": lambda path: path.chmod(0o620),
    "all may write": lambda path: path.chmod(0o602),
    "somebody else's": give_away,
    "two names": lambda path: os.link(path, path.with_name("other")),
    "a link": lambda path: path.rename(path.with_name("y")).with_name("x").symlink_to("y"),
    "a folder": lambda path: path.unlink() or path.mkdir(),  # type: ignore[func-returns-value]
    "a pipe": lambda path: path.unlink() or os.mkfifo(path),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("name", PLANTED)
def test_files_that_others_may_have_written_are_not_read(tmp_path: Path, name: str) -> None:
    folder, path = private_folder(tmp_path), tmp_path / "x"
    folder.write("x", b"data")
    assert folder.read("x", 100) == b"data"
    PLANTED[name](path)
    assert folder.read("x", 100) is None


def test_writing_replaces_a_link_and_not_what_it_names(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = private_folder(tmp_path / "kept")
    (folder.path / "x").symlink_to(precious)
    assert folder.write("x", b"data")
    assert precious.read_text() == "mine"
    assert folder.read("x", 100) == b"data"
    os.unlink(folder.path / "x")
    os.link(precious, folder.path / "x")
    assert folder.write("x", b"data") and precious.read_text() == "mine"


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y").touch()
    assert not folder.write("x", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert not folder.write("no/such/folder", b"data")


def test_many_write_at_once(tmp_path: Path) -> None:
    folder, data = private_folder(tmp_path), [bytes([i]) * 100_000 for i in range(8)]

    def write(i: int) -> None:
        for _ in range(20):
            assert folder.write("x", data[i])
            assert folder.read("x", 200_000) in data

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 1


def test_where_a_user_keeps_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert user_cache("x") == tmp_path / ".cache" / "naiad" / "x"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache("x") is None


def test_conversations_are_kept_where_nobody_else_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    kept = _history()
    kept.store_string("Hello!")
    folder = tmp_path / ".local" / "state" / "naiad"
    assert "+Hello!" in (folder / "history").read_text() and mode(folder) == 0o700
    folder.chmod(0o770)
    assert isinstance(_history(), InMemoryHistory)
