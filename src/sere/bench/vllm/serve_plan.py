"""What every timing of vLLM has in common: its settings, the engines that they need, the size of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sere.engines.settings import by_engine, is_served
from sere.errors import ConfigError
from sere.policies.spec import PolicySpec, check_off_first
from sere.progress import NO_PROGRESS, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """How engines or servers are timed.

    Attributes:
        settings: The ways to route; the first is ``off``, the baseline.
        prompt: Prompt tokens per request.
        steps: Decode steps per request.
        rounds: Timed blocks per variant, after one that is not timed.
        compiled: Whether the engines compile the model.
        engine_options: Options of vLLM that the user gave; for the record.
        seed: Seed of everything that is random.
    """

    settings: Sequence[PolicySpec]
    prompt: int = 32
    steps: int = 32
    rounds: int = 3
    compiled: bool = False
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    progress: Progress = field(default=NO_PROGRESS, repr=False)

    def __post_init__(self) -> None:
        check_off_first(self.settings)

    def groups(self) -> list[tuple[dict[str, Any], list[PolicySpec]]]:
        """Return for each engine the settings of its start and what takes turns in it.

        The first setting of each engine is ``off``, in the same engine: the baseline of its others.
        """
        off, *others = self.settings
        return [(start, [off, *group]) for start, group in by_engine(others)] or [({}, [off])]

    def config(self, engine: str, start: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a record says of the engine and the blocks; JSON-ready.

        Args:
            engine: What was timed.
            start: The settings of re-routing that it was started with, other than S, ρ and the table.
        """
        return {
            "engine": engine,
            "mode": "compiled" if self.compiled else "eager",
            "start": dict(start),
            "engine_options": dict(self.engine_options),
            "prompt": self.prompt,
            "steps": self.steps,
            "rounds": self.rounds,
            "seed": self.seed,
        }


def bytes_read(experts: Mapping[str, float] | None, subject: Mapping[str, Any]) -> int | None:
    """Return the bytes of expert weights that a step reads in all layers, or None if it is not known.

    Args:
        experts: Means over the layers' steps, with ``distinct_after``; None if nothing was counted.
        subject: With ``bytes_per_expert``, which may be None, and ``moe_layers``.
    """
    if experts is None or subject["bytes_per_expert"] is None:
        return None
    per_expert: int = subject["bytes_per_expert"]
    return round(experts["distinct_after"] * per_expert * int(subject["moe_layers"]))


def refuse_controls(settings: Sequence[PolicySpec], where: str) -> None:
    """Refuse settings that only an eager engine can run that we look into.

    Args:
        settings: ``off`` and others.
        where: What cannot run them.

    Raises:
        ConfigError: One is neither ``off`` nor a ``sere`` setting.
    """
    for setting in settings:
        if not is_served(setting):
            raise ConfigError(
                f"bench serve: setting {setting.label}: expected off or sere settings in {where}, "
                f"because {setting.name} replaces the engine's own re-routing; time it in an eager engine, "
                "without --compile and --server"
            )
