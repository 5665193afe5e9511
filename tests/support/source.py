"""Reading the source tree: which modules there are, and what they import."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import sere

SOURCE = Path(sere.__file__).parent
ROOT = Path(__file__).resolve().parents[2]


def modules(folder: Path = SOURCE) -> dict[str, Path]:
    """The modules of a package, by their full names."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports, anywhere in it: in functions and for type checkers alone, too.

    Of ``from a import b`` that is ``a.b`` if it is a module, and ``a`` otherwise.
    """
    package = name.split(".") if known[name].name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in known else origin


def import_graph(folder: Path = SOURCE) -> dict[str, set[str]]:
    """For each module of a package, the modules of the package that it imports."""
    known = modules(folder)
    return {name: {found for found in imports(name, known) if found in known} - {name} for name in known}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph, if it has one."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []
