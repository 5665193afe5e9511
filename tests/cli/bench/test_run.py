"""``sere bench run``, for short ``sere bench``: a line per case, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sere.cli import main
from tests.support.commands import refused, run_text


def test_bench_writes_one_line_a_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each case is one JSON line, on stdout and appended to --out, with its unit and conditions."""
    out = tmp_path / "results" / "bench.jsonl"
    sizes = ["--batch-size", "1", "4", "--steps", "2", "--rounds", "1"]
    argv = ["bench", "--preset", "tiny", *sizes, "--setting", "sere:select_top_k=1", "--json"]
    assert main([*argv, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert out.read_text() == printed
    records = [json.loads(line) for line in printed.splitlines()]
    assert [record["case"] for record in records] == [
        "B=1 off",
        "B=1 sere:select_top_k=1",
        "B=4 off",
        "B=4 sere:select_top_k=1",
        "B=4 replay sere:select_top_k=1",
    ]
    last = records[-2]
    assert last["unit"] == "ms"
    assert last["subject"]["weights"] == "random"
    assert {"machine", "versions", "commit", "clean_tree"} <= set(last["provenance"])
    assert last["experts"]["distinct_after"] < last["experts"]["distinct_before"]
    assert last["overhead"]["us_per_layer"] > 0
    assert records[2]["overhead"] is None
    assert records[2]["speedup"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0}


def test_bench_times_a_checkpoint_with_its_table(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, similarities: Path
) -> None:
    """A checkpoint is timed with the similarities of its table; the table for people has a row a case."""
    argv = ["bench", checkpoint, "--table", similarities, "--batch-size", 2, "--steps", 2, "--rounds", 1]
    out, _ = run_text(capsys, *argv)
    assert "speedup" in out
    assert re.search(r"^sere\s+2 ", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "expected either MODEL or --preset"),
        (["--preset", "qwen3-30b"], "did you mean 'qwen3-30b-a3b'"),
        (["--preset", "mixtral-8x7b", "--layers", "33"], "expected 1 to 32 for mixtral-8x7b, got 33"),
        (["--preset", "tiny", "--rounds", "0"], "argument --rounds: expected a whole number of at least 1"),
        (["x", "--layers", "2"], "--layers, --depths: only a --preset"),
        (["x", "--depths", "2", "4"], "--layers, --depths: only a --preset"),
        (["--preset", "tiny", "--depths", "2", "2"], "expected two different numbers, got 2 twice"),
        (["--preset", "tiny", "--depths", "1", "3"], "expected 1 to 2 for tiny, got 3"),
        (["--preset", "tiny", "--out", "."], ".: expected a file path, but a directory exists there"),
    ],
)
def test_bench_refuses_in_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    """Wrong names and sizes are found before anything is made."""
    assert line in refused(capsys, "bench", *argv)


def test_two_depths_say_what_the_complete_model_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The records of the deeper model have the complete model's time, unless noise hides a layer's."""
    out = tmp_path / "bench.jsonl"
    sizes = ["--batch-size", "2", "--steps", "2", "--rounds", "1", "--no-replay", "--out", out]
    text, _ = run_text(capsys, "bench", "--preset", "tiny", "--depths", "2", "1", *sizes)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["subject"]["layers"] for record in records] == [1, 1, 2, 2]
    assert [("complete_model" in record) for record in records] == [False, False, True, True]
    assert max(map(len, text.splitlines())) <= 100
