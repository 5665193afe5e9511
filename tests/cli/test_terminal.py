"""What commands print on a terminal: tables and paragraphs as wide as it is, nothing lost, no colors."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from sere.cli.calibrate import _render
from sere.cli.output import case_table, show, table
from sere.cli.terminal import columns, paragraph, writes_over
from tests.support.terminal import on_terminal

WIDTHS = [60, 80, 120]
HEADS = ["B", "experts", "rerouted %", "right %", "95 %", "vs baseline", "95 %", "tokens"]
ROW = ["16", "40.0 > 24.0", "37", "89.2", "84.1 to 93.0", "-0.8", "-3.1 to +1.5", "12.3"]
CASES = [(name, ROW) for name in ("off", "sere", "topk:select_top_k=4")]
LONG = (
    "the compiled kernel runs here, with avx512_bf16, and says in how many words one likes what it found " * 2
)


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def shown(monkeypatch: pytest.MonkeyPatch, width: int, make: Any) -> list[str]:
    """The lines of a text that is made and shown on a terminal of a width."""
    with on_terminal(monkeypatch, "stdout", width) as screen:
        show(make())
    assert not screen.has_colors
    assert max(map(len, screen.lines)) <= width
    return screen.lines


def test_a_table_of_cases(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Where it is too wide, columns follow below, each part with the names and with B."""
    lines = shown(monkeypatch, width, lambda: case_table(CASES, HEADS))
    found = [line.split() for line in lines]
    parts = 1 if width == 120 else 2
    assert sum("B" in words for words in found) == parts
    assert sum("off" in words for words in found) == parts
    text = "\n".join(lines)
    assert all(text.count(cell) >= 3 for cell in ROW)
    assert found[0][:2] == (["setting", "B"] if width == 120 else ["B", "experts"])


def test_a_table_of_numbers(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Each part begins with the columns that say which row it is."""
    rows = [["safe", *ROW], ["", *ROW]]
    lines = shown(monkeypatch, width, lambda: table(rows, ["tier", *HEADS], keys=2))
    heads = [line.split()[:2] for line in lines if "B" in line.split()]
    assert heads == [["tier", "B"]] * {60: 3, 80: 2, 120: 1}[width]
    assert sum(line.split()[:2] == ["safe", "16"] for line in lines) == len(heads)
    assert all(sum(line.count(cell) for line in lines) >= 2 for cell in ROW)


def test_a_table_of_texts(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """The texts are wrapped in their column; the others stay beside them."""
    lines = shown(
        monkeypatch,
        width,
        lambda: table([["cpu", "ok", LONG], ["cuda", "missing", "short"]], ["", "state", "found"]),
    )
    assert lines[0].split() == ["state", "found"]
    assert len(lines) > 4
    assert lines[-1].split() == ["cuda", "missing", "short"]
    start = lines[0].index("found")
    assert " ".join(line[start:].strip() for line in lines[2:-1]) == LONG.strip()


def test_what_calibration_reports(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Its sentences break between words."""
    made = {
        "table": "a.sere",
        "metric": "projection",
        "layers": 6,
        "num_experts": 96,
        "top_k": 8,
        "calibration_tokens": 51200,
        "unknown_experts": 0,
        "fingerprint": "0" * 64,
        "report": [LONG, "end"],
    }
    lines = shown(monkeypatch, width, lambda: _render({"tables": [made]}))
    said = lines[lines.index("projection:") + 1 :]
    assert said[-1] == "end"
    assert " ".join(said[:-1]) == LONG.strip()


def test_a_paragraph(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """It is filled to the width, and to no more than can be read well."""
    lines = shown(monkeypatch, width, lambda: paragraph(LONG))
    assert " ".join(lines) == LONG.strip()
    assert len(lines[0]) > min(width, 110) - 20


def test_the_environment_may_say_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """``COLUMNS`` comes before what the terminal says of itself."""
    with on_terminal(monkeypatch, "stdout", 120):
        assert columns() == 120
        monkeypatch.setenv("COLUMNS", "60")
        assert columns() == 60


def test_a_pipe_has_no_width(capsys: pytest.CaptureFixture[str]) -> None:
    """Tables are as wide as they are, one part each, and paragraphs keep their lines."""
    assert columns() is None
    assert table([ROW * 2], HEADS * 2).count("\n") == 2
    assert case_table([("sere", ROW * 2)], HEADS * 2).count("\n") == 3
    assert paragraph("one\ntwo") == "one\ntwo"
    assert paragraph("one\ntwo", elsewhere=80) == "one two"


@pytest.mark.parametrize(("term", "over"), [("xterm-256color", True), ("dumb", False)])
def test_a_dumb_terminal_only_adds_lines(monkeypatch: pytest.MonkeyPatch, term: str, over: bool) -> None:
    """Nothing on it can be written over; a table still has its width."""
    with on_terminal(monkeypatch, "stdout", 60, term=term):
        assert writes_over(sys.stdout) is over
        assert columns() == 60
