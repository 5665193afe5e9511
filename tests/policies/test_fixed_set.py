"""Rules whose experts are the same in every step: which set is chosen, and what becomes of the others."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sere.errors import ConfigError, TableError
from sere.policies import LayerShape, Policy, Pool, Prune
from sere.policies.fixed_set import greedy_set, most_used_set, pool_of
from sere.similarity.layer import LayerSimilarity
from sere.table import RoutingSample
from tests.support.plain_rules import PlainStep, assert_same, finished, plain_refill, plain_steps
from tests.support.policies import CPU, dense, one_layer, route, route_worked, table_of_layer

# Expert 1 replaces 0 and 2 well; 3 and 4 replace each other; nobody knows who replaces 5.
KNOWN = torch.tensor(
    [
        [1.0, 0.9, 0.2, 0.1, 0.1, 0.0],
        [0.3, 1.0, 0.3, 0.1, 0.1, 0.0],
        [0.2, 0.8, 1.0, 0.1, 0.1, 0.0],
        [0.1, 0.1, 0.1, 1.0, 0.6, 0.0],
        [0.1, 0.1, 0.1, 0.7, 1.0, 0.0],
        [math.nan, math.nan, math.nan, math.nan, math.nan, 1.0],
    ]
)


def chosen(members: Tensor) -> list[int]:
    return members.nonzero().flatten().tolist()


def loss(similarity: Tensor, importance: Tensor, members: tuple[int, ...]) -> float:
    """What is lost if the members replace all others."""
    best = similarity.double().nan_to_num(nan=0.0)[:, list(members)].max(dim=1).values
    return float((importance.double() * (1 - best)).sum())


def plain_greedy(similarity: Tensor, importance: Tensor, size: int) -> list[int]:
    """The greedy choice in plain loops, by the loss of whole sets."""
    E = len(similarity)
    members: tuple[int, ...] = ()
    while len(members) < min(size, E):
        rest = [expert for expert in range(E) if expert not in members]
        losses = {expert: loss(similarity, importance, (*members, expert)) for expert in rest}
        members += (min(rest, key=lambda expert: (losses[expert], expert)),)
    return sorted(members)


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), E=st.integers(1, 8), size=st.integers(1, 9), weighted=st.booleans())
def test_the_set_is_the_greedy_one(seed: int, E: int, size: int, weighted: bool) -> None:
    """That of the plain loops; what it saves is within the bound of greedy choices from the most possible."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(E, E, generator=generator).fill_diagonal_(1.0)
    importance = torch.rand(E, generator=generator) if weighted else torch.ones(E)
    found = chosen(greedy_set(similarity, importance, size))
    assert found == plain_greedy(similarity, importance, size)
    best = min(
        loss(similarity, importance, members) for members in itertools.combinations(range(E), len(found))
    )
    whole = float(importance.double().sum())
    covered, most = whole - loss(similarity, importance, tuple(found)), whole - best
    # Nemhauser, Wolsey and Fisher 1978: a greedy cover is within 1 - 1/e of the best.
    assert covered >= (1 - 1 / math.e) * most - 1e-6


def test_experts_that_replace_others_come_first() -> None:
    """By hand: 1 covers the most (2.9); then 3 adds 0.9 + 0.6, then 5 its whole self."""
    alike = torch.ones(6)
    assert [chosen(greedy_set(KNOWN, alike, size)) for size in (1, 2, 3)] == [[1], [1, 3], [1, 3, 5]]


def test_importance_decides() -> None:
    """An expert that carries nearly all of the output comes first, whomever it replaces."""
    importance = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 9.0])
    assert chosen(greedy_set(KNOWN, importance, 1)) == [5]


def test_equal_experts_and_experts_of_no_importance_are_taken_by_id() -> None:
    """All alike, or all unused: the lower id."""
    alike = torch.ones(4, 4)
    assert chosen(greedy_set(alike, torch.ones(4), 2)) == [0, 1]
    assert chosen(greedy_set(alike, torch.zeros(4), 2)) == [0, 1]


def sample(ids: list[list[int]], weights: list[list[float]], energy: list[float]) -> RoutingSample:
    """A sample of layer 0, one text."""
    return RoutingSample(
        ids={0: torch.tensor(ids, dtype=torch.int16)},
        weights={0: torch.tensor(weights, dtype=torch.float16)},
        starts=torch.tensor([0, len(ids)], dtype=torch.int32),
        energy={0: torch.tensor(energy, dtype=torch.float32)},
    )


def test_a_sample_of_the_routing_says_what_experts_carry() -> None:
    """Expert 2 has the most slots; expert 4's squared weights times its output's energy are the largest."""
    routing = sample(
        [[2, 0], [2, 4], [2, -1]],
        [[0.5, 0.25], [0.25, 0.75], [0.5, 0.5]],
        [1.0, math.nan, 1.0, math.nan, 2.0, math.nan],
    )
    similarity = torch.eye(6)
    similarity[0, 1] = 0.5
    layer = LayerSimilarity(similarity)
    # 4: 2 x 0.5625; 2: 0.25 + 0.0625 + 0.25; 0: 0.0625.
    assert [chosen(pool_of(layer, routing, 0, size)) for size in (1, 2, 3)] == [[4], [2, 4], [0, 2, 4]]
    assert [chosen(most_used_set(layer, routing, 0, size)) for size in (1, 2)] == [[2], [0, 2]]
    assert chosen(most_used_set(layer, None, 0, 2)) == chosen(pool_of(layer, None, 0, 2)) == [1, 2]


