"""What re-routing changes in a model's own continuations of a user's prompts: for any model, without answers.

The unmodified model continues each prompt greedily. Then every setting at every batch size is scored on
these same tokens, one token per row and step: how often it would choose the same token, how far its
distribution is from the unmodified model's, and how likely it holds the text to be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sere.calibrate.vocabulary import check_prompts
from sere.engines.transformers import apply_setting, check_settings
from sere.errors import DataError, InputError
from sere.eval.cases import (
    NO_PROGRESS,
    Progress,
    case_name,
    check_cases,
    finished_cases,
    missing,
    open_run,
    paused,
    texts_digest,
    what_happened,
)
from sere.eval.checkpoint import Checkpoint
from sere.eval.clusters import Estimate, mean_per_token, positive_mean_per_token, share_of_tokens
from sere.eval.continuous_batching import supports_rows
from sere.eval.decode import decode, stop_ids
from sere.eval.examples import prompt_key
from sere.eval.questions import encode, takes_template
from sere.eval.text import Text, score_texts
from sere.policies.spec import PolicySpec
from sere.texts import Row

if TYPE_CHECKING:
    from sere.table import SimilarityTable

_CONTINUATIONS = "continuations"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPlan:
    """What to evaluate.

    Attributes:
        settings: The ways to route; the first is ``off``.
        batch_sizes: Rows of a decode step.
        prompts: What the model continues.
        max_new_tokens: Most tokens of a continuation, at least 2: the first comes from prefill.
        seed: Of the random control.
        chat_template: Whether a prompt that is plain text is put to the model as a user's message, where its
            tokenizer has a chat template.
        source: The file that the prompts are from, as a record names it.
    """

    settings: Sequence[PolicySpec]
    batch_sizes: Sequence[int]
    prompts: Sequence[str | Row]
    max_new_tokens: int = 64
    seed: int = 0
    chat_template: bool = False
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("evaluate: expected at least one prompt, got none")
        if self.max_new_tokens < 2:
            raise InputError(
                f"max_new_tokens: expected at least 2, got {self.max_new_tokens}; the first token comes from "
                "prefill, which is not re-routed"
            )
        check_cases(self)

    def describe(self) -> dict[str, Any]:
        """Return what a record says of the plan beside settings and batch sizes."""
        keys = [prompt_key(prompt) for prompt in self.prompts]
        return {
            "prompts": dict(self.source or {"count": len(keys)}),
            "prompts_digest": texts_digest(keys),
            "chat_template": self.chat_template,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "intervals": {
                "unit": "prompt",
                "agreement": "Wilson at the effective number of tokens (Korn and Graubard 1998)",
                "kl": "Student's t on a log scale, linearized variance between prompts",
                "perplexity": "Student's t on the mean loss, linearized variance between prompts",
            },
        }


def evaluate_prompts(
    model: Any,
    tokenizer: Any,
    plan: PromptPlan,
    *,
    table: SimilarityTable | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Continue the prompts with the unmodified model and score every setting on the continuations.

    Args:
        model: A causal language model of Transformers, unmodified, in evaluation mode.
        tokenizer: Its tokenizer.
        plan: What to evaluate.
        table: Similarities, for settings that need them.
        checkpoint: A file that keeps the continuations and finished cases, so that an interrupted run goes
            on; deleted at the end.
        progress: Shows how far each case is.

    Returns:
        A JSON-ready record: what was measured and with what (``model``, ``table``, ``plan``,
        ``provenance``), the ``continuations``, and one entry of ``cases`` for each batch size and setting.
        ``agreement`` is the share of tokens, in [0, 1], where the setting's most likely token is the
        unmodified model's; ``kl`` is KL(unmodified ‖ setting) in nats per token, where ``off`` shows
        what rounding leaves; ``loss_to_off``, nats per token, is paired by prompt. All have 95 % intervals.

    Raises:
        InputError: The model's logits are not finite numbers.
        DataError: The chat template refuses a prompt, a token is beyond the model's embedding, or no
            continuation has a token to score.
        TableMismatch: The table belongs to another model.
        ConfigError: A setting needs a table and there is none.
        AlreadyApplied: Re-routing is active on the model.
    """
    check_settings(plan.settings, table)
    used = plan.chat_template and takes_template(tokenizer, plan.prompts)
    plan = replace(plan, chat_template=used)
    head, kept = open_run(model, plan, table, checkpoint)
    prompts = encode(tokenizer, plan.prompts, chat=plan.chat_template)
    check_prompts(prompts, plan.max_new_tokens, tokenizer, model)
    with kept.going_on():
        texts = _continued(model, tokenizer, prompts, plan, kept, progress)
        for setting, batch_size in missing(kept, plan, plan.settings):
            case = _measure(model, texts, plan, setting, batch_size, table, progress)
            kept.put(case_name(setting, batch_size), case)
    record = {
        **head,
        _CONTINUATIONS: {
            "prompts": len(texts),
            "too_short": len(prompts) - len(texts),
            "prompt_tokens": round(fmean(text.read for text in texts), 3),
            "scored_tokens": [text.scored for text in texts],
            "digest": texts_digest([" ".join(map(str, text.tokens)) for text in texts]),
        },
        "cases": compared(finished_cases(kept, plan), [text.scored for text in texts]),
    }
    kept.delete()
    return record


