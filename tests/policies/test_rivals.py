"""The rival rules against examples worked by hand, and against their definitions in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sere.errors import ConfigError, InputError
from sere.policies import Lynx, Oea, Off, RandomReroute, TopK, XShare
from sere.policies.rows import Rival
from sere.reroute import COUNTERS, Routing, reroute

E, K = 6, 3
# Three rows, weights of a softmax router without normalization. By weight: row 0 wants 0, 1, 2; row 1 wants
# 3, 1, 0; row 2 wants 0, 4, 5.
PROBABILITIES = torch.tensor(
    [
        [0.40, 0.30, 0.15, 0.05, 0.04, 0.06],
        [0.20, 0.25, 0.05, 0.35, 0.10, 0.05],
        [0.45, 0.02, 0.03, 0.10, 0.25, 0.15],
    ],
    dtype=torch.float64,
)


def bound(rival: Rival, experts: int = E) -> Rival:
    rival.bind({0: experts})
    return rival


def chosen(probabilities: Tensor, k: int = K) -> tuple[Tensor, Tensor]:
    weights, ids = probabilities.topk(k, dim=1)
    return ids, weights.float()


def run(rival: Rival, **options: Tensor) -> Routing:
    ids, weights = chosen(PROBABILITIES)
    return bound(rival).route(0, ids, weights, scores=PROBABILITIES.log(), **options)


def dense(routing: Routing, row: int, experts: int = E) -> list[float]:
    """A row's weight for each expert."""
    out = torch.zeros(experts, dtype=torch.float64)
    return out.scatter_add(0, routing.ids[row].long(), routing.weights[row].double()).tolist()


def test_off_returns_what_came() -> None:
    """Ids and weights are bitwise those of the router."""
    ids, weights = chosen(PROBABILITIES)
    result = run(Off())
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


def test_topk_keeps_the_heaviest_and_the_sum() -> None:
    """S=2: row 0 keeps 0.40 and 0.30 of 0.85, scaled by 0.85/0.70; the freed slot repeats expert 0 with 0."""
    result = run(TopK(2))
    assert result.ids.tolist() == [[0, 1, 0], [3, 1, 3], [0, 4, 0]]
    assert dense(result, 0) == pytest.approx([0.4 * 0.85 / 0.7, 0.3 * 0.85 / 0.7, 0, 0, 0, 0])
    assert result.weights[:, 2].tolist() == [0, 0, 0]


def test_topk_ranks_by_weight_in_any_slot_order() -> None:
    """A router that returns its slots unsorted loses the lightest, not the last."""
    ids, weights = torch.tensor([[4, 2, 1]]), torch.tensor([[0.1, 0.2, 0.7]])
    result = bound(TopK(1)).route(0, ids, weights)
    assert result.ids.tolist() == [[1, 1, 1]]
    assert result.weights.tolist() == [[0, 0, 1]]


def test_oea_refills_from_what_is_active() -> None:
    """S=1 makes {0, 3} active: each row keeps its top and takes the other, renormalized to its old sum."""
    result = run(Oea(1))
    assert result.ids.tolist() == [[0, 3, 0], [3, 3, 0], [0, 3, 0]]
    assert dense(result, 0) == pytest.approx([0.40 * 0.85 / 0.45, 0, 0, 0.05 * 0.85 / 0.45, 0, 0])
    assert dense(result, 1) == pytest.approx([0.20 * 0.80 / 0.55, 0, 0, 0.35 * 0.80 / 0.55, 0, 0])


def test_xshare_fills_its_budget_by_summed_gate() -> None:
    """Tops are {0, 3}; of the rest expert 1 has the largest summed gate (0.57), then 4 (0.39): budget 3."""
    result = run(XShare(3))
    assert [sorted(row) for row in result.ids.tolist()] == [[0, 1, 3], [0, 1, 3], [0, 1, 3]]
    assert dense(result, 2) == pytest.approx(
        [0.45 * 0.85 / 0.57, 0.02 * 0.85 / 0.57, 0, 0.1 * 0.85 / 0.57, 0, 0]
    )


def test_xshare_keeps_every_top_expert_beyond_its_budget() -> None:
    """Budget 1 with two different tops: both stay."""
    assert set(run(XShare(1)).ids.flatten().tolist()) == {0, 3}