def plain_pool(step: PlainStep, layer: LayerSimilarity, pool: list[int]):  # type: ignore[no-untyped-def]
    """Every expert outside goes to the most similar one inside, in plain loops."""

    def target(expert: int) -> int:
        known = [p for p in pool if not math.isnan(float(layer.similarity[expert, p]))]
        if expert in pool or not known:
            return expert
        return min(known, key=lambda p: (-float(layer.similarity[expert, p]), p))

    def row(t: int) -> dict[tuple[int, int], tuple[int, float]]:
        new = {}
        for slot in step.valid(t):
            expert = step.id(slot)
            factor = 1.0 if layer.scale is None else float(layer.scale[expert, target(expert)])
            new[slot] = (target(expert), step.weight(slot) * (factor if target(expert) != expert else 1.0))
        return new

    return finished(step, row)


@settings(max_examples=60)
@given(step=plain_steps(), size=st.integers(1, 4), scaled=st.booleans(), seed=st.integers(0, 50))
def test_slots_go_to_the_most_similar_expert_of_the_pool(
    step: PlainStep, size: int, scaled: bool, seed: int
) -> None:
    """Ids and weights are those of the plain loops; repeated and unknown similarities are among them."""
    generator = torch.Generator().manual_seed(seed)
    similarity = (torch.rand(step.E, step.E, generator=generator) * 4).ceil() / 4
    similarity[torch.rand(step.E, step.E, generator=generator) < 0.2] = math.nan
    scale = torch.rand(step.E, step.E, generator=generator) + 0.5 if scaled else None
    layer = LayerSimilarity(similarity.fill_diagonal_(1.0), scale)
    result, _ = route(Pool(size, table=one_layer(layer)), step.E, step.ids, step.weights, **step.given)
    pool = plain_greedy(layer.similarity, torch.ones(step.E), size)
    assert_same(result, plain_pool(step, layer, pool))


def test_the_pool_is_the_same_for_every_batch() -> None:
    """By hand: 0 and 2 go to 1, 4 to 3, each with its factor; 5 stays, as nobody is known to replace it."""
    scale = torch.ones(6, 6)
    scale[0, 1], scale[2, 1], scale[4, 3] = 0.5, 2.0, 1.5
    policy = Pool(2, table=one_layer(LayerSimilarity(KNOWN, scale)))
    result, _ = route_worked(policy)
    assert result.ids.tolist() == [[1, 1, 1], [3, 1, 1], [1, 3, 5]]
    assert dense(result, 0) == pytest.approx([0, 0.4 * 0.5 + 0.3 + 0.15 * 2, 0, 0, 0, 0])
    assert dense(result, 2) == pytest.approx([0, 0.45 * 0.5, 0, 0.25 * 1.5, 0, 0.15])


@settings(max_examples=40)
@given(step=plain_steps(), size=st.integers(1, 4))
def test_pruned_routers_choose_inside_the_set(step: PlainStep, size: int) -> None:
    """Ids and weights are those of the plain loops."""
    table = table_of_layer(step.E)
    result, _ = route(Prune(size, table=table), step.E, step.ids, step.weights, **step.given)
    inside = plain_greedy(table.layers[0].similarity, torch.ones(step.E), size)
    assert_same(result, plain_refill(step, set(inside)))


@pytest.mark.parametrize("kind", [Pool, Prune])
def test_a_set_of_all_experts_is_bitwise_identity(kind: type[Pool | Prune]) -> None:
    """Nothing is outside."""
    ids, weights = torch.tensor([[0, 5, 2]]), torch.tensor([[0.3, 0.4, 0.1]])
    policy = kind(6, table=one_layer(LayerSimilarity(KNOWN, 2 * torch.ones(6, 6))))
    result, _ = route(policy, 6, ids, weights, router_scores=torch.zeros(1, 6))
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


@pytest.mark.parametrize("kind", [Pool, Prune])
def test_what_the_table_lacks_is_named(kind: type[Pool | Prune]) -> None:
    """No table, no such layer, another number of experts."""
    policy: Policy = kind(2, table=table_of_layer(6))
    with pytest.raises(TableError, match=r"no similarities for layer 3; the table has the layers \[0\]"):
        policy.bind(LayerShape(3, 6, 2), CPU)
    with pytest.raises(TableError, match=r"layer 0: expected E = 8 experts as in the model, got 6 in the"):
        policy.bind(LayerShape(0, 8, 2), CPU)
    with pytest.raises(ConfigError, match=f"policy '{kind.name}': needs a similarity table; give one as"):
        kind(2).bind(LayerShape(0, 6, 2), CPU)
