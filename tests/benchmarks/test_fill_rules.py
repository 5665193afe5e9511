"""The benchmark that compares rules measures the rule that sere computes, group by group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fill_choices import Step, fill_of
from fill_facts import LayerFacts
from fill_policies import RivalPolicy, StudyPolicy, by_layers
from sere.policies.base import LayerShape
from sere.policies.spec import parse_spec
from sere.reroute import Routing, TokenBatch, reroute

pytestmark = pytest.mark.checkout
E, K, B, GROUPS = 24, 4, 8, 3


def _facts() -> LayerFacts:
    torch.manual_seed(3)
    similarity = torch.rand(E, E).fill_diagonal_(1).double()
    scale = torch.rand(E, E).double()
    empty = torch.empty(0)
    sensitivity = torch.rand(E).clamp(min=0.1)
    similarities, scales = {"projection": similarity}, {"projection": scale}
    return LayerFacts(similarities, scales, torch.ones(E), empty, empty, torch.ones(E), sensitivity.double())


def _rows() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    logits = 2 * torch.randn(B * GROUPS, E)
    weights, ids = logits.softmax(1).topk(K)
    return ids, weights, logits


def test_a_rows_own_light_slots_are_dropped_but_its_heaviest() -> None:
    """Of the slots that stay, those below the share of the row's Σ w² lose their weight; ids stay."""
    facts, (ids, weights, logits) = _facts(), _rows()
    batch = TokenBatch(ids, weights, router_scores=logits)
    shape = LayerShape(0, E, K)

    def routed(rule: str) -> Routing:
        return StudyPolicy(rule, {0: facts}, B, E, {}).bind(shape, torch.device("cpu"))(batch)

    share = weights.double().square() / weights.double().square().sum(1, keepdim=True)
    stays = (share >= 0.2) | (weights == weights.amax(1, keepdim=True))
    assert stays.any(1).all()
    assert not stays.all()
    found = routed("s4/similar,tail=0.2")
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.weights, torch.where(stays, weights, 0.0))
    assert torch.equal(routed("s4/similar,tail=0").weights, weights)


@pytest.mark.parametrize("gain", [None, 0.0, 0.02, 1.0])
@pytest.mark.parametrize("M", [4, 10, 14])
def test_weighted_fourth_powers_with_similar_targets_are_what_sere_does(M: int, gain: float | None) -> None:
    """For each group of B rows, ids and weights are those of SERE on a step of these rows.

    With a least gain too: 1 leaves out every substitute.
    """
    facts, (ids, weights, logits) = _facts(), _rows()
    rule = "s4/similar" if gain is None else f"s4/similar,gain={gain}"
    policy = StudyPolicy(rule, {0: facts}, B, M, {})
    router = policy.bind(LayerShape(0, E, K), torch.device("cpu"))
    found = router(TokenBatch(ids, weights, router_scores=logits))
    for group in range(GROUPS):
        rows = slice(group * B, group * B + B)
        expected = reroute(
            ids[rows], weights[rows], facts.similarity["projection"].float(), select_top_k=1,
            active_experts=M, scale=facts.scale["projection"].float(),
            sensitivity=facts.sensitivity.float(), backend="reference", min_gain=gain or 0.0,
        )  # fmt: skip
        kept = expected.weights != 0
        assert torch.equal(found.ids[rows][kept], expected.ids[kept])
        torch.testing.assert_close(found.weights[rows], expected.weights)


@pytest.mark.parametrize("spec", ["oea:select_top_k=2", "topp:p=0.5", "xshare:budget=10", "budget:budget=10"])
def test_a_rival_is_the_rule_that_comes_with_sere(spec: str) -> None:
    """Each group of B rows is routed as a step of its own, and its experts are tallied."""
    ids, weights, logits = _rows()
    rule = parse_spec(spec).build()
    policy = RivalPolicy(rule, B)
    router = policy.bind(LayerShape(0, E, K), torch.device("cpu"))
    found = router(TokenBatch(ids, weights, router_scores=logits))
    before = after = pairs = 0.0
    for group in range(GROUPS):
        rows = slice(group * B, group * B + B)
        own = rule.bind(LayerShape(0, E, K), torch.device("cpu"))
        expected = own(TokenBatch(ids[rows], weights[rows], router_scores=logits[rows]))
        assert torch.equal(found.ids[rows], expected.ids)
        assert torch.equal(found.weights[rows], expected.weights)
        before += len(set(ids[rows].flatten().tolist())) / GROUPS
        after += len(set(expected.ids[expected.weights != 0].tolist())) / GROUPS
        each = zip(expected.ids, expected.weights, strict=True)
        pairs += sum(len(set(row[w != 0].tolist())) for row, w in each) / (GROUPS * B)
    assert policy.experts() == {
        "distinct_before": round(before, 3),
        "distinct_after": round(after, 3),
        "pairs_per_row": round(pairs, 3),
    }
    assert after < before


FILLS = (
    "w1",
    "w4",
    "s4",
    "wmax",
    "rel3",
    "gap3",
    "loss3",
    "cover3",
    "row2^0.5",
    "rows2^1.5",
    "xshare",
    "free3",
)


@pytest.mark.parametrize("fill", FILLS)
def test_fills_read_as_many_experts_as_they_may(fill: str) -> None:
    """Where the rows' heaviest slots leave room, each fill gives M experts, with the heaviest if it must."""
    facts, (ids, weights, logits) = _facts(), _rows()
    relative = (logits - logits.amax(1, keepdim=True)).exp().double()
    step = Step(ids.reshape(GROUPS, B, K), weights.double().reshape(GROUPS, B, K), relative, facts, 12)
    P = fill_of(fill)(step)
    assert (step.kept.sum(1) <= 12).all()
    assert P.sum(1).tolist() == [12] * GROUPS
    assert fill == "free3" or bool((P | ~step.kept).all())


def test_layers_that_get_more_leave_the_mean_as_it_is() -> None:
    """A rule that favors a layer reads as many experts over all layers as one that does not."""
    assert by_layers("w3@first=1.5/similar", 24, range(6)) == {0: 36, 1: 21, 2: 22, 3: 21, 4: 22, 5: 22}


def test_an_unknown_fill_is_named() -> None:
    """The error names what there is."""
    with pytest.raises(ValueError, match="'best3': expected one of w, s, wmax, rel"):
        fill_of("best3")