def test_lynx_drops_the_least_used() -> None:
    """Uses are 0: 3, 1: 2, 2..5: 1 each. Half go; of the equals the lowest id, 2, stays."""
    result = run(Lynx(0.5))
    assert set(result.ids.flatten().tolist()) == {0, 1, 2}
    assert dense(result, 1) == pytest.approx([0.2 * 0.8 / 0.5, 0.25 * 0.8 / 0.5, 0.05 * 0.8 / 0.5, 0, 0, 0])


def test_random_moves_secondary_slots_to_primary_experts_only() -> None:
    """S=1: primaries are {0, 3}; slots that hold one stay, all others get one; weights are unchanged."""
    ids, weights = chosen(PROBABILITIES)
    result = run(RandomReroute(1))
    primary = (ids == 0) | (ids == 3)
    assert torch.equal(result.ids[primary], ids[primary])
    assert set(result.ids[~primary].tolist()) <= {0, 3}
    assert torch.equal(result.weights, weights)


def test_random_leaves_the_experts_that_sere_leaves_at_equal_settings() -> None:
    """With a floor, too, the active set is SERE's at threshold 0: only who takes over differs."""
    ids, weights = chosen(PROBABILITIES)
    for min_active in (0, 2, 3, 4, 9):
        result = run(RandomReroute(1, min_active=min_active))
        sere = reroute(ids, weights, torch.ones(6, 6), select_top_k=1, min_active=min_active)
        assert set(result.ids.flatten().tolist()) == set(sere.ids.flatten().tolist())
    assert len(set(result.ids.flatten().tolist())) == 6


def test_random_is_seeded_uniform_and_different_at_each_step() -> None:
    """Equal seeds agree step by step; another seed does not; over many draws each primary is as likely."""
    ids = torch.arange(8).repeat(64, 1)
    weights = torch.ones(64, 8)
    weights[:, :4] = 2.0

    def steps(seed: int, count: int) -> list[Tensor]:
        rival = bound(RandomReroute(4, seed=seed), 8)
        return [rival.route(0, ids, weights).ids for _ in range(count)]

    first, again, other = steps(0, 20), steps(0, 20), steps(1, 20)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    drawn = torch.stack(first)[:, :, 4:].flatten().bincount(minlength=8)
    assert drawn[4:].tolist() == [0, 0, 0, 0]
    # 5120 draws, expectation 1280 each, standard deviation 31: five of them.
    assert (drawn[:4] - 1280).abs().max() < 155


@pytest.mark.parametrize("padding", [False, True], ids=["all real", "with padding"])
def test_random_changes_nothing_without_a_primary_expert(padding: bool) -> None:
    """Budgets of 0 leave P empty: bitwise what came, padding rows too, as SERE does (steps 3 and 8)."""
    ids, weights = chosen(PROBABILITIES)
    budget = torch.tensor([0, 0, -1 if padding else 0])
    sere = reroute(ids, weights, torch.ones(6, 6), select_top_k=1, row_budgets=budget)
    result = run(RandomReroute(1), row_budgets=budget)
    assert torch.equal(sere.ids, ids)
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


RIVALS = [
    Off(),
    TopK(1),
    TopK(2),
    RandomReroute(1),
    RandomReroute(2, min_active=3),
    Oea(1),
    Oea(2),
    XShare(1),
    XShare(4),
]
RIVALS += [Lynx(0.3), Lynx(0.7)]
NAMES = [f"{r.name}-{i}" for i, r in enumerate(RIVALS)]


@st.composite
def steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """A router's choice over up to 9 experts: ids, weights (normalized or not, slots shuffled) and logits."""
    experts = draw(st.integers(2, 9))
    k = draw(st.integers(1, min(4, experts)))
    rows = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(rows, experts, generator=generator, dtype=torch.float64)
    weights, ids = logits.softmax(1).topk(k, dim=1)
    if draw(st.booleans()):
        weights = weights / weights.sum(1, keepdim=True)
    order = torch.rand(rows, k, generator=generator).argsort(1)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    kind = draw(st.sampled_from([torch.int32, torch.int64]))
    return ids.gather(1, order).to(kind), weights.gather(1, order).to(dtype), logits, experts


