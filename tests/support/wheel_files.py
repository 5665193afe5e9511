"""Compare the files of a built wheel with those of the source: ``python wheel_files.py WHEEL SRC``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile


def differences(wheel: Path, source: Path) -> list[str]:
    """Return a line for each file that is in one of the two alone, or is another one there.

    Args:
        wheel: The built wheel.
        source: The folder that holds the package's folder.
    """
    with ZipFile(wheel) as archive:
        built = {
            name: archive.read(name)
            for name in archive.namelist()
            if ".dist-info/" not in name and not name.endswith("/")
        }
    here = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in path.parent.name
    }
    return [
        *(f"missing in the wheel: {name}" for name in sorted(here.keys() - built.keys())),
        *(f"only in the wheel: {name}" for name in sorted(built.keys() - here.keys())),
        *(f"differs: {name}" for name in sorted(here.keys() & built.keys()) if here[name] != built[name]),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what differs, and return 1 if anything does."""
    wheel, source = map(Path, sys.argv[1:] if argv is None else argv)
    found = differences(wheel, source)
    print("\n".join(found) or f"{wheel.name} holds the files of {source.name}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
