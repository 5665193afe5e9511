"""How a built wheel is compared with the source."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.wheel_files import differences, main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A package with code, a file that is no code, and what no wheel holds."""
    folder = tmp_path / "src" / "sere"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "page.css").write_text("a {}", encoding="utf-8")
    (folder / "__pycache__" / "x.pyc").write_bytes(b"")
    (tmp_path / "src" / "sere.egg-info").mkdir()
    (tmp_path / "src" / "sere.egg-info" / "PKG-INFO").write_text("", encoding="utf-8")
    return folder.parent


def wheel_of(tmp_path: Path, **files: str) -> Path:
    """Write a wheel with these files of ``sere`` (``_dot_`` stands for the dot) and its own description."""
    wheel = tmp_path / "sere-1-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"sere/{name.replace('_dot_', '.')}", text)
        archive.writestr("sere-1.dist-info/RECORD", "")
    return wheel


def test_a_complete_wheel(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same files are no difference, whatever Python and pip left beside them."""
    wheel = wheel_of(tmp_path, __init___dot_py="", page_dot_css="a {}")
    assert main([str(wheel), str(source)]) == 0
    assert capsys.readouterr().out == "sere-1-py3-none-any.whl holds the files of src\n"


def test_what_differs_is_named(tmp_path: Path, source: Path) -> None:
    """A file that was left out, one too many, and one with other bytes."""
    wheel = wheel_of(tmp_path, page_dot_css="b {}", left_dot_py="")
    assert differences(wheel, source) == [
        "missing in the wheel: sere/__init__.py",
        "only in the wheel: sere/left.py",
        "differs: sere/page.css",
    ]
    assert main([str(wheel), str(source)]) == 1
