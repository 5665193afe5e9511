"""Several steps in one forward pass: each is routed and counted as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sere.bench.target import random_table
from sere.config import RerouteConfig
from sere.engines.side_by_side import SideBySide, rows_at_once
from sere.eval.text import Text, score_texts
from sere.integrations.transformers import apply
from sere.policies.base import LayerShape, Policy
from sere.policies.sere import Sere
from sere.policies.xshare import XShare
from sere.reroute import TokenBatch
from tests.support.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen3_moe")


def sere(model: Any) -> Policy:
    return Sere(random_table(model).layers, RerouteConfig(active_experts=3))


@pytest.mark.parametrize("rule", [sere, lambda _: XShare(budget=6)], ids=["sere", "xshare"])
@pytest.mark.parametrize("real", [None, 5, torch.tensor(5)], ids=["all real", "number", "tensor"])
def test_each_group_is_a_step_of_its_own(model: Any, rule: Any, real: int | Tensor | None) -> None:
    """Ids, weights and counters are those of three steps; the last has a row less than the others."""
    policy = rule(model)
    shape = LayerShape(0, model.config.num_experts, model.config.num_experts_per_tok)
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(8, shape.num_experts, generator=generator)
    weights, ids = scores.topk(shape.top_k)
    budgets = torch.tensor([-2, 1, -2, 2, -2, -1, -2, 1])
    together = SideBySide(policy, 3).bind(shape, CPU)
    alone = policy.bind(shape, CPU)
    found = together(TokenBatch(ids, weights, budgets, real, scores))
    for first in (0, 3, 6):
        at = slice(first, first + 3)
        left = None if real is None else max(0, min(3, int(real) - first))
        step = alone(TokenBatch(ids[at], weights[at], budgets[at], left, scores[at]))
        assert torch.equal(found.ids[at], step.ids)
        assert torch.equal(found.weights[at], step.weights)
    assert torch.equal(together.counters, alone.counters)


def test_texts_score_as_in_steps_alone(model: Any) -> None:
    """Rows meet in routing only, so a pass of four steps loses what steps of three rows lose."""
    generator = torch.Generator().manual_seed(7)
    # Equal lengths: then the same texts share a step in both.
    texts = [Text(torch.randint(3, 96, (12,), generator=generator).tolist(), 4) for _ in range(24)]
    assert rows_at_once(model, 3, len(texts)) == 12
    found = []
    for policy, rows in ((sere(model), 3), (SideBySide(sere(model), 3), 12)):
        with apply(model, policy=policy, pad_token_id=-1) as handle:
            scores = score_texts(model, texts, batch_size=rows)
            found.append((scores, [layer.distinct_after for layer in handle.stats()]))
    (alone, experts), (together, same_experts) = found
    assert [one.kl for one in together] == pytest.approx([one.kl for one in alone], rel=1e-3, abs=1e-7)
    assert same_experts == experts


@pytest.mark.parametrize(
    ("batch_size", "count", "rows"),
    [(1, 500, 64), (4, 500, 64), (24, 500, 48), (128, 500, 128), (4, 20, 8), (4, 6, 4), (8, 6, 6)],
)
def test_a_pass_has_complete_steps_only(model: Any, batch_size: int, count: int, rows: int) -> None:
    """At most 64 rows, or one larger step; few texts are left rows enough to follow the first ones."""
    assert rows_at_once(model, batch_size, count) == rows


def test_other_caches_decode_one_step_at_a_time() -> None:
    """Their groups end together, so that more rows in a group would wait longer."""
    assert rows_at_once(tiny_model("gpt_oss"), 4, 500) == 4
