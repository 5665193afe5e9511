"""What the layers read of S and M in a step: the engine's settings, or those of requests' tiers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sere.config import MOST_INT
from sere.integrations.vllm.tiers import OFF
from sere.integrations.vllm.worker.step_limits import Choice, StepLimits
from sere.reroute.constants import LIMITS

TIERS = ("safe", "fast")


def filled(layers: int = 3) -> tuple[StepLimits, dict[Choice, torch.Tensor]]:
    limits = StepLimits(layers, TIERS, torch.device("cpu"))
    values: dict[Choice, torch.Tensor] = {
        name: torch.randint(0, 64, (layers, LIMITS), dtype=torch.int32) for name in (None, *TIERS)
    }
    limits.write(values, values, {None: 1, "safe": 3, "fast": 2})
    return limits, values


@given(st.lists(st.sets(st.sampled_from([None, *TIERS]), min_size=1), min_size=1, max_size=6))
def test_the_most_careful_of_those_asked_for(steps: list[set[Choice]]) -> None:
    """Each number is the largest of what the step's requests ask for, always at the same address."""
    limits, values = filled()
    address = limits.tensor.data_ptr()
    for asked in steps:
        limits.choose(frozenset(asked))
        assert torch.equal(limits.tensor, torch.stack([values[name] for name in asked]).amax(0))
        assert limits.exact_rows(frozenset(asked)) == max(
            {None: 1, "safe": 3, "fast": 2}[name] for name in asked
        )
        least = max(int(values[name][:, 0].min()) for name in asked)
        assert limits.least_select_top_k(frozenset(asked)) == least <= limits.tensor[:, 0].min()
    assert limits.tensor.data_ptr() == address


def test_a_step_like_the_one_before_writes_nothing() -> None:
    """Only another set of tiers, or other settings, cost a copy."""
    limits, values = filled()
    limits.choose(frozenset({None}))
    version = limits.tensor._version
    limits.choose(frozenset({None}))
    assert limits.tensor._version == version
    limits.choose(frozenset({None, "fast"}))
    limits.choose(frozenset({None}))
    assert torch.equal(limits.tensor, values[None])
    limits.write({None: values["safe"]}, {None: values["safe"]}, {None: 3})
    limits.choose(frozenset({None}))
    assert torch.equal(limits.tensor, values["safe"])


def test_a_step_that_only_counts() -> None:
    """``OFF`` has an S that keeps every slot of every row."""
    limits, _ = filled()
    limits.choose(frozenset({OFF}))
    assert limits.tensor[:, 0].tolist() == [MOST_INT] * 3
    assert limits.least_select_top_k(frozenset({OFF})) == MOST_INT


def test_a_stage_without_layers() -> None:
    """Where a process has no layers there is nothing to write, and nothing fails."""
    limits, _ = filled(0)
    limits.choose(frozenset({"safe", None}))
    assert limits.tensor.shape == (0, LIMITS)


def test_limits_are_written_in_inference_mode_too() -> None:
    """Steps run in inference mode, and settings may change outside of it."""
    with torch.inference_mode():
        limits, values = filled()
        limits.choose(frozenset({"safe", "fast"}))
    limits.choose(frozenset({"fast"}))
    assert torch.equal(limits.tensor, values["fast"])


def test_a_step_that_computes_all_slots() -> None:
    """It has limits of its own; a step that skips slots again has the others."""
    limits, values = filled()
    others = {name: one + 1 for name, one in values.items()}
    limits.write(values, others, {None: 1, "safe": 3, "fast": 2})
    for all_slots, expected in ((True, others), (False, values), (True, others)):
        limits.choose(frozenset({None}), all_slots=all_slots)
        assert torch.equal(limits.tensor, expected[None])
    limits.choose(frozenset({OFF}), all_slots=True)
    assert limits.tensor[:, 0].tolist() == [MOST_INT] * 3
    assert limits.least_select_top_k(frozenset({OFF})) == MOST_INT