def compared(cases: Sequence[dict[str, Any]], tokens: Sequence[int]) -> list[dict[str, Any]]:
    """Return the cases with their estimates, beside ``off`` at their batch size.

    Args:
        cases: As measured; ``prompts`` holds the sums by prompt.
        tokens: By prompt, how many tokens were scored.
    """
    off = {case["batch_size"]: case["prompts"]["loss"] for case in cases if case["setting"] == "off"}
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
            more = [mine - base for mine, base in zip(sums["loss"], off[case["batch_size"]], strict=True)]
            result["loss_to_off"] = asdict(mean_per_token(more, tokens))
        done.append({name: case[name] for name in case if name != "prompts"} | result | {"prompts": sums})
    return done


def _continued(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    plan: PromptPlan,
    kept: Checkpoint,
    progress: Progress,
) -> list[Text]:
    """Return the prompts with the unmodified model's continuations that have a token to score."""
    found = kept.get(_CONTINUATIONS)
    if found is None:
        off = plan.settings[0]
        with (
            progress("continuations", len(prompts)) as tick,
            # A model that is re-routed already is refused here, before it writes the continuations.
            apply_setting(model, off, None, pad_token_id=-1),
        ):
            decoded = decode(
                model, prompts, batch_size=max(plan.batch_sizes), max_new_tokens=plan.max_new_tokens,
                stop=stop_ids(model, tokenizer), keep_end=True, on_finished=tick,
            )  # fmt: skip
        found = {"tokens": decoded.tokens}
        kept.put(_CONTINUATIONS, found)
    pairs = zip(prompts, found["tokens"], strict=True)
    texts = [Text([*prompt, *tokens], len(prompt)) for prompt, tokens in pairs if len(tokens) > 1]
    if not texts:
        raise DataError(
            f"prompts: the model ends each of the {len(prompts)} prompts with its first token, which comes "
            "from prefill, so no decode step is left to score; give prompts with longer answers"
        )
    return texts


def _measure(
    model: Any,
    texts: Sequence[Text],
    plan: PromptPlan,
    setting: PolicySpec,
    batch_size: int,
    table: SimilarityTable | None,
    progress: Progress,
) -> dict[str, Any]:
    """Return the sums of one case, by prompt."""
    with (
        progress(case_name(setting, batch_size), len(texts)) as tick,
        # Every row of these steps is real, whatever token it is fed.
        apply_setting(model, setting, table, seed=plan.seed, pad_token_id=-1) as handle,
    ):
        handle.quiet = True  # the record says why nothing changed, so the log need not
        scores = score_texts(
            model, texts, batch_size=batch_size, unmodified=lambda: paused(handle), on_finished=tick
        )
        happened = what_happened(handle)
    return {
        "setting": setting.label,
        "batch_size": batch_size,
        "rows": min(batch_size, len(texts)),
        "loop": "rows" if supports_rows(model) else "generate",
        **happened,
        "prompts": {
            "loss": [score.loss for score in scores],
            "kl": [score.kl for score in scores],
            "agreed": [score.agreed for score in scores],
        },
    }


def _exp(value: float | None) -> Any:
    """Return e to the value; a number, however large, for records hold no infinities."""
    return None if value is None else exp(min(value, 700.0))
