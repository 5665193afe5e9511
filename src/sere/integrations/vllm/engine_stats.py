"""What re-routing did in an engine: the workers' answers combined, and a line for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from sere.errors import UnsupportedEngine
from sere.flatten import Flattening
from sere.integrations.vllm.reasons import why_engine_changed_nothing
from sere.integrations.vllm.step_counts import SKIPPED
from sere.reroute.stats import LayerStats, layer_stats


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What re-routing did in an engine since its start or the last reset.

    Attributes:
        enabled: Whether re-routing is on at present.
        settings: The current settings, JSON-ready; ``tier`` is the table's tier that they come from.
        steps_rerouted: Steps with at least one row that could be re-routed. With S >= K they are counted and
            change nothing: ``slots_rerouted`` of the layers is 0.
        skipped: The other steps, by reason: ``prompts`` only; ``protected``, requests with ``"off"`` only;
            ``disabled``, while switched off; ``unknown``, where it was not known which rows belong to which
            request.
        layers: The MoE layers.
        kernel: Class name of the expert kernel, or None where it cannot be told.
        expert_bytes: Bytes of one routed expert's weights in one worker, or None where they cannot be told.
        nothing_changed: One sentence that says why nothing was re-routed, in the entire model or in some
            layers; None where something was re-routed, or nothing was meant to be: switched off, no step,
            counting only.
        count_only: Whether experts are counted and none is re-routed at present.
        layer_settings: The current settings by layer, JSON-ready: S, ρ, and M as points (rows, M).
        request_tiers: The tiers that requests may ask for.
        steps_by_tier: Of the re-routed steps, those in which a request asked for a tier, by its name.
        flattening: Whether steps compute only the pairs of a row and an expert that carry weight.
    """

    enabled: bool
    settings: Mapping[str, Any]
    steps_rerouted: int
    skipped: Mapping[str, int]
    layers: tuple[LayerStats, ...]
    kernel: str | None = None
    expert_bytes: int | None = None
    nothing_changed: str | None = None
    count_only: bool = False
    layer_settings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    request_tiers: tuple[str, ...] = ()
    steps_by_tier: Mapping[str, int] = field(default_factory=dict)
    flattening: Flattening = field(default_factory=Flattening)

    @property
    def steps_skipped(self) -> int:
        """Steps without a row to re-route."""
        return sum(self.skipped.values())

    def to_mapping(self) -> dict[str, Any]:
        """Return the same as a JSON-ready mapping."""
        return asdict(self) | {"steps_skipped": self.steps_skipped}


def join_answers(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the workers' answers: tensor-parallel ranks repeat each other, pipeline-parallel ranks add up.

    Args:
        answers: What each worker's ``sere_stats`` returned.

    Raises:
        UnsupportedEngine: There is no answer.
    """
    if not answers:
        raise UnsupportedEngine("no worker answered; is re-routing active in this engine?")
    layers = {layer["index"]: layer for answer in answers for layer in answer["layers"]}
    # A stage may have no MoE layers, and so no kernel.
    known = {
        name: next((answer[name] for answer in answers if answer[name] is not None), None)
        for name in ("kernel", "expert_bytes")
    }
    largest = {name: max(answer[name] for answer in answers) for name in ("top_k", "num_experts")}
    return dict(answers[0]) | {"layers": [layers[index] for index in sorted(layers)]} | largest | known


def merge_answers(answers: Sequence[Mapping[str, Any]]) -> EngineStats:
    """Turn the workers' answers into the engine's statistics.

    Args:
        answers: What each worker's ``sere_stats`` returned.

    Raises:
        UnsupportedEngine: There is no answer.
    """
    joined = join_answers(answers)
    return EngineStats(
        enabled=joined["enabled"],
        settings=joined["settings"],
        steps_rerouted=joined["steps"]["rerouted"],
        skipped={name: joined["steps"][name] for name in SKIPPED},
        layers=tuple(
            layer_stats(layer["index"], layer["name"], layer["counters"]) for layer in joined["layers"]
        ),
        kernel=joined["kernel"],
        expert_bytes=joined["expert_bytes"],
        nothing_changed=why_engine_changed_nothing(joined),
        count_only=joined["count_only"],
        layer_settings={layer["index"]: layer["settings"] for layer in joined["layers"]},
        request_tiers=tuple(joined["request_tiers"]),
        steps_by_tier=joined["steps"]["by_tier"],
        flattening=Flattening.of(**joined["flatten"], counts=[layer["pairs"] for layer in joined["layers"]]),
    )


def log_line(stats: EngineStats) -> str:
    """Return one line for the engine's log: means over the layers."""
    active = [layer for layer in stats.layers if layer.steps]
    if not active:
        return f"no step re-routed, {stats.steps_skipped} skipped"
    return (
        f"{stats.steps_rerouted} steps re-routed, {stats.steps_skipped} skipped; per layer and step "
        f"{fmean(layer.rows for layer in active):.1f} rows, experts "
        f"{fmean(layer.distinct_before for layer in active):.1f} -> "
        f"{fmean(layer.distinct_after for layer in active):.1f}, "
        f"{100 * fmean(layer.slots_rerouted for layer in active):.0f} % of slots re-routed, "
        f"{fmean(layer.critical for layer in active):.1f} critical experts kept; "
        f"{stats.flattening.describe()}"
    )
