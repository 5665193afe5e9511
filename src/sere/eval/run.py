"""Evaluate every setting at every batch size in one run, all against the unmodified model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sere.calibrate.vocabulary import check_prompts
from sere.engines.transformers import check_settings
from sere.eval.answers import RightAnswers
from sere.eval.continuations import ContinuationScores
from sere.eval.digests import weights_digest
from sere.eval.finished import FinishedCases, case_name
from sere.eval.measure import Measure, Workbench
from sere.eval.plan import PromptPlan, QuestionPlan
from sere.eval.questions import encode_prompts
from sere.eval.record import header_of_model
from sere.policies.base import LayerShape
from sere.progress import NO_PROGRESS, Progress
from sere.structure import find_experts
from sere.wrappers import inner_model

if TYPE_CHECKING:
    from sere.table import SimilarityTable

_UNCHANGED = (
    "nothing was re-routed: a layer may read as many experts as a single row chooses, so that the result is "
    "that of off, without a run of its own"
)


def evaluate(
    model: Any,
    tokenizer: Any,
    plan: QuestionPlan | PromptPlan,
    *,
    table: SimilarityTable | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Measure what each setting changes at each batch size.

    Args:
        model: A causal language model of Transformers, unmodified, in evaluation mode.
        tokenizer: Its tokenizer.
        plan: What to evaluate: right answers to questions, or the model's continuations of prompts.
        table: Similarities, for settings that need them.
        checkpoint: A file that keeps finished cases (and continuations), so that an interrupted run can
            continue; deleted at the end.
        progress: Shows how far each case is.

    Returns:
        A JSON-ready record: what was measured and with what (``model``, ``table``, ``plan``,
        ``provenance``), and one entry of ``cases`` for each batch size and setting, all with 95 % intervals.
        Of questions: per task the ``share`` of right answers in [0, 1] and its ``difference`` to ``off`` at
        the same batch size, on the same questions. Of prompts: the ``continuations``; ``agreement``, the
        share of tokens where the setting's most likely token is the unmodified model's; ``kl``, KL(unmodified
        ‖ setting) in nats per token, where ``off`` shows what rounding leaves; ``loss_vs_baseline``, nats per
        token, paired by prompt.

    Raises:
        InputError: The model's logits are not finite numbers.
        DataError: The chat template refuses a text, a text has no tokens, a token is beyond the model's
            embedding, or no continuation has a token to score.
        TableMismatch: The table belongs to another model.
        ConfigError: A setting needs a table and there is none.
        AlreadyApplied: Re-routing is active on the model.
    """
    check_settings(plan.settings, table)
    plan = plan.for_tokenizer(tokenizer)
    header = header_of_model(model, plan, table)
    kept = FinishedCases.of_run(header, checkpoint, weights=weights_digest(model))
    prompts = encode_prompts(tokenizer, plan.asked(), chat=plan.chat_template)
    check_prompts(prompts, plan.max_new_tokens, tokenizer, model)
    bench = Workbench(model, tokenizer, prompts, table, progress)
    with kept.going_on():
        measure: Measure
        if isinstance(plan, PromptPlan):
            measure = ContinuationScores.prepare(bench, plan, kept)
        else:
            measure = RightAnswers(bench, plan)
        layers = [
            LayerShape(one.index, one.num_experts, one.top_k) for one in find_experts(inner_model(model))
        ]
        for setting, batch_size in kept.missing(plan, plan.settings):
            name = case_name(setting, batch_size)
            # With more rows this is rare, and the run itself says better why it changed nothing.
            alone = batch_size == 1 and setting != plan.settings[0]
            if alone and setting.build(table).never_reroutes(batch_size, layers):
                off = kept.cases[case_name(plan.settings[0], batch_size)]
                kept.put(name, off | {"setting": setting.label, "nothing_changed": _UNCHANGED})
            else:
                kept.put(name, measure.case(setting, batch_size))
    record = header | measure.result(kept.in_order(plan))
    kept.delete()
    return record
