"""Files appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sere.files import append_json_line, atomic_path, check_writable, write_json


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    """An exception half-way, Ctrl-C too, keeps the old content and leaves no temporary file."""
    target = tmp_path / "a.json"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_success_replaces_the_file(tmp_path: Path) -> None:
    """The finished file has the usual permissions, and missing folders are made."""
    target = tmp_path / "new" / "a.json"
    write_json(target, {"a": 1})
    assert json.loads(target.read_text()) == {"a": 1}
    assert target.stat().st_mode & 0o444 == 0o444
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_json_lines_are_appended(tmp_path: Path) -> None:
    """Each record is one line."""
    target = tmp_path / "r.jsonl"
    append_json_line(target, {"a": 1})
    append_json_line(target, {"b": "ρ\n"})
    assert [json.loads(line) for line in target.read_text().splitlines()] == [{"a": 1}, {"b": "ρ\n"}]


def test_a_place_that_cannot_be_written_is_found_before_work(tmp_path: Path) -> None:
    """Checking leaves nothing behind and changes no file; a folder that cannot be made is an OSError."""
    target = tmp_path / "new" / "table.safetensors"
    check_writable(target)
    assert list(target.parent.iterdir()) == []
    target.write_text("kept")
    check_writable(target)
    assert target.read_text() == "kept"
    with pytest.raises(OSError, match="/dev/null"):
        check_writable("/dev/null/table.safetensors")
