"""What a table says of its own calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sere.table import OWN_TEXTS, RoutingSample, SimilarityTable, Tier
from sere.table.calibration_report import calibration_report, never_routed
from tests.support.tables import sample, table


def made(agree: float = 0.95, **changes: Any) -> SimilarityTable:
    """Return a table with a routing sample and a record of two halves."""
    stability = {"experts": 10, "agree": agree, "lost": 0.0123}
    provenance = {"calibration": {"texts": OWN_TEXTS, "stability": stability}}
    return table(**({"metric": "projection", "provenance": provenance, "routing": sample()} | changes))


def without(*experts: int) -> RoutingSample:
    """Return a routing sample in which no token was routed to these experts of layer 3."""
    whole = sample()
    energy = whole.energy[3].clone()
    energy[list(experts)] = torch.nan
    return replace(whole, energy={1: whole.energy[1], 3: energy})


def test_all_is_said_in_sentences() -> None:
    """Tokens and who wrote them, experts, halves, regime."""
    tokens, experts, halves, regime = calibration_report(made())
    assert tokens == "51,200 tokens, written by the model itself, at temperature 1"
    assert experts == "each of 10 experts was routed to"
    assert halves == (
        "two halves of the tokens choose the same nearest neighbor for 95 % of 10 experts; a half's choice "
        "is 0.0123 less similar than the best one"
    )
    assert "calibrate with projection to know" in regime


def test_rows_that_were_skipped_are_counted() -> None:
    """After the tokens; where none was skipped, nothing is said."""
    found = made(provenance={"calibration": {"rows": {"read": 1300, "skipped": 6}}})
    said = "6 of 1,300 rows of the texts were skipped, which hold no text (null or blank)"
    assert calibration_report(found)[1] == said
    assert not any("skipped" in line for line in calibration_report(made()))


def test_a_table_of_vllm_says_that_it_has_no_sensitivity() -> None:
    """It has none, because vLLM computes no gradients; another table does not say so."""
    of_vllm = made(provenance={"calibration": {"engine": "vllm"}})
    said = [line for line in calibration_report(of_vllm) if "vLLM computes no gradients" in line]
    assert len(said) == 1
    assert not [line for line in calibration_report(made()) if "vLLM" in line]


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("projection", "they are never replaced, because"),
        ("cosine", "they are compared all the same, because"),
    ],
)
def test_experts_that_were_never_routed_are_counted(metric: str, text: str) -> None:
    """With the layer, and what happens to them, which depends on the metric."""
    found = made(metric=metric, routing=without(0, 4))
    assert never_routed(found) == {3: 2}
    assert f"no token was routed to 2 of 10 experts (2 in layer 3): {text}" in calibration_report(found)[1]


def test_what_the_default_settings_read_is_said_if_it_is_estimated() -> None:
    """At three batch sizes; nothing where a tier was measured or is a user's own."""
    cells = {B: {"experts_before": 5.0, "experts_after": 3.2} for B in ("8", "32", "128")}
    evidence = {"estimated_from": "the routing of calibration tokens", "by_batch_size": cells}
    found = made(tiers={"balanced": Tier("balanced", 3, evidence=evidence)})
    assert calibration_report(found)[-1] == (
        "experts per layer and step with the default settings (tier balanced, estimated; sere tune "
        "measures): 5 > 3 at 8 rows; 5 > 3 at 32 rows; 5 > 3 at 128 rows"
    )
    assert len(calibration_report(made(tiers={"balanced": Tier("balanced", 3)}))) == 4


def test_an_unstable_choice_says_how_many_tokens() -> None:
    """Half the neighbors by chance: (0.5 / 0.1)² times as many."""
    assert "; for 90 % expect to need 1,280,000 tokens (max_tokens)" in calibration_report(made(agree=0.5))[2]


def test_what_is_not_known_is_not_said() -> None:
    """An older table has neither a routing sample nor a record of two halves; ``weights`` has no tokens."""
    (regime,) = calibration_report(table(calibration_tokens=0))
    assert regime.startswith("the metric 'cka' ranks experts")
