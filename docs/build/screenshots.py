"""Copy the pictures that tests made of pages to ``docs/screenshots``, small enough to be kept.

Run ``make screenshots``, which empties the folder of pictures and runs these tests first. What is cut below
ends between two rows of text. Each picture gets 256 colors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "out" / "screenshots"
MOST_BYTES = 150_000
# What a document shows of each: at most so many pixels from above; None for all of it.
PICTURES = {
    "live-page-light": None,
    "live-page-dark": None,
    "live-page-phone": 1234,
    "live-page-phone-dark": 1234,
    "report-light": 606,
    "report-phone": 844,
    "report-frontier": None,
    "report-plots": None,
    "prometheus": None,
}
# Where nothing is drawn, rows of pixels have few colors: the page's, a card's, and that of its edge.
_MOST_COLORS = 3
# Of such rows, so many are left below what is shown.
_BLANK_ROWS = 6


def copy(source: Path, target: Path, most: int | None) -> int:
    """Write a smaller copy of a picture.

    Args:
        source: A picture that a test made.
        target: Where the copy goes, as PNG.
        most: Its height at most, in pixels; what is below is left out. None for all of it.

    Returns:
        Its bytes.
    """
    with Image.open(source) as opened:
        whole = opened.convert("RGB")
    height = whole.height if most is None or whole.height < most else end(whole, most)
    part = whole.crop((0, 0, whole.width, height))
    part.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        target, optimize=True
    )
    return target.stat().st_size


def end(whole: Image.Image, most: int) -> int:
    """Return where a picture can be cut without cutting a text, a chart or a control.

    Args:
        whole: In RGB, at least as high as ``most``.
        most: Of its pixels from above, at most so many are kept.

    Returns:
        The largest height whose last rows of pixels are blank; ``most`` if there is none in its lower half.
    """
    blank = 0
    for row in range(most - 1, most // 2, -1):
        few = whole.crop((0, row, whole.width, row + 1)).getcolors(_MOST_COLORS) is not None
        blank = blank + 1 if few else 0
        if blank == _BLANK_ROWS:
            return row + _BLANK_ROWS
    return most


def main() -> int:
    """Copy all pictures; return 1 if one is missing or too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--made", type=Path, default=MADE, help="what tests made")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "screenshots", help="where copies go")
    given = parser.parse_args()
    given.into.mkdir(parents=True, exist_ok=True)
    missing = [name for name in PICTURES if not (given.made / f"{name}.png").exists()]
    if missing:
        print(
            f"expected {len(PICTURES)} pictures in {given.made}; missing: {', '.join(missing)}. Nothing was "
            "copied: run make screenshots where chromium and prometheus are installed",
            file=sys.stderr,
        )
        return 1
    sizes = {
        name: copy(given.made / f"{name}.png", given.into / f"{name}.png", most)
        for name, most in PICTURES.items()
    }
    for name, size in sizes.items():
        print(f"{name}.png: {size / 1000:.0f} KB")
    large = [name for name, size in sizes.items() if size > MOST_BYTES]
    if large:
        print(f"expected at most {MOST_BYTES / 1000:.0f} KB, got more: {', '.join(large)}", file=sys.stderr)
    return int(bool(large))


if __name__ == "__main__":
    sys.exit(main())
