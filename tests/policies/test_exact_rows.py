"""Up to how many rows a rule says that a step surely changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sere.config import MOST_INT
from sere.policies import LayerShape
from tests.support.policies import EXAMPLES, named_rule, route, router_steps

# All experts of two rows of up to four slots fit into M.
ROOMY = ["sere:active_experts=8", "random:active_experts=8", "drop:active_experts=8,renormalize=true"]


@pytest.mark.parametrize("rule", [*EXAMPLES, "sere", "sere:merge=same,active_experts=1.0", *ROOMY])
@settings(max_examples=12)
@given(step=router_steps(), data=st.data())
def test_steps_that_surely_change_nothing_keep_every_bit(rule: str, step: Any, data: st.DataObject) -> None:
    """A step of as few rows as a rule names keeps ids and weights; a single row may have any budget."""
    ids, weights, logits, E = step
    K = ids.shape[1]
    policy = named_rule(rule, E)
    T = min(len(ids), policy.exact_rows(LayerShape(0, E, K)))
    if T == 0:
        return
    budgets = None if T > 1 else torch.tensor([data.draw(st.sampled_from([-2, -1, 0, 1, K]))])
    result, _ = route(policy, E, ids[:T], weights[:T], router_scores=logits[:T], row_budgets=budgets)
    assert torch.equal(result.ids, ids[:T])
    assert torch.equal(result.weights, weights[:T])


def test_rules_that_name_steps_that_surely_change_nothing() -> None:
    """Those with SERE's M name as many rows as fit; where a row may be merged, and in other rules, none."""
    layer = LayerShape(0, 9, 4)
    named = {rule: named_rule(rule, 9).exact_rows(layer) for rule in (*EXAMPLES, *ROOMY, "sere:merge=same")}
    expected = dict.fromkeys(ROOMY, 2) | dict.fromkeys(["random:select_top_k=2", "drop:select_top_k=2"], 1)
    expected |= {"sere:active_experts=24": MOST_INT}
    assert named == dict.fromkeys(named, 0) | expected
