"""What records of evaluations, timings and generations all say: the table that was used, the experts read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sere.integrations.transformers import Handle
    from sere.reroute.stats import LayerStats
    from sere.table import SimilarityTable

_MEANS = ("distinct_before", "distinct_after", "slots_rerouted", "slots_computed", "critical")


def summarize_table(table: SimilarityTable) -> dict[str, Any]:
    """Return what a record says of a similarity table: digest, metric, and tokens of its calibration."""
    names = ("fingerprint", "metric", "calibration_tokens")
    return {name: getattr(table, name) for name in names}


def summarize_handle(handle: Handle) -> dict[str, Any]:
    """Return what re-routing did since it was applied.

    Returns:
        ``experts``: as `summarize_layers`; ``nothing_changed``: why no slot was re-routed, or None.
    """
    return {"experts": summarize_layers(handle.stats()), "nothing_changed": handle.why_nothing_changed()}


def summarize_layers(stats: Sequence[LayerStats]) -> dict[str, Any]:
    """Return means over the layers that ran, with the layers' own values beside them.

    Args:
        stats: One entry per layer.

    Returns:
        ``distinct_before``, ``distinct_after`` and ``critical``: experts per layer and step;
        ``slots_rerouted`` and ``slots_computed``: shares of the slots, in [0, 1]. Each is None where no
        layer ran. ``layers``: the same values per layer, with its ``index``.
    """
    layers = [
        {"index": layer.index, **{name: getattr(layer, name) for name in _MEANS}}
        for layer in stats
        if layer.steps
    ]
    means = {name: fmean(layer[name] for layer in layers) if layers else None for name in _MEANS}
    return means | {"layers": layers}


def pairs(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as ``name=value``."""
    return [f"{name}={value}" for name, value in settings.items()]
