"""What is tuned: on which prompts, for which accepted losses, at which numbers of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from sere.errors import ConfigError, DataError, InputError, name_some
from sere.eval.digests import texts_digest
from sere.eval.questions import Asked, prompt_key, takes_template
from sere.reroute.constants import LIMIT_ROWS
from sere.table import Tier
from sere.texts import Row

BATCH_SIZES = (4, 8, 16, 32, 64, 128)
"""Rows of the steps that are measured if nobody says otherwise."""

MOST_PROMPTS = 256
"""Prompts that are used of a longer list, half of them to verify."""

LAYER_RUNS = 48
"""Measurements of what layers cost: layers times batch sizes. Of more layers, neighbors go together."""

FEWEST_PROMPTS = 8
"""With fewer, no half of them gives an interval that says anything."""

Half = Literal["tuning", "held-out"]
Kind = Literal["kl", "loss", "speedup"]
Measure = Literal["time", "bytes"]

_WRITTEN = {"written_by": "the model"}
_WORDS: Mapping[Kind, str] = {
    "kl": "KL of at most {} nats per token",
    "loss": "at most {} points of right answers lost",
    "speedup": "{}x faster steps, by predicted time or by bytes",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """What a person wants of one tier.

    Attributes:
        kind: ``"kl"``: a divergence in nats per token; ``"loss"``: points of right answers; ``"speedup"``:
            how many times faster a step is by its predicted time, or how many times fewer bytes it reads.
        value: The most for the first two, the least for the last.

    Raises:
        ConfigError: The value is out of range.
    """

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        least = 1.0 if self.kind == "speedup" else 0.0
        if not least < self.value < float("inf"):
            raise ConfigError(f"tune: expected a {self.kind} above {least:g}, got {self.value!r}")

    def __str__(self) -> str:
        return _WORDS[self.kind].format(f"{self.value:g}")


# Chosen on the bundled model, where 0.002 nats cost about one point of right answers; see docs/tuning.md.
TIERS: Mapping[str, Goal] = MappingProxyType(
    {"safe": Goal("kl", 0.0005), "balanced": Goal("kl", 0.002), "fast": Goal("kl", 0.006)}
)
"""The tiers that are tuned if nobody says otherwise, and prompts have no answers."""

TIERS_BY_ANSWERS: Mapping[str, Goal] = MappingProxyType(
    {"safe": Goal("loss", 0.3), "balanced": Goal("loss", 1.0), "fast": Goal("loss", 3.0)}
)
"""The tiers that are tuned if nobody says otherwise, and there are questions with answers."""


def default_goals(questions: object) -> Mapping[str, Goal]:
    """Return the tiers that are tuned if nobody says otherwise: by right answers if there are questions."""
    return TIERS if questions is None else TIERS_BY_ANSWERS


@dataclass(frozen=True, slots=True, kw_only=True)
class TunePlan:
    """What to tune.

    Attributes:
        prompts: What the model continues.
        questions: The questions that the prompts ask, in the same order, for goals in right answers; or None.
        goals: What is wanted, by the tier's name.
        batch_sizes: Rows of the steps that are measured, from 2 to ``LIMIT_ROWS``.
        max_new_tokens: Most tokens of a continuation, at least 2: the first comes from prefill.
        seed: Seed of the choice of prompts, of the halves, and of the simulated steps.
        chat_template: Whether a prompt that is plain text is given to the model as a user's message, if its
            tokenizer has a chat template.
        source: How a record names the file that the prompts are from, or None.
        own_prompts: Whether the model is to write the prompts: ``max_prompts`` of them; there are none until
            `with_prompts`.
        uniform: Whether all layers get the same number of experts, so that nothing is measured by layer.
        layer_runs: Most measurements of what single layers cost.
        by: What a step costs: ``"time"``, predicted for this machine, or ``"bytes"`` of weights. With bytes,
            the least gain stays 0.

    Raises:
        InputError: There are no goals, or a number is out of range.
        ConfigError: A tier's name is not one, or a goal needs questions and there are none.
        DataError: There are too few prompts.
    """

    prompts: Sequence[str | Row] = ()
    questions: Sequence[Asked] | None = None
    goals: Mapping[str, Goal] = field(default_factory=lambda: TIERS)
    batch_sizes: Sequence[int] = BATCH_SIZES
    max_new_tokens: int = 64
    max_prompts: int = MOST_PROMPTS
    seed: int = 0
    chat_template: bool = False
    source: Mapping[str, Any] | None = None
    own_prompts: bool = False
    uniform: bool = False
    layer_runs: int = LAYER_RUNS
    by: Measure = "time"

    def __post_init__(self) -> None:
        sizes = sorted(set(self.batch_sizes))
        if not sizes or sizes[0] < 2 or sizes[-1] > LIMIT_ROWS:
            raise InputError(
                f"tune: expected batch sizes from 2 to {LIMIT_ROWS} (a single row always reads its own "
                f"experts), got [{name_some(self.batch_sizes)}]"
            )
        object.__setattr__(self, "batch_sizes", sizes)
        if not self.goals:
            raise InputError("tune: expected at least one tier, got none")
        for name in self.goals:
            Tier(name, 1)  # refuses a name that no setting could name
        if self.by not in get_args(Measure):
            raise ConfigError(f"by: expected 'time' or 'bytes', got {self.by!r}")
        if self.max_new_tokens < 2:
            raise InputError(
                f"max_new_tokens: expected at least 2, got {self.max_new_tokens}; the first token comes from "
                "prefill, which is not re-routed"
            )
        if self.questions is None and any(goal.kind == "loss" for goal in self.goals.values()):
            raise ConfigError("tune: a loss in right answers needs questions with their answers; give some")
        few = self.max_prompts if self.own_prompts else min(len(self.prompts), self.max_prompts)
        if few < FEWEST_PROMPTS:
            raise DataError(
                f"prompts: expected at least {FEWEST_PROMPTS}, better 100 or more (one half to tune on, one "
                f"to verify with), got {few}"
            )

    def halves(self) -> dict[Half, list[int]]:
        """Return the indices of the prompts to tune on and of those to verify with; no prompt is in both."""
        order = list(range(len(self.prompts)))
        Random(self.seed).shuffle(order)
        # Prompts of equal text go to one half.
        first: dict[str, int] = {}
        for index in order:
            first.setdefault(prompt_key(self.prompts[index]), index)
        chosen = list(first.values())[: self.max_prompts]
        middle = (len(chosen) + 1) // 2
        return {"tuning": chosen[:middle], "held-out": chosen[middle:]}

    def with_prompts(self, written: Sequence[str]) -> Self:
        """Return the plan with prompts that the model wrote.

        Raises:
            DataError: There are too few.
        """
        return replace(self, prompts=written, source=_WRITTEN | {"count": len(written)}, own_prompts=False)

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """Return the plan with a chat template only if the tokenizer has one and a text takes it."""
        prompts = ("plain text",) if self.own_prompts else self.prompts
        return replace(self, chat_template=self.chat_template and takes_template(tokenizer, prompts))

    def describe(self) -> dict[str, Any]:
        """Return what measurements depend on; JSON-ready. Goals and batch sizes only choose among them."""
        keys = [prompt_key(prompt) for prompt in self.prompts]
        return {
            "prompts": _WRITTEN if self.own_prompts else dict(self.source or {"count": len(keys)}),
            "prompts_digest": texts_digest(keys),
            "max_prompts": self.max_prompts,
            "chat_template": self.chat_template,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }
