"""How many experts settings of SERE leave, told in one line: tier, S, ρ, and M by the rows of a step."""

from __future__ import annotations

from collections.abc import Iterable

from sere.identity import span
from sere.policies.base import LayerShape
from sere.policies.sere import Sere

_ROWS = (1, 8, 32, 128)


def how_many(sere: Sere, shapes: Iterable[LayerShape]) -> str:
    """Return tier, S, ρ and M, each as one number or as its range over the layers.

    Args:
        sere: The rule.
        shapes: Layers of the model, at least one.

    Returns:
        Such as ``"tier balanced, S=1, rho=0, M=8, 23 to 25, 32, 44 at 1, 8, 32, 128 rows"``.
    """
    limits = {shape.index: sere.limits(shape).tolist() for shape in shapes}
    thresholds = sorted({sere.config.for_layer(index).threshold for index in limits})
    # S comes first, so that M is found at the number of rows.
    S = span(own[0] for own in limits.values())
    most = [span(own[rows] for own in limits.values()) for rows in _ROWS]
    rho = " to ".join(f"{one:g}" for one in dict.fromkeys((thresholds[0], thresholds[-1])))
    M = most[0] if len({*most}) == 1 else f"{', '.join(most)} at {', '.join(map(str, _ROWS))} rows"
    tier = "no tier" if sere.config.tier is None else f"tier {sere.config.tier}"
    return f"{tier}, S={S}, rho={rho}, M={M}"
