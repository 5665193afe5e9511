"""What re-routing changes in a model's own continuations of a user's prompts: for any model, without answers.

The unmodified model continues each prompt greedily. Then every setting at every batch size is scored on
these same tokens, one token per row and step: how often it would choose the same token, how far its
distribution is from the unmodified model's, and how likely the text is under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp
from statistics import fmean
from typing import Any, Self

from sere.engines.side_by_side import rows_at_once
from sere.errors import DataError
from sere.eval.decoding.greedy import decode, stop_rule
from sere.eval.digests import texts_digest
from sere.eval.finished import FinishedCases, case_name
from sere.eval.measure import Workbench
from sere.eval.plan import PromptPlan
from sere.eval.statistics.by_prompt import (
    Estimate,
    mean_per_token,
    positive_mean_per_token,
    share_of_tokens,
)
from sere.eval.text import Text, paused, score_texts
from sere.integrations.transformers.inputs import has_full_attention_cache
from sere.policies.spec import PolicySpec
from sere.summaries import summarize_handle

_CONTINUATIONS = "continuations"


@dataclass(frozen=True, slots=True)
class ContinuationScores:
    """Scores the unmodified model's continuations under each setting.

    Attributes:
        bench: The model and what its decoding takes.
        plan: What to evaluate.
        texts: The prompts with their continuations, those that have a token to score.
    """

    bench: Workbench
    plan: PromptPlan
    texts: Sequence[Text]

    @classmethod
    def prepare(cls, bench: Workbench, plan: PromptPlan, kept: FinishedCases) -> Self:
        """Continue the prompts with the unmodified model, unless an interrupted run kept its continuations.

        Raises:
            DataError: No continuation has a token to score.
            AlreadyApplied: Re-routing is active on the model.
        """
        found = kept.get(_CONTINUATIONS)
        if found is None:
            found = {"tokens": _continue(bench, plan)}
            kept.put(_CONTINUATIONS, found)
        pairs = zip(bench.prompts, found["tokens"], strict=True)
        texts = [Text([*prompt, *tokens], len(prompt)) for prompt, tokens in pairs if len(tokens) > 1]
        if not texts:
            raise DataError(
                f"prompts: the model ends each of the {len(bench.prompts)} prompts with its first token, "
                "which comes from prefill, so no decode step is left to score; give prompts with longer "
                "answers"
            )
        return cls(bench, plan, texts)

    def case(self, setting: PolicySpec, batch_size: int) -> dict[str, Any]:
        """Score all continuations under one setting at one batch size; the sums are per prompt."""
        model = self.bench.model
        # Every row of these steps is real, whatever token it is fed.
        with self.bench.applied(
            setting, case_name(setting, batch_size), len(self.texts), seed=self.plan.seed, pad_token_id=-1,
            batch_size=batch_size,
        ) as (handle, tick):  # fmt: skip
            scores = score_texts(
                model,
                self.texts,
                batch_size=rows_at_once(model, batch_size, len(self.texts)),
                unmodified=lambda: paused(handle),
                on_finished=tick,
            )
            happened = summarize_handle(handle)
        return {
            "setting": setting.label,
            "batch_size": batch_size,
            "rows": min(batch_size, len(self.texts)),
            "loop": "rows" if has_full_attention_cache(model) else "generate",
            **happened,
            "prompts": {
                "loss": [score.loss for score in scores],
                "kl": [score.kl for score in scores],
                "agreed": [score.agreed for score in scores],
            },
        }

    def result(self, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the cases with their estimates, and what the continuations are."""
        scored = [text.scored for text in self.texts]
        return {
            _CONTINUATIONS: {
                "prompts": len(self.texts),
                "too_short": len(self.bench.prompts) - len(self.texts),
                "prompt_tokens": round(fmean(text.read for text in self.texts), 3),
                "scored_tokens": scored,
                "digest": texts_digest([" ".join(map(str, text.tokens)) for text in self.texts]),
            },
            "cases": compare_continuations(cases, scored),
        }


def compare_continuations(cases: Sequence[dict[str, Any]], tokens: Sequence[int]) -> list[dict[str, Any]]:
    """Return the cases with their estimates, compared with ``off`` at their batch size.

    Args:
        cases: As measured; ``prompts`` holds the sums per prompt.
        tokens: Scored tokens per prompt.
    """
    baseline = {case["batch_size"]: case["prompts"]["loss"] for case in cases if case["setting"] == "off"}
    done = []
    for case in cases:
        sums = case["prompts"]
        loss = mean_per_token(sums["loss"], tokens)
        result = {
            "agreement": asdict(share_of_tokens(sums["agreed"], tokens)),
            "kl": asdict(positive_mean_per_token(sums["kl"], tokens)),
            "perplexity": asdict(Estimate(*(_exp(bound) for bound in (loss.value, loss.low, loss.high)))),
        }
        if case["setting"] != "off":
            pairs = zip(sums["loss"], baseline[case["batch_size"]], strict=True)
            result["loss_vs_baseline"] = asdict(mean_per_token([mine - base for mine, base in pairs], tokens))
        done.append({name: case[name] for name in case if name != "prompts"} | result | {"prompts": sums})
    return done


def _continue(bench: Workbench, plan: PromptPlan) -> list[list[int]]:
    """Return the unmodified model's new tokens per prompt, with the end token."""
    rule = stop_rule(bench.model, bench.tokenizer, plan.max_new_tokens, keep_end=True)
    # A model that is re-routed already is refused here, before it writes the continuations.
    with bench.applied(plan.settings[0], _CONTINUATIONS, len(bench.prompts), pad_token_id=-1) as (_, tick):
        size = max(plan.batch_sizes)
        return decode(bench.model, bench.prompts, batch_size=size, rule=rule, on_finished=tick).tokens


def _exp(value: float | None) -> Any:
    """Return e to the value; a number, however large, because records hold no infinities."""
    return None if value is None else exp(min(value, 700.0))
