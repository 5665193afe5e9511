"""The benchmark of pairs against all slots times nothing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import flatten
from sere.flatten.costs import ROWS

pytestmark = pytest.mark.checkout


@pytest.mark.parametrize("kernel", ["eager", "grouped_mm"])
def test_each_variant_is_timed(kernel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each number of rows and variant has one record, with unit, machine, shape and the measured costs."""
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("sys.argv", ["flatten.py", "--quick", "--kernel", kernel, "--out", str(out)])
    flatten.main()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    names = ["off", "re-routed, 8 slots", *(f"{kept} slots kept, flattened" for kept in flatten.KEPT)]
    found = [(one["config"]["T"], one["config"]["variant"]) for one in records]
    assert found == [(T, name) for T in (8, 16) for name in names]
    assert all(one["machine"]["cpu"] and 0 < one["p20"] <= one["median"] <= one["p80"] for one in records)
    assert all(len(one["break_even"]) == len(ROWS) and one["unit"] == "ms_per_call" for one in records)


def test_pairs_that_differ_stop_the_run() -> None:
    """A kernel whose rows depend on how many slots they have is refused."""

    def wrong(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return hidden * ids.shape[1] * weights.sum(1, keepdim=True).to(hidden.dtype)

    with pytest.raises(SystemExit, match="pairs differ from all slots"):
        flatten.check(wrong, T=4, H=8, M=8, E=16, K=8, skipped=None)
    with torch.no_grad():
        flatten.check(flatten.transformers_kernel("grouped_mm", 16, 64, 32), 4, 64, 8, 16, 8, None)
