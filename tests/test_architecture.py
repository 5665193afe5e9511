"""The picture of docs/architecture.md is what the source does: rooms, and imports that point one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sere

pytestmark = pytest.mark.checkout

SOURCE = Path(sere.__file__).parent
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
ROOMS = sorted({path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")})
# The ways in, which name everything and which nothing imports.
ENTRANCES = ("__init__", "__main__")


def floors() -> dict[str, int]:
    """Each room's floor in the picture of imports, from 0."""
    (picture,) = re.findall(r"^Imports point one way:\n\n```\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    return {
        name: floor for floor, names in enumerate(picture.split("→")) for name in re.findall(r"[a-z]+", names)
    }


def imported(path: Path) -> Iterator[str]:
    """The rooms that a module imports at any place, but for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inside)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inside in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module] if node.module != "sere" else [f"sere.{name.name}" for name in node.names]
        else:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("sere."))


def test_every_room_is_in_the_picture_and_in_the_table() -> None:
    """A module or folder that is added gets its floor and a line that says what lives there."""
    assert sorted(floors()) == [room for room in ROOMS if room not in ENTRANCES]
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    named = re.findall(r"`([a-z]+)(?:\.py|/)", " ".join(row.split("|")[1] for row in rows))
    assert sorted(set(named)) == [room for room in ROOMS if room not in ENTRANCES]


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in ENTRANCES])
def test_imports_point_one_way(room: str) -> None:
    """No module imports a room of a higher floor."""
    floor = floors()
    paths = [SOURCE / f"{room}.py"] if (SOURCE / f"{room}.py").is_file() else (SOURCE / room).rglob("*.py")
    wrong = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in paths
        for name in imported(path)
        if floor[name] > floor[room]
    ]
    assert not wrong
