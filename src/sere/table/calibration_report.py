"""What a table says of its own calibration: tokens, experts that were never routed, stability, regime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sere.errors import name_some
from sere.table.artifact import SimilarityTable
from sere.table.neighbors import describe_regime
from sere.table.tiers import DEFAULT_TIER

# Below this share of equal neighbors, more tokens are worth their time.
_STABLE = 0.9
_NO_SENSITIVITY = (
    "how sensitive the model is to each expert was not measured, because vLLM computes no gradients; all "
    "experts of a layer count alike when the primary set is filled"
)


def never_routed(table: SimilarityTable) -> dict[int, int]:
    """Return how many experts no calibration token was routed to, by decoder-layer index, but for zeros.

    Without a routing sample, that is not known, and there is no entry.
    """
    energies = {} if table.routing is None else table.routing.energy
    counts = {index: int(energy.isnan().sum()) for index, energy in energies.items()}
    return {index: count for index, count in counts.items() if count}


def stability_of(table: SimilarityTable) -> Mapping[str, Any] | None:
    """Return what the table's provenance has of two halves of the tokens; None if that was not recorded."""
    found = _made(table).get("stability")
    return found if isinstance(found, Mapping) else None


def skipped_rows(table: SimilarityTable) -> Mapping[str, int] | None:
    """Return how many rows of the texts were ``read`` and ``skipped``; None if no skipped one is known."""
    found = _made(table).get("rows")
    return found if isinstance(found, Mapping) else None


def _made(table: SimilarityTable) -> Mapping[str, Any]:
    """Return what the table's provenance has of its calibration; empty if it has nothing."""
    made = table.provenance.get("calibration")
    return made if isinstance(made, Mapping) else {}


def calibration_report(table: SimilarityTable) -> tuple[str, ...]:
    """Return a sentence each on tokens, experts never routed, stability, regime and the default settings.

    So it does on rows of texts that were skipped. What is not known is left out.
    """
    lines = []
    if table.calibration_tokens:
        texts = _made(table).get("texts")
        lines.append(f"{table.calibration_tokens:,} tokens" + (f", {texts}" if texts else ""))
    if (rows := skipped_rows(table)) is not None:
        what = "which hold no text (null or blank)"
        lines.append(f"{rows['skipped']:,} of {rows['read']:,} rows of the texts were skipped, {what}")
    if table.routing is not None:
        lines.append(_never_routed(table))
    if (found := stability_of(table)) is not None:
        lines.append(_stability(found, table.calibration_tokens))
    if _made(table).get("engine") == "vllm" and all(
        layer.sensitivity is None for layer in table.layers.values()
    ):
        lines.append(_NO_SENSITIVITY)
    lines.append(describe_regime(table.layers, table.metric))
    lines.extend(_defaults(table))
    return tuple(lines)


def _defaults(table: SimilarityTable) -> Iterator[str]:
    """Yield what the estimated settings read, if there are any."""
    tier = table.tiers.get(DEFAULT_TIER)
    measured = None if tier is None else tier.evidence.get("by_batch_size")
    if tier is None or not isinstance(measured, Mapping) or "estimated_from" not in tier.evidence:
        return
    numbers = "; ".join(
        f"{measured[B]['experts_before']:.0f} > {measured[B]['experts_after']:.0f} at {B} rows"
        for B in ("8", "32", "128")
    )
    yield (
        f"experts per layer and step with the default settings (tier {DEFAULT_TIER}, estimated; sere tune "
        f"measures): {numbers}"
    )


def _never_routed(table: SimilarityTable) -> str:
    counts = never_routed(table)
    total = sum(table.identity.experts.values())
    if not counts:
        return f"each of {total:,} experts was routed to"
    what = (
        "they are never replaced, because how well others replace them is not known; more texts, or texts of "
        "other kinds, may reach them"
        if table.metric == "projection"
        else f"they are compared all the same, because {table.metric} measures every expert on every token"
    )
    where = name_some([f"{count} in layer {index}" for index, count in counts.items()])
    return f"no token was routed to {sum(counts.values()):,} of {total:,} experts ({where}): {what}"


def _stability(found: Mapping[str, Any], tokens: int) -> str:
    agree, lost = float(found["agree"]), float(found["lost"])
    text = (
        f"two halves of the tokens choose the same nearest neighbor for {100 * agree:.0f} % of "
        f"{found['experts']:,} experts; a half's choice is {lost:.4f} less similar than the best one"
    )
    if agree >= _STABLE:
        return text
    # What is left to chance falls with the square root of the tokens.
    times = ((1 - agree) / (1 - _STABLE)) ** 2
    return f"{text}; for {100 * _STABLE:.0f} % expect to need {times * tokens:,.0f} tokens (max_tokens)"
