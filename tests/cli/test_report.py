"""``sere report`` and ``--report``: what is written, printed and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import refused, run_json, run_text
from tests.support.records import PLAN, evaluation
from tests.support.tables import saved

pytest.importorskip("plotly", reason="needs plotly, the extra report")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(evaluation()))
    return path


def test_a_page_of_records_and_a_table(
    capsys: pytest.CaptureFixture[str], record: Path, tmp_path: Path
) -> None:
    """Standard output says what is in the page, standard error what cannot be compared."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps(evaluation(plan=PLAN | {"questions_digest": "other"})))
    page = tmp_path / "page.html"
    out, err = run_text(capsys, "report", record, other, saved(tmp_path), "--out", page)
    assert out == f"wrote {page}: tiny (2 sere-eval, 1 table)\n"
    assert "warning: tiny: 2 measurements of right answers cannot be compared" in err
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert run_json(capsys, "report", record, "--out", page)["models"] == ["tiny"]


def test_other_files_are_kept(capsys: pytest.CaptureFixture[str], record: Path) -> None:
    """A record that is read is not overwritten, nor is any file that is no page."""
    assert "is read by the same command" in refused(capsys, "report", record, "--out", record)
    notes = record.with_name("notes.txt")
    notes.write_text("mine")
    assert "expected an HTML page or no file" in refused(capsys, "report", record, "--out", notes)


def test_a_measurement_writes_its_page(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, similarities: Path, tmp_path: Path
) -> None:
    """``sere eval`` and ``sere bench`` with ``--report``; the table that was used is in it."""
    prompts, page = tmp_path / "prompts.txt", tmp_path / "page.html"
    prompts.write_text("add 1+2\nthe mill stood\n")
    argv = ("--table", similarities, "--batch-size", 2, "--setting", "sere", "--report", page)
    _, err = run_text(capsys, "eval", checkpoint, "--prompts", prompts, "--max-new-tokens", 4, *argv)
    assert f"wrote {page}" in err
    text = page.read_text(encoding="utf-8")
    assert "The frontier: divergence" in text
    assert "Similarity maps" in text
    run_text(
        capsys, "bench", "--preset", "tiny", "--batch-size", 1, "--steps", 2, "--rounds", 1, "--report", page
    )
    assert "Speed: time per output token" in page.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_stops_before_the_work(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    """Nothing was loaded yet."""
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    argv = ("eval", checkpoint, "--prompts", notes, "--setting", "topk:select_top_k=1", "--report", notes)
    assert "expected an HTML page or no file" in refused(capsys, *argv)
