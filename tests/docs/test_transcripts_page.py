"""The page of transcripts: each command of its script with what a terminal shows, of one commit, by names."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.checkout

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transcripts.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def transcripts(build: Any) -> Any:
    return build("transcripts")


def plain(line: str) -> str:
    """A command without the line breaks that a shell does not see."""
    return " ".join(line.replace("\\\n", " ").split())


@pytest.mark.parametrize("model", ["bundled", "olmoe"])
def test_the_page_has_every_command_with_its_output(transcripts: Any, model: str) -> None:
    """In their order, below the model's heading: `make transcripts` was run after the last change."""
    title = transcripts.MODELS[model]
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = [
        (plain(line), bool(output.strip()))
        for (language, line), (other, output) in pairwise(FENCED.findall(section))
        if (language, other) == ("", "text")
    ]
    steps = transcripts.steps(model)
    assert found == [(plain(step.line), True) for step in steps]
    titles = re.findall(r"^### (.*)$", FENCED.sub("", section), re.MULTILINE)
    assert titles == [step.title for step in steps]


def test_the_page_is_from_one_commit() -> None:
    """What prints the commit, and what the page says it is from, are the same; nothing had been changed."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"\bcommit\s+(?:ok\s+)?([0-9a-f]{12})\b", text)
    assert len(found) >= 3
    assert len(set(found)) == 1
    assert not re.search(r"tree changed|with changes", text)


def test_no_path_of_a_machine_is_on_the_page() -> None:
    """Folders of the machine that ran the commands have names, and so has the stand-in of the hub."""
    text = PAGE.read_text(encoding="utf-8")
    paths = r"(?<![\w.])/(?:tmp|home|root|work|usr|opt|var|mnt)\b\S*|127\.0\.0\.1(?!:[89])\S*"
    assert re.findall(paths, text) == []
    assert "FOLDER/bundled.sere" in re.sub(r"\s", "", text)


def test_what_is_written_is_text(transcripts: Any) -> None:
    """No line is wider than the terminal, and nothing that controls one is left."""
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    outputs = [output for language, output in FENCED.findall(text) if language == "text"]
    assert max(len(line) for output in outputs for line in output.splitlines()) <= transcripts.COLUMNS
