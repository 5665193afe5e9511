"""What is tuned: halves that share no prompt, and what is refused before long work."""

from __future__ import annotations

import math

import pytest

from sere.errors import ConfigError, DataError, InputError
from sere.tune.plan import TIERS, TIERS_BY_ANSWERS, Goal, TunePlan, default_goals
from tests.support.tuning import PROMPTS, tune_plan_of


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halves_share_no_prompt(seed: int) -> None:
    """No prompt is tuned on and verified with, not even one that is in the file twice."""
    prompts = [*PROMPTS, *PROMPTS[:9]]
    halves = tune_plan_of(prompts=prompts, seed=seed).halves()
    tuning, held_out = ({prompts[i] for i in halves[half]} for half in ("tuning", "held-out"))  # type: ignore[index]
    assert not tuning & held_out
    assert tuning | held_out == set(PROMPTS)
    assert len(tuning) == len(held_out) == len(PROMPTS) // 2


def test_halves_are_a_seeded_choice() -> None:
    """The same seed gives the same halves, another seed others; at most so many prompts are used."""
    assert tune_plan_of().halves() == tune_plan_of().halves()
    assert tune_plan_of().halves() != tune_plan_of(seed=1).halves()
    few = tune_plan_of(max_prompts=9).halves()
    assert [len(half) for half in few.values()] == [5, 4]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"batch_sizes": [1, 4]}, InputError, "a single row always reads its own experts"),
        ({"batch_sizes": [512]}, InputError, r"from 2 to 256 .* got \[512\]"),
        ({"goals": {}}, InputError, "at least one tier"),
        ({"max_new_tokens": 1}, InputError, "at least 2, got 1"),
        ({"prompts": PROMPTS[:7]}, DataError, "at least 8, better 100 or more .* got 7"),
        ({"max_prompts": 3}, DataError, "got 3"),
        ({"goals": {"a": Goal("loss", 1)}}, ConfigError, "needs questions with their answers"),
    ],
    ids=["one row", "too many rows", "no goals", "no token", "few prompts", "few used", "no questions"],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused(changes: dict[str, object], error: type, text: str) -> None:
    """Each refusal says what was expected and what came."""
    with pytest.raises(error, match=text):
        tune_plan_of(**changes)


@pytest.mark.parametrize(
    ("kind", "value"), [("kl", 0), ("loss", -1), ("speedup", 1), ("kl", math.inf), ("kl", math.nan)]
)
def test_a_goal_out_of_range_is_refused(kind: str, value: float) -> None:
    """A loss is above 0, a speedup above 1."""
    with pytest.raises(ConfigError, match=f"expected a {kind} above"):
        Goal(kind, value)  # type: ignore[arg-type]


def test_goals_and_batch_sizes_do_not_change_what_is_measured() -> None:
    """Measurements of an interrupted run serve for other tiers; those of other prompts do not."""
    plan = tune_plan_of()
    assert plan.describe() == tune_plan_of(goals=TIERS, batch_sizes=[16]).describe()
    assert plan.describe() != tune_plan_of(prompts=PROMPTS[1:]).describe()


def test_the_tiers_accept_more_and_more() -> None:
    """By default: safe, then balanced, then fast."""
    assert list(TIERS) == ["safe", "balanced", "fast"]
    values = [goal.value for goal in TIERS.values()]
    assert values == sorted(values)
    assert {goal.kind for goal in TIERS.values()} == {"kl"}
    assert TunePlan(prompts=PROMPTS).goals == default_goals(None) == TIERS


def test_with_questions_the_tiers_are_in_right_answers() -> None:
    """The same names, the least loss first."""
    goals = default_goals(["a question"])
    assert goals == TIERS_BY_ANSWERS
    assert list(goals) == list(TIERS)
    assert {goal.kind for goal in goals.values()} == {"loss"}
    assert sorted(goals.values(), key=lambda goal: goal.value) == list(goals.values())
