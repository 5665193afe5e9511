"""How often each expert of an engine was chosen and ran: the workers' answers combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from sere.integrations.vllm.engine_stats import check_answers, layers_of
from sere.reroute.expert_counts import ExpertCounts


def join_expert_counts(answers: Sequence[Mapping[str, Any]]) -> tuple[ExpertCounts, ...]:
    """Combine the workers' answers as `layers_of` says.

    Args:
        answers: What each worker's ``sere_expert_counts`` returned.

    Raises:
        UnsupportedEngine: There is no answer, or the workers do not count the uses of each expert.
        EngineError: A worker failed, or the workers hold different settings.
    """
    check_answers(answers)
    return tuple(
        _sum(list(parts)) for _, parts in groupby(layers_of(answers), key=lambda layer: layer["index"])
    )


def _sum(parts: Sequence[Mapping[str, Any]]) -> ExpertCounts:
    """Add up what was counted on different rows of one layer."""
    chosen, ran = (
        tuple(map(sum, zip(*(part["experts"][row] for part in parts), strict=True))) for row in (0, 1)
    )
    return ExpertCounts(parts[0]["index"], parts[0]["name"], chosen, ran)