@pytest.mark.parametrize("rival", RIVALS, ids=NAMES)
@settings(max_examples=8)
@given(step=steps(), data=st.data())
def test_what_every_rival_keeps(
    rival: Rival, step: tuple[Tensor, Tensor, Tensor, int], data: st.DataObject
) -> None:
    """Shapes, dtypes, inputs, row sums and protected rows stay; ids are distinct (random's are not)."""
    ids, weights, logits, experts = step
    T, k = ids.shape
    budget = torch.tensor(data.draw(st.lists(st.sampled_from([-1, k, 1]), min_size=T, max_size=T)))
    before = ids.clone(), weights.clone()
    result = bound(rival, experts).route(0, ids, weights, scores=logits, row_budgets=budget)
    assert torch.equal(ids, before[0])
    assert torch.equal(weights, before[1])
    assert (result.ids.dtype, result.weights.dtype) == (ids.dtype, weights.dtype)
    protected = budget >= k
    assert torch.equal(result.ids[protected], ids[protected])
    assert torch.equal(result.weights[protected], weights[protected])
    real = budget >= 0
    tolerance = 1e-6 if weights.dtype == torch.float32 else 2e-2
    sums = result.weights[real].double().sum(1), weights[real].double().sum(1)
    torch.testing.assert_close(*sums, rtol=tolerance, atol=tolerance)
    if rival.name != "random":
        for row in torch.nonzero(real).flatten().tolist():
            used = result.ids[row][result.weights[row] != 0].tolist()
            assert len(used) == len(set(used))


@pytest.mark.parametrize("rival", RIVALS[1:], ids=NAMES[1:])
@settings(max_examples=8)
@given(step=steps(), data=st.data())
def test_padding_rows_do_not_vote(
    rival: Rival, step: tuple[Tensor, Tensor, Tensor, int], data: st.DataObject
) -> None:
    """What padding rows hold changes nothing; their weights become 0 and their ids an active expert."""
    ids, weights, logits, experts = step
    T = ids.shape[0]
    padding = torch.tensor(data.draw(st.lists(st.booleans(), min_size=T, max_size=T)))
    if bool(padding.all()):
        padding[0] = False
    budget = torch.where(padding, -1, 1)
    noise = ids.clone(), weights.clone(), logits.clone()
    noise[0][padding] = 0
    noise[1][padding] = 0.5
    noise[2][padding] = 3.0
    results = []
    for i, w, scores in ((ids, weights, logits), noise):
        if isinstance(rival, RandomReroute):
            rival._steps.clear()
        results.append(bound(rival, experts).route(0, i, w, scores=scores, row_budgets=budget))
    assert torch.equal(results[0].ids, results[1].ids)
    assert torch.equal(results[0].weights, results[1].weights)
    assert not results[0].weights[padding].any()
    active = set(results[0].ids[~padding][results[0].weights[~padding] != 0].tolist())
    assert set(results[0].ids[padding].flatten().tolist()) <= active


@pytest.mark.parametrize("rival", [r for r in RIVALS if r.needs_scores], ids=lambda r: r.name)
@settings(max_examples=20)
@given(step=steps())
def test_rows_choose_their_best_inside_what_is_active(
    rival: Rival, step: tuple[Tensor, Tensor, Tensor, int]
) -> None:
    """Each row ends with the K best, by its own logits, of the experts that run."""
    ids, weights, logits, experts = step
    if weights.dtype == torch.bfloat16:
        return
    k = ids.shape[1]
    result = bound(rival, experts).route(0, ids, weights, scores=logits)
    active = sorted({e for row, w in zip(result.ids.tolist(), result.weights.tolist(), strict=True)
                     for e, x in zip(row, w, strict=True) if x != 0})  # fmt: skip
    for row in range(ids.shape[0]):
        best = sorted(active, key=lambda e, row=row: -float(logits[row, e]))[:k]
        assert {
            e for e, x in zip(result.ids[row].tolist(), result.weights[row].tolist(), strict=True) if x
        } == set(best)


@pytest.mark.parametrize(
    "rival", [TopK(K), RandomReroute(K), Oea(K), XShare(E), Lynx(0.0)], ids=lambda r: r.name
)
def test_settings_that_drop_nothing_are_bitwise_identity(rival: Rival) -> None:
    """S = K, a budget of E, or no share to drop."""
    ids, weights = chosen(PROBABILITIES)
    result = run(rival)
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


