"""Error texts name what came and what was expected, but never a long list of it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sere
from sere.errors import did_you_mean, how_to_install, name_some, why_missing

SOURCE = Path(sere.__file__).parent


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "0"),
        (10, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (11, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1 more"),
    ],
)
def test_at_most_ten_are_named(count: int, text: str) -> None:
    """All of ten, and of more the first ten and how many are left."""
    assert name_some(range(count)) == text


def test_a_separator_is_between_two_names() -> None:
    """Sentences are joined by another sign than names."""
    assert name_some("abc", 2, separator="; ") == "a; b and 1 more"


def test_of_many_valid_names_ten_are_named() -> None:
    """The name that was probably meant is said whatever its place in the list."""
    valid = [f"name{i:02}" for i in range(30)]
    text = did_you_mean("nam29", valid)
    assert text.startswith("; did you mean 'name29'? (valid: name00, ")
    assert text.endswith("name09 and 20 more)")


def test_capital_letters_hide_no_name() -> None:
    """``SERE`` is close to ``sere``, and the other way round."""
    assert did_you_mean("SERE", ["off", "sere"]).startswith("; did you mean 'sere'?")
    assert did_you_mean("model", ["MODEL", "OTHER"]).startswith("; did you mean 'MODEL'?")


def test_the_install_line_works_from_a_clone() -> None:
    """There is no sere on a package index: ``pip install sere`` would bring something else, or nothing."""
    assert how_to_install("plot") == "in a clone of sere's repository, run: pip install '.[plot]'"


def raises() -> Iterator[tuple[str, ast.Raise]]:
    """Every ``raise`` of the source, with its file and line."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


def unbounded(node: ast.Raise) -> Iterator[str]:
    """The parts of an error text that may name any number of things.

    Constants of the source and shapes of tensors are short, and ``name_some`` cuts what it is given.
    """
    calls = [part for part in ast.walk(node) if isinstance(part, ast.Call)]
    cut = {
        id(inside)
        for call in calls
        if ast.unparse(call.func) in ("name_some", "span", "' '.join")
        for inside in ast.walk(call)
    }
    for call in calls:
        text = ast.unparse(call)
        joined = isinstance(call.func, ast.Attribute) and call.func.attr == "join"
        listed = ast.unparse(call.func) in ("list", "sorted", "tuple", "dict", "set")
        short = re.search(r"\b_?[A-Z][A-Z_]+\b|shape\)|stride\(\)\)|list\(expected\)", text)
        if (joined or listed) and id(call) not in cut and not short:
            yield text


def test_errors_name_at_most_ten_of_anything() -> None:
    """No error text joins or prints a collection of unknown length; ``name_some`` does it."""
    found = [f"{where} {text}" for where, node in raises() for text in unbounded(node)]
    assert found == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", None),
        (
            "raise ImportError('it needs\\n  another NumPy')",
            "cannot be imported (ImportError: it needs another ",
        ),
        ("raise OSError('no library')", "cannot be imported (OSError: no library); pip install it"),
        (
            "import missing_of_optional",
            "cannot be imported (ModuleNotFoundError: No module named 'missing_of",
        ),
    ],
)
def test_why_a_package_is_missing(
    content: str, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed is not enough: a package that cannot be imported says why, and how to install it."""
    (tmp_path / "optional_one.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    why_missing.cache_clear()
    monkeypatch.delitem(sys.modules, "optional_one", raising=False)
    found = why_missing("optional_one", "pip install it")
    why_missing.cache_clear()
    sys.modules.pop("optional_one", None)
    assert found is None if text is None else str(found).startswith(f"the package optional_one {text}")


@pytest.mark.parametrize("name", ["optional_two", "optional_two.part"])
def test_a_package_that_is_not_installed(name: str) -> None:
    """Of one with dots, the package that it is part of may be missing."""
    assert why_missing(name, "pip install it") == f"the package {name} is not installed; pip install it"
