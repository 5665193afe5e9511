"""Pictures of pages: each is in a document, and small; what makes them says what is missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import SCREENSHOTS

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


def test_copies_end_between_rows(build: Any, tmp_path: Path) -> None:
    """The last rows of pixels are blank: neither a text nor a chart is cut; a gap inside a text is no end."""
    from PIL import Image

    screenshots = build("screenshots")
    whole = Image.effect_noise((40, 60), 90)
    for top, bottom in ((28, 41), (44, 47)):
        whole.paste(255, (0, top, 40, bottom))
    whole.save(tmp_path / "whole.png")
    screenshots.copy(tmp_path / "whole.png", tmp_path / "copy.png", 50)
    with Image.open(tmp_path / "copy.png") as copy:
        assert copy.size == (40, 41)


def test_what_an_earlier_run_made_is_deleted(build: Any) -> None:
    """Where a test is skipped, its old picture does not become a new one."""
    makefile = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^screenshots:.*\n((?:\t.+\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    assert recipe[1].splitlines()[0] == f"\trm -rf {SCREENSHOTS.relative_to(DOCS.parent)}"
    assert build("screenshots").MADE == SCREENSHOTS


def test_a_missing_or_large_picture_is_named(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what makes it, and how large it may be; those that are there are not."""
    from PIL import Image

    screenshots = build("screenshots")
    made, into = tmp_path / "made", tmp_path / "into"
    made.mkdir()
    Image.effect_noise((50, 50), 90).save(made / "live-page-light.png")
    monkeypatch.setattr("sys.argv", ["screenshots.py", "--made", str(made), "--into", str(into)])
    assert screenshots.main() == 1
    assert "missing: live-page-dark, live-page-phone," in (said := capsys.readouterr().err)
    assert "run make screenshots" in said
    assert list(into.iterdir()) == []
    for name in screenshots.PICTURES:
        Image.effect_noise((500, 500), 90).save(made / f"{name}.png")
    assert screenshots.main() == 1
    assert "expected at most 150 KB, got more: live-page-light," in capsys.readouterr().err
