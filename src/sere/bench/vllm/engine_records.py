"""The records of timed engines: one per load and way to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from sere.bench.timing import Times, spread
from sere.bench.vllm.blocks import EngineBlock
from sere.bench.vllm.engine_loads import EngineLoad
from sere.bench.vllm.serve_plan import bytes_read


@dataclass(frozen=True, slots=True)
class MeasuredLoad:
    """What one engine showed under one load, over all visits.

    Attributes:
        described: What ``Session.describe`` said at the last visit.
        counts: By way to run it, what ``Session.count`` said.
        blocks: By way to run it, the timed blocks.
    """

    described: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, Any]]
    blocks: Mapping[str, Sequence[EngineBlock]]

    @classmethod
    def of_cells(cls, cells: Sequence[Mapping[str, Any]]) -> MeasuredLoad:
        """Join the cells of all visits."""
        blocks: dict[str, list[EngineBlock]] = {}
        for cell in cells:
            for label, found in cell["blocks"].items():
                blocks.setdefault(label, []).extend(map(EngineBlock.from_json, found))
        return cls(cells[-1]["described"], cells[0]["counts"], blocks)

    @property
    def first(self) -> str:
        """The first way to run it: ``off``, or ``vanilla``."""
        return next(iter(self.blocks))

    def times(self, label: str, load: EngineLoad) -> Times:
        """Return what the load times, round by round."""
        return Times([block.values(load.measure) for block in self.blocks[label]])


def record_of(
    measured: MeasuredLoad,
    label: str,
    load: EngineLoad,
    *,
    subject: Mapping[str, Any],
    config: Mapping[str, Any],
    baseline: Times | None,
    vanilla: Times | None,
    complete_model: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the record of one way to run an engine under one load.

    Args:
        measured: What the engine showed.
        label: The way.
        load: The load.
        subject: What a reader must know of the model.
        config: How it was timed.
        baseline: Times of ``off``.
        vanilla: Times of the engine that never loaded the plug-in.
        complete_model: What two depths say of the complete model, or None.
    """
    blocks, mine = measured.blocks[label], measured.times(label, load)
    subject = dict(subject) | measured.described["subject"]
    counts = measured.counts[label]
    steps = [ms for block in blocks for ms in block.step_ms]
    firsts = [ms for block in blocks for ms in block.ttft_ms]
    return {
        "format": "sere-bench-serve-4",
        "unit": "ms",
        "case": f"{load.label} {label}",
        "setting": label,
        "load": load.label,
        "measure": load.measure,
        "batch_size": len(load.requests),
        "time_ms": asdict(mine.tpot_ms()),
        "tpot_ms": asdict(spread(steps)) if steps else None,
        "ttft_ms": asdict(spread(firsts)),
        "tokens_per_s": asdict(spread([1e3 * load.new_tokens / block.total_ms for block in blocks])),
        "speedup": None if baseline is None else asdict(mine.speedup_over(baseline)),
        "speedup_over_vanilla": None if vanilla is None else asdict(mine.speedup_over(vanilla)),
        "complete_model": complete_model,
        "expert_bytes_per_step": bytes_read(counts["experts"], subject),
        **counts,
        "rounds_ms": [median(block) for block in mine.blocks],
        "config": dict(config),
        "subject": subject,
        "provenance": dict(measured.described["provenance"]),
    }
