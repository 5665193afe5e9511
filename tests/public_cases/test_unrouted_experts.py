"""Calibrating on so few tokens that some experts never get one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import sere
from sere.cli import main
from sere.reroute import COUNTERS
from sere.table import SimilarityTable
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog."]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("qwen3_moe", num_experts=64)


@pytest.fixture(scope="module")
def table(model: PreTrainedModel) -> SimilarityTable:
    return sere.calibrate(
        model, tiny_tokenizer(), TEXTS, metric="projection", max_tokens=16, seq_len=16, progress=False
    )


def test_calibration_says_how_many_experts_no_token_reached(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of the log, with the layers, the total, what it means and what helps."""
    options = {"max_tokens": 16, "seq_len": 16, "progress": False}
    with caplog.at_level(logging.WARNING, "sere"):
        made = sere.calibrate(model, tiny_tokenizer(), TEXTS, metric="projection", **options)
        sere.calibrate(model, tiny_tokenizer(), TEXTS, metric="frobenius", **options)
    counts = [len(layer.unknown) for layer in made.layers.values()]
    assert min(counts) > 0
    (line,) = [record.message for record in caplog.records if "no known similarity" in record.message]
    assert line == (
        f"sere: projection: {sum(counts)} of 128 experts have no known similarity to any other, so they are "
        f"never replaced ({counts[0]} of 64 in layer 0, {counts[1]} of 64 in layer 1): no calibration token "
        "was routed to them, or their output is 0 on all tokens that were; calibrate on more tokens"
    )


def test_an_expert_that_no_token_reached_is_never_replaced(table: SimilarityTable) -> None:
    """Even at ρ = 0, where all others are: it stays, with its weight, and counts as critical."""
    for layer in table.layers.values():
        known = next(e for e in range(64) if e not in layer.unknown)
        ids = torch.tensor([[known, e] for e in layer.unknown])
        weights = torch.tensor([[0.75, 0.25]]).repeat(len(ids), 1)
        counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
        routing = sere.reroute(ids, weights, layer, active_experts=0, counters=counters)
        assert torch.equal(routing.ids, ids)
        assert torch.equal(routing.weights, weights)
        counts = dict(zip(COUNTERS, counters.tolist(), strict=True))
        assert counts["slots_rerouted"] == 0
        assert counts["critical"] == len(ids)


def test_the_command_line_counts_them(
    tmp_path: Path, table: SimilarityTable, capsys: pytest.CaptureFixture[str]
) -> None:
    """``sere table verify`` and ``show`` say it; as JSON they are listed."""
    count = sum(len(layer.unknown) for layer in table.layers.values())
    path = tmp_path / "table.safetensors"
    table.save(path)
    assert main(["table", "verify", str(path)]) == 0
    assert f"{count} of 128 experts have no known similarity" in " ".join(capsys.readouterr().out.split())
    assert main(["table", "show", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [layer["unknown"] for layer in value["layers"]] == [
        list(la.unknown) for la in table.layers.values()
    ]