@pytest.mark.parametrize("rival", RIVALS, ids=NAMES)
def test_zero_experts_and_sentinels_pass_through(rival: Rival) -> None:
    """Slots with an id beyond E, a negative one or no weight are as they came, and count for nothing."""
    ids = torch.tensor([[0, 7, 1], [-1, 2, 1], [3, 4, 5]])
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.2], [0.6, 0.4, 0.0]])
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
    scores = torch.zeros(3, E)
    result = bound(rival).route(0, ids, weights, scores=scores, counters=counters)
    for row, slot in ((0, 1), (1, 0), (2, 2)):
        assert result.ids[row, slot] == ids[row, slot]
        assert result.weights[row, slot] == weights[row, slot]
    seen = dict(zip(COUNTERS, counters.tolist(), strict=True))
    assert (seen["steps"], seen["rows"], seen["distinct_before"], seen["slots"]) == (1, 3, 5, 6)


def test_counters_count_what_runs() -> None:
    """Top-2 of the example: 6 distinct experts before, {0, 1, 3, 4} after, 3 of 9 slots changed or freed."""
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
    run(TopK(2), counters=counters)
    run(TopK(2), counters=counters, num_tokens=torch.tensor(2))
    seen = dict(zip(COUNTERS, counters.tolist(), strict=True))
    assert seen["steps"] == 2
    assert seen["rows"] == 3 + 2
    assert seen["distinct_before"] == 6 + 4
    assert seen["distinct_after"] == 4 + 3
    assert seen["slots"] == 9 + 6
    assert seen["slots_rerouted"] == 3 + 2


@pytest.mark.parametrize("rival", RIVALS[1:], ids=NAMES[1:])
def test_nothing_real_changes_nothing(rival: Rival) -> None:
    """N = 0: bitwise identity, and the counters stand still."""
    ids, weights = chosen(PROBABILITIES)
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
    result = run(rival, num_tokens=torch.tensor(0), counters=counters)
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)
    assert not counters.any()


@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
@pytest.mark.parametrize("gate", [torch.sigmoid, lambda x: x.softmax(1)], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("scale", [None, 2.5], ids=["normalized", "scaled"])
def test_refilled_weights_are_those_of_the_router(
    probabilities: bool, gate: object, scale: float | None
) -> None:
    """Softmax or sigmoid, logits or probabilities, normalized or scaled: gates are the router's."""
    torch.manual_seed(3)
    logits = torch.randn(4, 8, dtype=torch.float64)
    scores = gate(logits)  # type: ignore[operator]
    weights, ids = scores.topk(3, dim=1)
    factor = torch.full((4, 1), scale or 0.0) if scale else 1 / weights.sum(1, keepdim=True)
    rival = bound(Oea(1), 8)
    result = rival.route(0, ids, (weights * factor).float(), scores=scores if probabilities else logits)
    for row in range(4):
        used = result.ids[row][result.weights[row] != 0]
        expected = scores[row, used] / scores[row, used].sum() * (weights * factor)[row].sum()
        got = result.weights[row][result.weights[row] != 0]
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TopK(0), "select_top_k: expected an integer of at least 1, got 0"),
        (lambda: Oea(True), "select_top_k: expected an integer of at least 1, got True"),
        (lambda: XShare(1.5), "budget: expected an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: Lynx(1.0), "drop_share: expected a number of at least 0 and below 1, got 1.0"),
        (lambda: RandomReroute(1, min_active=-1), "min_active: expected an integer of at least 1, got -1"),
        (lambda: RandomReroute(1, seed="a"), "seed: expected an integer, got 'a'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_refused(make: object, text: str) -> None:
    """Each text gives the setting, what was expected and what came."""
    with pytest.raises(ConfigError, match=text):
        make()  # type: ignore[operator]


def test_missing_scores_and_sizes_are_named() -> None:
    """A rival that was not bound, or got no scores, says so."""
    ids, weights = chosen(PROBABILITIES)
    with pytest.raises(
        InputError, match=r"policy 'topk': the number of experts of layer 3 is not known; call bind"
    ):
        bound(TopK(1)).route(3, ids, weights)
    with pytest.raises(InputError, match=r"policy 'oea': expected router scores of shape \[3, 6\], got None"):
        bound(Oea(1)).route(0, ids, weights)


def test_settings_are_described() -> None:
    """Records carry the policy's name and numbers."""
    assert [
        r.describe() for r in (Off(), TopK(2), RandomReroute(1, seed=4), Oea(2), XShare(9), Lynx(0.25))
    ] == [
        {"policy": "off"},
        {"policy": "topk", "select_top_k": 2},
        {"policy": "random", "select_top_k": 1, "min_active": 0, "seed": 4},
        {"policy": "oea", "select_top_k": 2},
        {"policy": "xshare", "budget": 9},
        {"policy": "lynx", "drop_share": 0.25},
    ]
