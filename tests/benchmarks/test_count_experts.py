"""The benchmark of counting the uses of each expert times nothing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import count_experts

pytestmark = pytest.mark.checkout


def test_both_ways_are_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each number of rows has one record with unit, machine and shape."""
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("sys.argv", ["count_experts.py", "--quick", "--out", str(out)])
    count_experts.main()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["config"]["T"] for one in records] == list(count_experts.ROWS)
    assert all(one["machine"]["cpu"] and one["without"] > 0 and one["with"] > 0 for one in records)
    text = capsys.readouterr().out
    assert "more, µs" in text
    assert "22 tensor operations more in a call" in text


def test_counts_that_are_wrong_stop_the_run() -> None:
    """Nothing is timed where plain loops count something else."""
    batch = count_experts.TokenBatch(*count_experts.make_batches(1, 4, 8, 2)[0])
    counts = count_experts.new_counts(8, batch.topk_ids.device)
    counts[0, 3] += 1
    (similarity,) = count_experts.make_similarities(1, 8)
    layer = count_experts.prepare_layer(
        count_experts.LayerSimilarity(similarity), count_experts.RerouteConfig(active_experts=3)
    )
    call = count_experts.ways(layer, batch, counts)[count_experts.WITH]
    with pytest.raises(SystemExit, match="differ from plain loops"):
        count_experts.check(call, batch, counts)
