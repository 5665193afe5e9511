"""Copy the pictures that tests made of pages to ``docs/screenshots``, small enough to be kept.

Run ``make screenshots``, which runs these tests first. A picture is cut below and gets 256 colors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 150_000
# What a document shows of each: at most so many pixels from above.
PICTURES = {
    "live-page-light": 1240,
    "live-page-dark": 1240,
    "live-page-phone": 1240,
    "report-light": 800,
    "report-phone": 844,
    "prometheus": 884,
}


def copy(source: Path, target: Path, height: int) -> int:
    """Write a smaller copy of a picture.

    Args:
        source: A picture that a test made.
        target: Where the copy goes, as PNG.
        height: Of the copy at most, in pixels; what is below is left out.

    Returns:
        Its bytes.
    """
    with Image.open(source) as whole:
        part = whole.convert("RGB").crop((0, 0, whole.width, min(height, whole.height)))
    part.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        target, optimize=True
    )
    return target.stat().st_size


def main() -> int:
    """Copy all pictures; return 1 if one is missing or too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--made", type=Path, default=ROOT / "out" / "screenshots", help="what tests made")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "screenshots", help="where copies go")
    given = parser.parse_args()
    given.into.mkdir(parents=True, exist_ok=True)
    missing = [name for name in PICTURES if not (given.made / f"{name}.png").exists()]
    if missing:
        print(
            f"expected pictures in {given.made}, got none of {', '.join(missing)}; run make screenshots "
            "where chromium and prometheus are installed",
            file=sys.stderr,
        )
        return 1
    sizes = {
        name: copy(given.made / f"{name}.png", given.into / f"{name}.png", height)
        for name, height in PICTURES.items()
    }
    for name, size in sizes.items():
        print(f"{name}.png: {size / 1000:.0f} KB")
    large = [name for name, size in sizes.items() if size > MOST_BYTES]
    if large:
        print(f"expected at most {MOST_BYTES / 1000:.0f} KB, got more: {', '.join(large)}", file=sys.stderr)
    return int(bool(large))


if __name__ == "__main__":
    sys.exit(main())
