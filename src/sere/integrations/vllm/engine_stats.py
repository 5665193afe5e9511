"""Read what re-routing did: from Python, as a log line, and as Prometheus metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.client.rpc import ask_workers
from sere.integrations.vllm.reasons import why_engine_changed_nothing
from sere.integrations.vllm.worker.step_counts import PASSED
from sere.reroute.stats import LayerStats, layer_stats

if TYPE_CHECKING:
    from sere.integrations.vllm.worker.state import Session

logger = logging.getLogger("vllm.sere")

READ = "sere_stats"
"""Name of the worker's method, for ``collective_rpc``."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What re-routing did in an engine since its start or the last reset.

    Attributes:
        enabled: Whether steps are re-routed at present.
        settings: The settings that hold, JSON-ready.
        steps_rerouted: Steps with at least one row to re-route. With S >= K they are counted and change
            nothing: ``slots_rerouted`` of the layers is 0.
        passed: Steps without, by reason: ``prompts`` only; ``protected``, requests with ``"off"`` only;
            ``disabled``, while switched off; ``unknown``, where it was not known whose rows are where.
        layers: The MoE layers.
        kernel: Class name of the expert kernel, or None where it cannot be told.
        expert_bytes: Bytes of one routed expert's weights in one worker, or None where they cannot be told.
        nothing_changed: One sentence that says why nothing was re-routed, in the whole model or in some
            layers; None where something was, or nothing was to be: switched off, no step, counting only.
    """

    enabled: bool
    settings: Mapping[str, Any]
    steps_rerouted: int
    passed: Mapping[str, int]
    layers: tuple[LayerStats, ...]
    kernel: str | None = None
    expert_bytes: int | None = None
    nothing_changed: str | None = None

    @property
    def steps_passed(self) -> int:
        """Steps without a row to re-route."""
        return sum(self.passed.values())

    def to_mapping(self) -> dict[str, Any]:
        """Return the same as a JSON-ready mapping."""
        return asdict(self) | {"steps_passed": self.steps_passed}


def read_stats(llm: Any, *, reset: bool = False) -> EngineStats:
    """Read the statistics of a running engine; this is where the host waits for the device.

    Args:
        llm: vLLM's ``LLM`` (or anything with its ``collective_rpc``).
        reset: Set all counters to zero after reading.

    Raises:
        UnsupportedEngine: Re-routing is not active in this engine.
    """
    return merged(ask_workers(llm, READ, reset))


def joined(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one answer of the workers': ranks of tensor parallelism repeat, of pipeline parallelism add.

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


def merged(answers: Sequence[Mapping[str, Any]]) -> EngineStats:
    """Turn the workers' answers into the engine's statistics.

    Raises:
        UnsupportedEngine: There is no answer.
    """
    whole = joined(answers)
    passed = {name: whole["steps"][name] for name in PASSED}
    return EngineStats(
        enabled=whole["enabled"],
        settings=whole["settings"],
        steps_rerouted=whole["steps"]["rerouted"],
        passed=passed,
        layers=tuple(layer_stats(**layer) for layer in whole["layers"]),
        kernel=whole["kernel"],
        expert_bytes=whole["expert_bytes"],
        nothing_changed=why_engine_changed_nothing(whole),
    )


def answer(session: Session, *, reset: bool = False) -> dict[str, Any]:
    """Return a worker's answer to ``sere_stats``: plain numbers, for they travel between processes."""
    counters = {layer: layer.counters for layer in session.layers.values() if layer.counters is not None}
    # One copy for all layers, because it waits for the device.
    copied = torch.stack(list(counters.values())).tolist() if counters else []
    layers = [
        {"index": layer.index, "name": layer.name, "counters": sums}
        for layer, sums in zip(counters, copied, strict=True)
    ]
    found = {
        "enabled": session.enabled,
        "settings": session.config.to_mapping(),
        "steps": session.counts.to_mapping(),
        "layers": layers,
        "top_k": max((layer.top_k for layer in session.layers.values()), default=0),
        "num_experts": max((layer.num_experts for layer in session.layers.values()), default=0),
        "kernel": session.kernel,
        "expert_bytes": session.expert_bytes(),
    }
    if reset:
        session.guard.carry(found)
        session.reset_counters()
    return found


def log_line(stats: EngineStats) -> str:
    """Return one line for the engine's log: means over the layers."""
    active = [layer for layer in stats.layers if layer.steps]
    if not active:
        return f"no step re-routed, {stats.steps_passed} passed"
    return (
        f"{stats.steps_rerouted} steps re-routed, {stats.steps_passed} passed; per layer and step "
        f"{fmean(layer.rows for layer in active):.1f} rows, experts "
        f"{fmean(layer.distinct_before for layer in active):.1f} -> "
        f"{fmean(layer.distinct_after for layer in active):.1f}, "
        f"{100 * fmean(layer.slots_rerouted for layer in active):.0f} % of slots re-routed, "
        f"{fmean(layer.critical for layer in active):.1f} critical experts kept"
    )
