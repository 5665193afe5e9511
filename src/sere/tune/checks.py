"""What a tuning refuses before long work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sere.errors import ConfigError, InputError
from sere.tune.plan import Half, TunePlan
from sere.tune.simulate import Simulated
from sere.tune.speed import Speed


def measurable(plan: TunePlan, halves: Mapping[Half, Sequence[int]]) -> list[int]:
    """Return the batch sizes that each half of the prompts can fill.

    Raises:
        InputError: There is none.
    """
    count = min(map(len, halves.values()))
    rows = [B for B in plan.batch_sizes if count >= B]
    if not rows:
        raise InputError(
            f"prompts: expected at least {2 * plan.batch_sizes[0]} different ones for steps of "
            f"{plan.batch_sizes[0]} rows, half of them to verify; got {sum(map(len, halves.values()))}"
        )
    return rows


def check_reach(plan: TunePlan, simulated: Mapping[int, Simulated], speed: Speed) -> None:
    """Refuse, before long work, a speedup that no number of experts gives, in the time or bytes that count.

    Raises:
        ConfigError: One is out of reach at the largest batch size; the text says what could be had.
    """
    rows = plan.batch_sizes[-1]
    best = max(speed.times(rows, one) for one in simulated[rows].values())
    what = (
        "read at most {:.2f}x fewer bytes of weights"
        if speed.ceilings is None
        else ("be at most {:.2f}x faster on this machine, by its predicted time")
    )
    for name, goal in plan.goals.items():
        if goal.kind == "speedup" and goal.value > best:
            raise ConfigError(
                f"tier {name}: a step of {rows} rows can {what.format(best)}, even with the fewest experts; "
                f"got a speedup of {goal.value:g}"
            )
