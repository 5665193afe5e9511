"""The picture of docs/architecture.md is what the source does: rooms, and imports that point one way."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

from tests.support.source import ROOT, SOURCE, circle, import_graph, modules

pytestmark = pytest.mark.checkout

DOCUMENT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# The ways in, which name everything.
ENTRANCES = {"sere", "sere.__main__"}
ROOMS = sorted({name.split(".")[1] for name in modules().keys() - ENTRANCES})
GRAPH = import_graph()
INSIDE = {module: imported - ENTRANCES for module, imported in GRAPH.items() if module not in ENTRANCES}


def room(module: str) -> str:
    """The folder or single module, right below the package, that a module is in."""
    return module.split(".")[1]


def floors() -> dict[str, int]:
    """Each room's floor in the picture of imports, from 0."""
    (picture,) = re.findall(r"^Imports point one way:\n\n```\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return {
        name: floor
        for floor, names in enumerate(picture.split("→"))
        for name in re.findall(r"[a-z_]+", names)
    }


def test_every_room_is_in_the_picture_and_in_the_table() -> None:
    """A module or folder that is added gets its floor and a line that says what belongs there."""
    assert sorted(floors()) == ROOMS
    cells = [line.split("|")[1] for line in DOCUMENT.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*)(\.py|/)`", " ".join(cells))
    assert sorted({name.split("/")[0] for name, _ in named}) == ROOMS
    assert not [f"{name}{ending}" for name, ending in named if not (SOURCE / f"{name}{ending}").exists()]


@pytest.mark.parametrize("name", ROOMS)
def test_imports_point_one_way(name: str) -> None:
    """No module imports a room of a higher floor."""
    floor = floors()
    wrong = [
        f"{module} imports {imported}"
        for module in INSIDE
        for imported in INSIDE[module]
        if room(module) == name and floor[room(imported)] > floor[name]
    ]
    assert not wrong


def test_only_the_command_line_imports_an_entrance() -> None:
    """What the package gives to others, others inside take from where it is written."""
    assert {room(module) for module in INSIDE if GRAPH[module] & ENTRANCES} <= {"cli"}


def test_no_circle_of_modules() -> None:
    """Not even one that an import inside a function or for type checkers alone would hide."""
    assert circle(GRAPH) == []


def test_no_circle_of_rooms() -> None:
    """Of two rooms on one floor, too, at most one knows the other."""
    rooms = {
        name: {room(found) for module in INSIDE if room(module) == name for found in INSIDE[module]} - {name}
        for name in ROOMS
    }
    assert circle(rooms) == []


def test_the_integrations_do_not_know_each_other() -> None:
    """Either engine's is there without the other's packages."""
    engines = [f"sere.integrations.{engine}" for engine in ("transformers", "vllm")]
    for mine, other in itertools.permutations(engines):
        assert not [
            module
            for module, imported in INSIDE.items()
            if module.startswith(mine) and any(name.startswith(other) for name in imported)
        ]


def test_a_timing_of_vllm_does_not_know_the_other_engine() -> None:
    """Nor does what it shares with a timing of Transformers."""
    left = {module for module in INSIDE if module.startswith("sere.bench.vllm.")}
    found: set[str] = set()
    while left:
        found |= left
        left = {name for module in left for name in INSIDE[module] if name.startswith("sere.bench.")} - found
    assert len(found) >= 15
    assert not [
        f"{module} imports {name}"
        for module in sorted(found)
        for name in INSIDE[module]
        if name.startswith("sere.integrations.transformers")
    ]


@pytest.mark.parametrize(
    ("called", "where"),
    [("print", "sere.cli"), ("sys.exit", "sere.__main__"), ("from_pretrained", "sere.checkpoints")],
)
def test_what_is_done_in_one_room_only(called: str, where: str) -> None:
    """The command line prints and exits; models of users are loaded in one place."""
    callers = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and f".{ast.unparse(node.func)}".endswith(f".{called}")
    }
    assert any(name.startswith(where) for name in callers)
    assert [name for name in callers - ENTRANCES if not name.startswith(where)] == []


def test_the_hops_of_the_path_are_there() -> None:
    """Each method that the path of ``topk_ids`` goes through is one of the source, and so is each file."""
    path = DOCUMENT.partition("## The path of `topk_ids`")[2].partition("\n## ")[0].partition("\n### ")[0]
    methods = {
        f"{outer.name}.{inner.name}"
        for file in modules().values()
        for outer in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(outer, ast.ClassDef)
        for inner in outer.body
        if isinstance(inner, ast.FunctionDef)
    }
    named = re.findall(r"`([A-Z]\w+\.\w+)[`(]", path)
    assert len(named) >= 4
    assert [name for name in named if name not in methods] == []
    files = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", path)
    roots = (SOURCE, SOURCE / "integrations" / "vllm", SOURCE / "reroute")
    assert len(files) >= 5
    assert [file for file in files if not any((root / file).exists() for root in roots)] == []


@pytest.mark.parametrize(
    "hidden",
    [
        "def late():\n    from package import first\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import package.first\n",
        "from .first import One\n",
    ],
    ids=["in a function", "for type checkers", "relative"],
)
def test_a_hidden_circle_is_found(tmp_path: Path, hidden: str) -> None:
    """Wherever in the module its import is written, and however."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from package.first import One\n")
    (package / "first.py").write_text("from package.second import Two\nOne = Two\n")
    (package / "second.py").write_text("Two = 2\n")
    assert circle(import_graph(package)) == []
    (package / "second.py").write_text(hidden)
    assert {*circle(import_graph(package))} == {"package.first", "package.second"}
