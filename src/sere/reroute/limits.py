"""What bounds a layer's steps (S, M, the least gain): from the settings to the numbers that kernels read."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

import torch
from torch import Tensor

from sere.config import MOST_INT, ActiveExperts, LayerSettings
from sere.errors import ConfigError
from sere.reroute.constants import GAIN_UNITS, LIMIT_ROWS

# The points of ``"auto"`` without tiers: at 1, 2, 4, ... 256 rows, each time by 3/4 of K more, rounded up.
# What it costs in right answers is in docs/measurements.md, "Which experts a step reads".
_DOUBLINGS = range(9)
# With so few experts each carries much of every step, and the formula does not know how much.
_FEW_EXPERTS = 8


def auto_active_experts(num_experts: int, top_k: int) -> tuple[tuple[int, int], ...]:
    """Return what ``active_experts="auto"`` means for a layer that nobody has tuned, as points (rows, M).

    Args:
        num_experts: E.
        top_k: K.

    Source: docs/method.md section 4, "How many experts".
    """
    if num_experts <= _FEW_EXPERTS:
        return ((1, num_experts),)
    return tuple((2**n, min(num_experts, -(-top_k * (4 + 3 * n) // 4))) for n in _DOUBLINGS)


def active_by_rows(active_experts: ActiveExperts, num_experts: int, top_k: int | None = None) -> list[int]:
    """Return M for a step of 1, 2, ... ``LIMIT_ROWS`` rows.

    Args:
        active_experts: The setting; see `RerouteConfig`.
        num_experts: E.
        top_k: K; needed for ``"auto"`` only.

    Returns:
        ``LIMIT_ROWS`` numbers from 0 to E. Between two points M is interpolated, and rounded up.

    Raises:
        ConfigError: The setting is ``"auto"`` and K is not known.
    """
    if isinstance(active_experts, str):
        if top_k is None:
            raise ConfigError(
                'active_experts: "auto" depends on the slots per token (K); give top_k or a number'
            )
        active_experts = auto_active_experts(num_experts, top_k)
    if isinstance(active_experts, float):
        active_experts = max(1, round(active_experts * num_experts))
    points = active_experts if isinstance(active_experts, tuple) else ((1, int(active_experts)),)
    return list(_by_rows(points, num_experts))


# All layers of a model have the same few settings, and an engine that changes them waits for this.
@lru_cache(maxsize=256)
def _by_rows(points: tuple[tuple[int, int], ...], num_experts: int) -> tuple[int, ...]:
    return tuple(min(num_experts, _interpolated(points, rows)) for rows in range(1, LIMIT_ROWS + 1))


def layer_limits(
    settings: LayerSettings, num_experts: int, top_k: int | None = None, *, least_active: int = 0
) -> Tensor:
    """Return the limits of one layer, as kernels read them.

    Args:
        settings: The layer's own settings.
        num_experts: E.
        top_k: K; needed for ``active_experts="auto"`` only.
        least_active: M is at least this, whatever the settings say, but at most E.

    Returns:
        ``[LIMITS]``, int32, on the host: S, then M for a step of 1, 2, ... rows, then -τ in units of 2⁻³⁰.

    Raises:
        ConfigError: ``active_experts`` is ``"auto"`` and K is not known.
    """
    least = min(least_active, num_experts)
    most = [max(least, M) for M in active_by_rows(settings.active_experts, num_experts, top_k)]
    least_gain = -round(settings.min_gain * GAIN_UNITS)
    return torch.tensor([settings.select_top_k, *most, least_gain], dtype=torch.int32, device="cpu")


def exact_rows(limits: Tensor, num_experts: int, top_k: int) -> int:
    """Return up to how many rows a step surely re-routes nothing: all experts that can occur are primary.

    It holds if no row is padding, and then for fewer rows as well; of one row always. Protected rows do not
    count: they take none of M.

    Args:
        limits: As `layer_limits` returns them.
        num_experts: E.
        top_k: K.

    Returns:
        0 if one row can be re-routed; ``MOST_INT`` if none ever is.

    Source: docs/method.md section 4, "What never changes".
    """
    by_rows: list[int] = limits[1 : 1 + LIMIT_ROWS].tolist()
    last = by_rows[-1]
    if min(by_rows) >= num_experts:
        return MOST_INT
    fits = [most >= min(num_experts, rows * top_k) for rows, most in enumerate(by_rows, 1)]
    if not all(fits):
        return fits.index(False)
    return MOST_INT if last >= num_experts else last // top_k


def _interpolated(points: tuple[tuple[int, int], ...], rows: int) -> int:
    # The first point at this many rows or more.
    after = bisect_left(points, (rows,))
    if after == 0:
        return points[0][1]
    if after == len(points):
        return points[-1][1]
    (r0, m0), (r1, m1) = points[after - 1], points[after]
    # Rounded up, in integers.
    return m0 - (-(m1 - m0) * (rows - r0) // (r1 - r0))
