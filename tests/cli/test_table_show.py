"""``sere table show``: the regime, the expected loss and the tiers of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.cli.parser import build_parser
from sere.similarity import LayerSimilarity
from sere.table import OWN_TEXTS, Tier
from tests.support.tables import identity, matrix, sample, table

EVIDENCE = {
    "by_batch_size": {
        "8": {
            "experts_before": 11.25, "experts_after": 4.0,
            "kl": {"value": 0.01234, "low": 0.01, "high": 0.02},
        },
        "16": {"kl": {"value": 0.02, "low": None, "high": None}},
    }
}  # fmt: skip
GUESS = {"by_batch_size": {"8": {"error": 0.123, "experts_before": 11.2, "experts_after": 5.0}}}
TIERS = {
    "balanced": Tier("balanced", ((1, 2), (16, 6)), evidence=EVIDENCE),
    "guess": Tier("guess", 5, evidence=GUESS),
    "mine": Tier("mine", 5),
}


def show(path: Path, capsys: pytest.CaptureFixture[str], *words: str, **changes: Any) -> str:
    """Save a table of 12 experts and return what the command prints of it."""
    similarities = {i: (0.1 * matrix(i, E=12)).fill_diagonal_(1) for i in (1, 3)}
    layers = {i: LayerSimilarity(one, torch.ones(12, 12)) for i, one in similarities.items()}
    values = {"layers": layers, "identity": identity(E=12, K=3), "metric": "projection"}
    table(**(values | {"routing": sample(E=12, K=3, lengths=(2,) * 70)} | changes)).save(path / "t.sere")
    args = build_parser().parse_args(["table", "show", str(path / "t.sere"), *words])
    assert args.run(args) == 0
    return capsys.readouterr().out


def test_the_regime_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How well the best other expert replaces one, overall and by layer, and what that means."""
    text = show(tmp_path, capsys)
    assert "best other:  mean 0.0" in text
    assert "regime:      experts are close to orthogonal: factors mostly drop a slot, choose more" in text


def test_the_expected_loss_is_shown_for_four_batch_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each layer and one for their mean, with the experts before and after."""
    text = show(tmp_path, capsys)
    assert "expected loss at the default settings (active_experts=auto, no tier), in steps of B rows" in text
    lines = text[text.index("expected loss") :].splitlines()
    assert lines[2].split() == ["layer", "B=8", "B=16", "B=32", "B=64"]
    assert [line.split()[0] for line in lines[4:]] == ["1", "3", "mean"]
    assert all(line.count("%") == line.count(">") == 4 for line in lines[4:])


def test_own_texts_show_less_of_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the model wrote the texts, that is said beside the expected loss, and only there."""
    own = {"calibration": {"texts": OWN_TEXTS}}
    text = " ".join(show(tmp_path, capsys, provenance=own).split())
    assert "from texts that the model wrote itself: on other texts expect more, about 1 / 0.7 of it:" in text
    assert "wrote itself" not in show(tmp_path, capsys, provenance={"calibration": {}})


def test_the_loss_is_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By layer and batch size; nothing of it where it is not known."""
    value = json.loads(show(tmp_path, capsys, "--json"))
    assert value["why_no_expected_loss"] is None
    assert list(value["expected_loss"]) == ["1", "3", "mean"]
    cell = value["expected_loss"]["1"]["8"]
    assert set(cell) == {"error", "before", "after", "pairs"}
    assert 0 < cell["error"] < 1
    assert json.loads(show(tmp_path, capsys, "--json", routing=None))["expected_loss"] is None


def test_a_table_without_a_sample_says_why_there_is_no_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older table is shown as before."""
    text = show(tmp_path, capsys, routing=None)
    assert "loss:        not estimated: the table has no routing sample, as older ones and those" in text
    assert text.splitlines()[-1].split()[0] == "3"


def test_tiers_are_shown_with_their_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each measured batch size; a tier without evidence has one for all."""
    text = show(tmp_path, capsys, tiers=TIERS)
    assert "expected loss at the default settings (tier balanced), in steps of B rows" in text
    lines = text[text.index("tiers:") :].splitlines()
    assert lines[1].split() == ["tier", "B", "M", "experts", "loss", "95", "%"]
    assert [line.split() for line in lines[3:7]] == [
        ["balanced", "8", "4", "11.2", ">", "4.0", "KL", "0.0123", "0.0100", "to", "0.0200"],
        ["16", "6", "-", "KL", "0.0200", "-"],
        ["guess", "8", "5", "11.2", ">", "5.0", "error", "12.3", "%", "-"],
        ["mine", "1", "to", "256", "5", "to", "5", "-", "-", "-"],
    ]
    assert " ".join(lines[7:]).startswith("KL is the divergence from the unmodified model in nats per token")


def test_the_loss_is_that_of_the_tier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the default settings would read with this table."""
    value = json.loads(show(tmp_path, capsys, "--json", tiers={"balanced": Tier("balanced", 12)}))
    assert value["default_tier"] == "balanced"
    assert value["expected_loss"]["mean"]["64"]["error"] == 0
    assert value["tiers"]["balanced"]["active_experts"] == 12
