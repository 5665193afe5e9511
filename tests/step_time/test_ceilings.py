"""Two ceilings of this machine: what is measured, how long it takes, and what is left as it was."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from sere.errors import ConfigError
from sere.step_time import Ceilings, ceilings, measure

SMALL = 2**22


def test_both_ceilings_are_measured() -> None:
    """Bytes and operations are numbers of a real machine; device, dtype and threads are told, JSON-ready."""
    found = measure("cpu", torch.float32, seconds=0.02, copied=SMALL)
    assert 1e8 < found.bytes_per_s < 1e13
    assert 1e8 < found.flops_per_s < 1e16
    assert (found.device, found.dtype, found.overlaps) == ("cpu", "float32", False)
    assert Ceilings(**json.loads(json.dumps(asdict(found)))) == found


def test_threads_are_used_and_restored() -> None:
    """The number that is asked for holds while it measures, and the old one holds again afterwards."""
    before = torch.get_num_threads()
    assert measure(threads=before + 1, seconds=0.01, copied=SMALL).threads == before + 1
    assert torch.get_num_threads() == before


def test_counts_are_those_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy reads and writes each byte; an expert has three matrices, two operations each and row."""
    monkeypatch.setattr(ceilings, "_fastest", lambda *_: 2.0)
    found = measure(copied=SMALL)
    assert found.bytes_per_s == 2 * SMALL / 2.0
    assert found.flops_per_s == 64 * 2 * 3 * 2048 * 768 / 2.0


def test_the_expert_is_a_gated_mlp() -> None:
    """What is timed on a CPU and on a GPU computes silu(gate) * up, and then down, of every row."""
    one = ceilings._expert(1, 3, torch.float32, torch.device("cpu"))
    several = ceilings._expert(2, 3, torch.float32, torch.device("cpu"))
    assert one().shape == (3, ceilings.HIDDEN)
    assert several().shape == (2, 3, ceilings.HIDDEN)
    values = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    gated = torch.nn.functional.silu(values[:, :2]) * values[:, 2:]
    torch.testing.assert_close(ceilings._gated(values), gated)


def test_the_fastest_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other work on the machine slows some runs; two runs come before the timed ones."""
    clock = iter([0.0, 1.0, 1.5, 2.0, 4.0, 5.0, 5.25, 9.0])
    monkeypatch.setattr(ceilings, "perf_counter", lambda: next(clock))
    runs: list[int] = []
    # The limit is 1.0 s: after three runs of 0.5, 1 and 0.25 s it is over.
    assert ceilings._fastest(lambda: runs.append(1), torch.device("cpu"), 1.0) == 0.25
    assert len(runs) == 5


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        ("cpu", torch.int8, "expected a floating point type such as torch.bfloat16, got torch.int8"),
        ("meta", torch.float32, "expected 'cpu' or a CUDA device, got 'meta'"),
    ],
    ids=["integers", "no device"],
)
def test_what_cannot_be_measured_is_refused(device: str, dtype: torch.dtype, words: str) -> None:
    """An integer dtype and a device that computes nothing are named."""
    with pytest.raises(ConfigError, match=words):
        measure(device, dtype)
