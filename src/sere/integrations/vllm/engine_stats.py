"""What re-routing did in an engine: the workers' answers combined, and a line for the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from sere.errors import EngineError, UnsupportedEngine
from sere.flatten import Flattening
from sere.integrations.vllm.reasons import why_engine_changed_nothing
from sere.integrations.vllm.step_counts import SKIPPED, counted_together
from sere.reroute.stats import LayerStats, layer_stats


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What re-routing did in an engine since its start or the last reset, in all data-parallel ranks.

    Attributes:
        enabled: Whether re-routing is on at present.
        settings: The current settings, JSON-ready; ``tier`` is the table's tier that they come from.
        steps_rerouted: Steps with at least one row that could be re-routed.
        skipped: The other steps, by reason: ``prompts`` only; ``protected``, requests that keep all their
            experts, by ``"off"`` or S >= K; ``few_rows``, so few that all their experts fit into M;
            ``mixed``, requests decoded beside so many rows of prompts that nearly every expert was needed
            anyway; ``disabled``, while switched off; ``unknown``, where it was not known which rows belong
            to which request.
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
        """Steps that were left alone, whatever the reason."""
        return sum(self.skipped.values())

    def to_mapping(self) -> dict[str, Any]:
        """Return the same as a JSON-ready mapping."""
        return asdict(self) | {"steps_skipped": self.steps_skipped}


def disagreement(fingerprints: Sequence[Mapping[str, Any]]) -> str | None:
    """Return one sentence that says that ranks hold different settings, or None if they do not.

    Args:
        fingerprints: Of all ranks, in their order: ``"common"``, and one by layer.
    """
    seen: dict[Any, tuple[str, int]] = {}
    for rank, found in enumerate(fingerprints):
        for what, value in (("the engine", found["common"]), *found["layers"].items()):
            first, other = seen.setdefault(what, (value, rank))
            if first != value:
                where = what if what == "the engine" else f"layer {what}"
                return f"the ranks {other} and {rank} have different settings or tables for {where}"
    return None


def check_answers(answers: Sequence[Mapping[str, Any]]) -> None:
    """Refuse answers that cannot be combined.

    Args:
        answers: What a method returned in each worker, the worker's ``"fingerprint"`` among it.

    Raises:
        UnsupportedEngine: There is no answer, or a worker refused.
        EngineError: A worker failed, or the workers hold different settings.
    """
    if not answers:
        raise UnsupportedEngine("no worker answered; is re-routing active in this engine?")
    for answer in answers:
        if "failure" in answer:
            raise EngineError(f"{answer['failure']}; the engine's log has the rest")
        if "error" in answer:
            raise UnsupportedEngine(str(answer["error"]))
    if (difference := disagreement([answer["fingerprint"] for answer in answers])) is not None:
        raise EngineError(f"{difference}: tokens may be wrong; restart the engine")


def join_answers(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the workers' answers as `layers_of` says, and what else they counted.

    Args:
        answers: What each worker's ``sere_stats`` returned.

    Raises:
        UnsupportedEngine: There is no answer.
        EngineError: A worker failed, or the workers hold different settings.
    """
    check_answers(answers)
    replicas: dict[int, Mapping[str, Any]] = {}
    for answer in answers:
        rank, counts = answer["data_parallel_rank"], answer["steps"]
        # Stages of a pipeline have other layers, of which those of one may keep all experts.
        if rank not in replicas or counts["rerouted"] > replicas[rank]["rerouted"]:
            replicas[rank] = counts
    steps = counted_together(list(replicas.values()))
    layers = _layers(answers)
    # A stage may have no MoE layers, and so no kernel, and settings that were fitted to none.
    first = next((answer for answer in answers if answer["layers"]), answers[0])
    known = {
        name: next((answer[name] for answer in answers if answer[name] is not None), None)
        for name in ("kernel", "expert_bytes")
    }
    largest = {name: max(answer[name] for answer in answers) for name in ("top_k", "num_experts")}
    known["rest_bytes"] = _rest_bytes(answers)
    known["flatten"] = _flatten(answers)
    return dict(first) | {"layers": layers, "steps": steps} | largest | known


def _flatten(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the workers say of pairs: each stage has its own kinds of layers."""
    said = [answer["flatten"] for answer in answers]
    break_even = {kind: points for one in said for kind, points in one.get("break_even", {}).items()}
    why_not = next((one["why_not"] for one in said if one["why_not"] is not None), None)
    return {**said[0], "break_even": break_even, "why_not": why_not}


def _rest_bytes(answers: Sequence[Mapping[str, Any]]) -> int | None:
    """Return what one rank of each pipeline stage reads besides routed experts: a step passes all stages."""
    stages = {tuple(layer["index"] for layer in answer["layers"]): answer["rest_bytes"] for answer in answers}
    return None if None in stages.values() else sum(stages.values())


def layers_of(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the layers of all workers in their order, each as often as its ranks have other rows of it.

    Tensor-parallel ranks repeat each other, so that one of them stands for all. Pipeline-parallel ranks have
    other layers. Data-parallel ranks, and ranks that share a step's rows (sequence parallelism), have other
    rows of the same layers, whose counts add up.

    Args:
        answers: Of each worker, its ``"data_parallel_rank"`` and its ``"layers"``, each with ``"index"`` and
            ``"share"``.
    """
    found = {
        (layer["index"], answer["data_parallel_rank"], layer["share"]): layer
        for answer in answers
        for layer in answer["layers"]
    }
    return [layer for _, layer in sorted(found.items(), key=lambda item: item[0])]


def _layers(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each layer once, with what was counted on all its rows, and the re-routed steps of its stage."""
    rerouted: Counter[int] = Counter()
    for answer in answers:
        for layer in answer["layers"]:
            rerouted[layer["index"]] += answer["steps"]["rerouted"]
    layers: dict[int, dict[str, Any]] = {}
    for layer in layers_of(answers):
        zero = {"counters": [0] * len(layer["counters"]), "rerouted": rerouted[layer["index"]]}
        first = layers.setdefault(layer["index"], dict(layer) | zero)
        first["counters"] = [a + b for a, b in zip(first["counters"], layer["counters"], strict=True)]
    return list(layers.values())


def merge_answers(answers: Sequence[Mapping[str, Any]]) -> EngineStats:
    """Turn the workers' answers into the engine's statistics.

    Args:
        answers: What each worker's ``sere_stats`` returned.

    Raises:
        UnsupportedEngine: There is no answer.
        EngineError: A worker failed, or the workers hold different settings.
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
        f"{100 * fmean(layer.slots_computed for layer in active):.0f} % computed, "
        f"{fmean(layer.critical for layer in active):.1f} critical experts kept; "
        f"{stats.flattening.describe()}"
    )
