"""The loss of a setting at B rows: real decode steps on the model's own continuations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from sere.config import RerouteConfig
from sere.engines.side_by_side import SideBySide, rows_at_once
from sere.errors import DataError
from sere.eval.decoding.greedy import decode, stop_rule
from sere.eval.statistics.by_prompt import Estimate, positive_mean_per_token, share_of_tokens
from sere.eval.text import Text, paused, score_texts
from sere.integrations.transformers import apply
from sere.policies.sere import Sere
from sere.summaries import summarize_layers
from sere.table import SimilarityTable
from sere.tune.plan import Half
from sere.tune.plans import Plan, settings_of, text_of
from sere.tune.work import Work


@dataclass(frozen=True, slots=True)
class Loss:
    """What a setting lost at one number of rows.

    Attributes:
        rows: Rows of every step.
        tokens: Scored tokens per prompt.
        kl: KL(unmodified ‖ setting) per prompt, summed over its tokens, in nats.
        roots: The sums of the square roots of the tokens' KL per prompt.
        agreed: Per prompt, tokens where the most likely token is the unmodified model's.
        before: Distinct experts per layer and step without re-routing, on average over the layers.
        after: The same with re-routing.
        pairs: Slots that keep weight per layer and step, on average over the layers.
    """

    rows: int
    tokens: Sequence[int]
    kl: Sequence[float]
    roots: Sequence[float]
    agreed: Sequence[int]
    before: float
    after: float
    pairs: float = 0.0

    @property
    def mean(self) -> Estimate:
        """KL per token, with its two-sided 95 % interval."""
        return positive_mean_per_token(self.kl, self.tokens)

    def describe(self) -> dict[str, Any]:
        """Return the estimates as JSON-ready values."""
        return {
            "rows": self.rows,
            "kl": asdict(self.mean),
            "agreement": asdict(share_of_tokens(self.agreed, self.tokens)),
            "experts_before": round(self.before, 3),
            "experts_after": round(self.after, 3),
            "pairs_after": round(self.pairs, 3),
        }


@dataclass(frozen=True, slots=True)
class Meter:
    """Measures losses, each once.

    Attributes:
        model: A causal language model of Transformers, unmodified.
        table: Its similarities.
        texts: The prompts with the model's continuations, by half.
        work: Keeps what is finished.
        tick: Called after each text, for progress.
        min_gain: τ of all that it measures.
    """

    model: Any
    table: SimilarityTable
    texts: Mapping[Half, Sequence[Text]]
    work: Work
    tick: Callable[[], object]
    min_gain: float = 0.0

    def under(self, min_gain: float) -> Self:
        """Return what measures under another least gain."""
        return replace(self, min_gain=min_gain)

    def loss(self, half: Half, rows: int, plan: Plan) -> Loss:
        """Measure a plan in steps of so many rows.

        Args:
            half: Which prompts.
            rows: B.
            plan: What the layers read.
        """
        name = f"{half} B={rows} M={text_of(plan, self.min_gain)}"
        if name not in self.work.done:
            config = settings_of(plan, sorted(self.table.layers), self.min_gain)
            self.work.put(name, asdict(self._measure(half, rows, config)))
        elif self.work.take_up(name):
            for _ in self.texts[half]:
                self.tick()
        return Loss(**self.work.done[name])

    def _measure(self, half: Half, rows: int, config: RerouteConfig) -> Loss:
        texts = self.texts[half]
        policy = SideBySide(Sere(self.table.layers, config), rows)
        # Every row of these steps is real, whatever token it is fed.
        with apply(self.model, policy=policy, pad_token_id=-1) as handle:
            handle.quiet = handle.counts_all = True
            scores = score_texts(
                self.model,
                texts,
                batch_size=rows_at_once(self.model, rows, len(texts)),
                unmodified=lambda: paused(handle),
                on_finished=self.tick,
            )
            stats = [one for one in handle.stats() if one.steps]
            experts = summarize_layers(stats)
        K = self.table.identity.slots
        filled = min(rows, len(texts))
        return Loss(
            rows=filled,
            tokens=[score.tokens for score in scores],
            kl=[score.kl for score in scores],
            roots=[score.root_kl for score in scores],
            agreed=[score.agreed for score in scores],
            before=experts["distinct_before"] or 0.0,
            after=experts["distinct_after"] or 0.0,
            pairs=sum(one.rows * K[one.index] * one.slots_computed for one in stats) / max(1, len(stats)),
        )


def continue_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[Half, Sequence[Sequence[int]]],
    work: Work,
    *,
    max_new_tokens: int,
    tick: Callable[[], object],
) -> dict[Half, list[Text]]:
    """Let the unmodified model continue the prompts greedily, unless an interrupted run kept it.

    Args:
        model: A causal language model of Transformers, unmodified.
        tokenizer: Its tokenizer.
        prompts: Token ids by half.
        work: Keeps what is finished.
        max_new_tokens: Most tokens of a continuation.
        tick: Called after each prompt, for progress.

    Raises:
        DataError: Of one half, no continuation has a token to score.
    """
    rule = stop_rule(model, tokenizer, max_new_tokens, keep_end=True)
    texts: dict[Half, list[Text]] = {}
    for half, encoded in prompts.items():
        name = f"continuations of {half}"
        if name not in work.done:
            decoded = decode(model, encoded, batch_size=32, rule=rule, on_finished=tick)
            work.put(name, decoded.tokens)
        elif work.take_up(name):
            for _ in encoded:
                tick()
        pairs = zip(encoded, work.done[name], strict=True)
        texts[half] = [Text([*prompt, *new], len(prompt)) for prompt, new in pairs if len(new) > 1]
        if not texts[half]:
            raise DataError(
                f"prompts: the model ends each of the {len(encoded)} {half} prompts with its first token, "
                "which comes from prefill, so no decode step is left to score; give prompts with longer "
                "answers"
            )
    return texts
