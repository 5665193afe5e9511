"""What a record of a tuning says: all that was simulated and measured, and on which texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.eval.digests import texts_digest
from sere.eval.text import Text
from sere.provenance import provenance
from sere.table import SimilarityTable, Tier
from sere.tune.layers import Layered
from sere.tune.measure import Meter
from sere.tune.plan import Half, TunePlan
from sere.tune.simulate import Simulated
from sere.tune.solve import Solution
from sere.tune.speed import Speed

FORMAT = "sere-tune-1"

# Numbers of experts at which a record shows what was simulated.
_GRID = 10


def about_texts(texts: Mapping[Half, Sequence[Text]], plan: TunePlan) -> dict[str, Any]:
    """Return what the evidence of every tier says beside its own numbers; JSON-ready.

    Args:
        texts: The prompts with their continuations, by half.
        plan: What was tuned.
    """
    return {
        "texts": {
            half: {
                "prompts": len(found),
                "tokens": sum(text.scored for text in found),
                "digest": texts_digest([" ".join(map(str, text.tokens)) for text in found]),
            }
            for half, found in texts.items()
        },
        "plan": plan.describe(),
        "interval": "two-sided 95 %, Student's t on a log scale, linearized variance between prompts",
        "provenance": provenance(),
    }


def make_record(
    table: SimilarityTable,
    tiers: Mapping[str, Tier],
    same: Solution,
    layered: Layered,
    meter: Meter,
    speed: Speed,
) -> dict[str, Any]:
    """Return the record of a tuning, but for what `about_texts` returns.

    Args:
        table: The table.
        tiers: What was found, by name.
        same: What was measured of plans in which all layers read the same number.
        layered: What was found of the layers.
        meter: Has the losses of these.
        speed: Compares steps.
    """
    identity, weights = table.identity, speed.weights
    return {
        "format": FORMAT,
        "model": {
            "name": identity.name,
            "digest": identity.digest,
            "num_experts": identity.num_experts,
            "top_k": identity.top_k,
        },
        "table": table.fingerprint,
        "bytes": {"rest": weights.rest_bytes, "expert": weights.expert_bytes, "layers": weights.layers},
        "ceilings": speed.about(),
        "simulated": shown(same.plans.expected),
        "measured": _measured(same, meter),
        "layers": {
            "sensitivities": None if layered.sensitivities is None else layered.sensitivities.describe(),
            "measured": None if layered.solution is None else _measured(layered.solution, meter),
        },
        "tiers": {name: tier.to_mapping() for name, tier in tiers.items()},
    }


def _measured(solution: Solution, meter: Meter) -> dict[str, Any]:
    """Return every measured loss on the tuning prompts, by rows and mean M."""
    found: dict[str, Any] = {}
    for B, curve in solution.curves.items():
        plans = {M: solution.plans.at(B, M) for M in sorted(curve.known)}
        found[str(B)] = {
            str(M): meter.loss("tuning", B, plan).describe()
            | ({} if isinstance(plan, int) else {"by_layer": list(plan)})
            for M, plan in plans.items()
        }
    return found


def shown(simulated: Mapping[int, Simulated]) -> dict[str, dict[str, dict[str, float]]]:
    """Return some of what was simulated as JSON-ready values: by rows and M, on a grid of M."""
    return {
        str(rows): {
            str(M): {name: round(value, 5) for name, value in cells[M]._asdict().items()}
            for M in grid(min(cells), max(cells))
        }
        for rows, cells in simulated.items()
    }


def grid(least: int, most: int, count: int = _GRID) -> list[int]:
    """Return whole numbers from ``least`` to ``most``, each about the same factor above the one before."""
    return sorted({round(least * (most / least) ** (i / (count - 1))) for i in range(count)})
