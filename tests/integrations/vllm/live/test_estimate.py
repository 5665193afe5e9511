"""The estimate from bytes of weights."""

from __future__ import annotations

import pytest

from sere.integrations.vllm.live.estimate import speedup
from sere.tune.speed import StepBytes


def test_as_tuning_estimates_it() -> None:
    """The same number as that of `sere tune` for the same bytes."""
    size = StepBytes(rest=1000, expert=70, layers=2)
    assert speedup([(12, 5), (10, 6)], 70, 1000) == pytest.approx(size.speedup(11, 5.5))


@pytest.mark.parametrize(
    ("layers", "expert", "rest"),
    [([], 70, 1000), ([(8, 4)], None, 1000), ([(8, 4)], 70, None), ([(0, 0)], 70, 0)],
    ids=["no layer", "no expert", "no rest", "no bytes"],
)
def test_nothing_is_claimed(layers: list[tuple[float, float]], expert: int | None, rest: int | None) -> None:
    """Without steps or sizes there is no estimate."""
    assert speedup(layers, expert, rest) is None
