"""Pictures of pages: each is in a document, and small; what makes them says what is missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.checkout

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_each_picture_is_shown_and_small(build: Any) -> None:
    """With words for those who do not see it; all of them together stay below a megabyte."""
    screenshots = build("screenshots")
    texts = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    shown = dict(re.findall(r"!\[([^]]{20,})\]\(screenshots/([\w-]+)\.png\)", texts))
    assert sorted(shown.values()) == sorted(screenshots.PICTURES)
    sizes = {path.stem: path.stat().st_size for path in (DOCS / "screenshots").iterdir()}
    assert sizes.keys() == screenshots.PICTURES.keys()
    assert max(sizes.values()) <= screenshots.MOST_BYTES
    assert sum(sizes.values()) < 1_000_000


def test_copies_are_cut(build: Any, tmp_path: Path) -> None:
    """What is below is left out, what is shorter stays."""
    from PIL import Image

    screenshots = build("screenshots")
    Image.effect_noise((40, 60), 90).save(tmp_path / "whole.png")
    for height, kept in ((50, 50), (80, 60)):
        size = screenshots.copy(tmp_path / "whole.png", tmp_path / "copy.png", height)
        assert size == (tmp_path / "copy.png").stat().st_size
        with Image.open(tmp_path / "copy.png") as copy:
            assert copy.size == (40, kept)


def test_a_missing_or_large_picture_is_named(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what makes it, and how large it may be."""
    from PIL import Image

    screenshots = build("screenshots")
    made, into = tmp_path / "made", tmp_path / "into"
    made.mkdir()
    monkeypatch.setattr("sys.argv", ["screenshots.py", "--made", str(made), "--into", str(into)])
    assert screenshots.main() == 1
    assert "got none of live-page-light," in (said := capsys.readouterr().err)
    assert "run make screenshots" in said
    for name in screenshots.PICTURES:
        Image.effect_noise((500, 500), 90).save(made / f"{name}.png")
    assert screenshots.main() == 1
    assert "expected at most 150 KB, got more: live-page-light," in capsys.readouterr().err
