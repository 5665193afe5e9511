"""Files appear complete or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sere.errors import OutputError
from sere.files import append_json_line, atomic_path, check_writable, write_json


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    """An exception half-way, Ctrl-C too, keeps the old content and leaves no temporary file or folder."""
    target = tmp_path / "a.json"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    with pytest.raises(error), atomic_path(tmp_path / "new" / "a.json"):
        raise error
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_success_replaces_the_file(tmp_path: Path) -> None:
    """Missing folders are made."""
    target = tmp_path / "new" / "a.json"
    write_json(target, {"a": 1})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path: Path, umask: int) -> None:
    """Those that the process's umask leaves, as if the file had been opened directly."""
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_circle_of_links_is_named(tmp_path: Path) -> None:
    """With the system's words, and the links stay."""
    link = tmp_path / "a"
    link.symlink_to(link)
    with pytest.raises(OutputError, match=f"^{link}: cannot be written: {os.strerror(errno.ELOOP)}"):
        write_json(link, 1)
    assert link.is_symlink()


def test_json_lines_are_appended(tmp_path: Path) -> None:
    """Each record is one line."""
    target = tmp_path / "r.jsonl"
    append_json_line(target, {"a": 1})
    append_json_line(target, {"b": "ρ\n"})
    assert [json.loads(line) for line in target.read_text().splitlines()] == [{"a": 1}, {"b": "ρ\n"}]
    below = target / "below.jsonl"
    with pytest.raises(OutputError, match=f"{below}: cannot be written"):
        append_json_line(below, {})


def test_a_place_that_cannot_be_written_is_found_before_work(tmp_path: Path) -> None:
    """Checking leaves nothing behind and changes no file; a folder that cannot be made is an OSError."""
    target = tmp_path / "new" / "table.safetensors"
    check_writable(target)
    check_writable(target.parent / "deep" / "er" / "a.json")
    assert list(tmp_path.iterdir()) == []
    target.parent.mkdir()
    check_writable(target)
    assert list(target.parent.iterdir()) == []
    target.write_text("kept")
    check_writable(target)
    assert target.read_text() == "kept"
    with pytest.raises(OSError, match="/dev/null"):
        check_writable("/dev/null/table.safetensors")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "check": check_writable,
    "whole": lambda path: write_json(path, {}),
    "line": lambda path: append_json_line(path, {}),
}


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    ("make", "kind"),
    [(make_socket, "device, pipe or socket"), (os.mkdir, "directory")],
    ids=["socket", "folder"],
)
@pytest.mark.parametrize("name", ["taken", "link"])
def test_what_is_no_file_stays_what_it_is(
    tmp_path: Path, write: Callable[[Path], Any], make: Callable[[Path], None], kind: str, name: str
) -> None:
    """A socket (a device is another such) or a folder is refused, by its name or by a link to it."""
    target, link = tmp_path / "taken", tmp_path / "link"
    make(target)
    link.symlink_to(target)
    before = stat.S_IFMT(target.stat().st_mode)
    path = tmp_path / name
    with pytest.raises(OutputError) as refused:
        write(path)
    assert str(refused.value) == (
        f"{path}: expected a file path, but a {kind} exists there; choose another path"
    )
    assert stat.S_IFMT(target.stat().st_mode) == before
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "taken"]


def test_what_is_no_file_is_refused_before_the_work(tmp_path: Path) -> None:
    """The block does not begin."""
    with pytest.raises(OutputError), atomic_path(tmp_path):
        pytest.fail("begun")


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path: Path, there: bool) -> None:
    """The file that a link points to is replaced, or made with its folder; the link stays."""
    target, link = tmp_path / "store" / "a.json", tmp_path / "link.json"
    if there:
        write_json(target, "old")
    link.symlink_to(Path("store") / "a.json")
    check_writable(link)
    write_json(link, "new")
    assert link.is_symlink()
    assert json.loads(target.read_text()) == "new"
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_errors_name_the_place_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the temporary file's; an error that has another file's name, or no system's words, keeps them."""
    monkeypatch.chdir(tmp_path)
    long = "x" * 250
    with pytest.raises(OutputError) as refused:
        check_writable(long)
    assert str(refused.value) == f"{long}: cannot be written: {os.strerror(errno.ENAMETOOLONG)}"

    def fail(error: OSError) -> None:
        with atomic_path("a.json"):
            raise error

    with pytest.raises(OutputError, match=r"^a\.json: cannot be written: No space left on device$"):
        fail(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(FileNotFoundError, match=r"No such file: 'other\.txt'"):
        fail(FileNotFoundError(errno.ENOENT, "No such file", "other.txt"))
    with pytest.raises(OSError, match=r"^no picture$"):
        fail(OSError("no picture"))
    assert list(tmp_path.iterdir()) == []
