"""What the source says of documents leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source import ROOT

pytestmark = pytest.mark.checkout

METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
SECTIONS = {
    int(number): text
    for number, text in re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", METHOD, re.MULTILINE | re.DOTALL)
}
FOLDERS = ("src", "tests", "benchmarks", "recipe", "examples", "docs")
ENDINGS = {".py", ".cu", ".cuh", ".hpp", ".cpp", ".md", ".toml"}
CITATION = re.compile(
    r"docs/method\.md(?: sections? (\d+)(?:, steps? (\d+)(?: (?:to|and) (\d+))?)?(?:, metric ``(\w+)``)?)?"
)
# Specifications that came before docs/method.md.
GONE = re.compile(r"\b(METHOD|ENGINES|HOUSE)\.md")


def texts() -> Iterator[tuple[str, str]]:
    """Files by name, with the line breaks and comment signs of a sentence that is wrapped taken out."""
    paths = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    for path in sorted(paths):
        if path.suffix in ENDINGS and path != Path(__file__).resolve():
            text = re.sub(r"\s*\n\s*(//|#)?\s*", " ", path.read_text(encoding="utf-8"))
            yield path.relative_to(ROOT).as_posix(), text


def broken(text: str) -> list[str]:
    """The citations of docs/method.md in a text that name no section, step or metric of it."""
    found = []
    for citation in CITATION.finditer(text):
        number, *steps, metric = citation.groups()
        section = SECTIONS.get(int(number), "") if number else ""
        resolves = bool(section) and all(f"\n{step}. " in section for step in steps if step)
        if not resolves or (metric and f"| `{metric}`" not in section):
            found.append(citation[0])
    return found


def test_the_method_has_numbered_sections() -> None:
    """From 1 on, none left out."""
    assert list(SECTIONS) == list(range(1, len(SECTIONS) + 1))
    assert len(SECTIONS) >= 6


def test_every_citation_of_the_method_leads_to_a_section() -> None:
    """By its number, in the source; and to a step or metric of it, where one is named."""
    wrong = {name: broken(text) for name, text in texts() if name.startswith("src/")}
    assert {name: found for name, found in wrong.items() if found} == {}
    assert sum("docs/method.md section" in text for _, text in texts()) >= 30


def test_nothing_cites_what_is_gone() -> None:
    """There is one specification, docs/method.md."""
    assert [name for name, text in texts() if GONE.search(text)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("docs/method.md section 4, steps 2 to 4.", []),
        ("docs/method.md section 3, metric ``cka``", []),
        ("docs/method.md section 40", ["docs/method.md section 40"]),
        ("docs/method.md section 4, step 19", ["docs/method.md section 4, step 19"]),
        ("docs/method.md section 3, metric ``ckb``", ["docs/method.md section 3, metric ``ckb``"]),
        ("see docs/method.md for it", ["docs/method.md"]),
    ],
    ids=["steps", "metric", "no such section", "no such step", "no such metric", "no section"],
)  # fmt: skip
def test_a_citation_that_leads_nowhere_is_found(text: str, found: list[str]) -> None:
    """Each part of a citation counts."""
    assert broken(text) == found
