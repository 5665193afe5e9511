"""Evaluate on vLLM: the same questions and marks, decoded by the engine at fixed concurrency."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sere.engines.settings import Start, by_engine, routed
from sere.eval.answers import compare_answers, marks_text
from sere.eval.finished import FinishedCases, case_name
from sere.eval.plan import QuestionPlan
from sere.eval.questions import encode_prompts, mark
from sere.eval.record import make_header
from sere.integrations.vllm import read_stats
from sere.policies.spec import PolicySpec
from sere.progress import NO_PROGRESS, Progress
from sere.summaries import summarize_layers

if TYPE_CHECKING:
    from sere.table import SimilarityTable


def evaluate_engine(
    start: Start,
    tokenizer: Any,
    plan: QuestionPlan,
    *,
    table: SimilarityTable,
    dtype: str,
    weights: str = "",
    engine_options: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Decode all questions under every setting at every concurrency and score them.

    One engine is started for each group of settings that can share one (`by_engine`), and ended before the
    next. An engine holds B requests at once while there are questions: after a request ends, the next one
    starts, and its prompt is read in the same steps in which the others decode (prompts are never
    re-routed). At the end of the questions fewer run at once.

    Args:
        start: Starts an engine.
        tokenizer: The model's tokenizer.
        plan: What to evaluate; passages are not scored, because the engine gives no logits of given text.
        table: The similarities that the engines use.
        dtype: The engines' weights' dtype, e.g. ``"bfloat16"``.
        weights: A digest that differs between models of equal shape; for ``checkpoint``.
        engine_options: Options of vLLM that the user gave, for the record.
        checkpoint: A file that keeps finished cases, as for ``sere.eval.run.evaluate``.
        progress: Shows how far each case is.

    Returns:
        A record as ``sere.eval.run.evaluate`` gives it; ``rows`` is the concurrency, and ``mean_rows`` the
        mean rows of the steps in which a request decoded. Rows of prompts that were read in these steps are
        included, there and in ``experts``.

    Raises:
        UnsupportedEngine: A rule may leave duplicate ids within one token's top-k, and the expert kernel is
            not known to handle these; or it needs scores that the model's routers do not have.
    """
    plan = plan.for_tokenizer(tokenizer)
    header = make_header(
        plan, table.identity, table, dtype=dtype, experts_implementation="vllm", engine_options=engine_options
    )
    kept = FinishedCases.of_run(header, checkpoint, weights=weights)
    prompts = encode_prompts(tokenizer, plan.asked(), chat=plan.chat_template)
    run = _Run(tokenizer, plan, prompts, progress)
    with kept.going_on():
        for options, settings in by_engine(plan.settings):
            if cases := kept.missing(plan, settings):
                with start(options) as llm:
                    for setting, B in cases:
                        kept.put(case_name(setting, B), run.measure(llm, setting, B))
                # The next engine needs the memory that this name holds.
                del llm
    record = header | {"cases": compare_answers(kept.in_order(plan), plan)}
    kept.delete()
    return record


@dataclass(frozen=True, slots=True)
class _Run:
    """What every case needs beside its engine."""

    tokenizer: Any
    plan: QuestionPlan
    prompts: Sequence[Sequence[int]]
    progress: Progress

    def measure(self, llm: Any, setting: PolicySpec, B: int) -> dict[str, Any]:
        """Return the record of one case, without the comparison to ``off``."""
        plan = self.plan
        with (
            self.progress(case_name(setting, B), len(self.prompts)) as tick,
            routed(llm, setting, seed=plan.seed),
        ):
            read_stats(llm, reset=True)
            tokens = decode_at(
                llm, self.prompts, concurrency=B, max_new_tokens=plan.max_new_tokens, on_finished=tick
            )
            stats = read_stats(llm, reset=True)
        layers = stats.layers
        right = mark(self.tokenizer, plan.questions, tokens)
        return {
            "setting": setting.label,
            "batch_size": B,
            "rows": B,
            "mean_rows": fmean(layer.rows for layer in layers),
            "loop": "vllm",
            "steps": layers[0].steps,
            "answer_tokens": round(fmean(len(answer) for answer in tokens), 3),
            "experts": summarize_layers(layers),
            "nothing_changed": stats.nothing_changed,
            "text": None,
            "right": marks_text(right),
        }


def decode_at(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    concurrency: int,
    max_new_tokens: int,
    on_finished: Callable[[], object] = lambda: None,
) -> list[list[int]]:
    """Decode prompts greedily, ``concurrency`` of them at once, and return each one's new tokens.

    Args:
        llm: vLLM's ``LLM``.
        prompts: Token ids.
        concurrency: Requests in the engine at once.
        max_new_tokens: Most tokens of an answer; the engine's own end tokens end it earlier.
        on_finished: Called after each answer.
    """
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=max_new_tokens, detokenize=False)
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = iter(range(len(prompts)))
    running = 0
    while True:
        while running < concurrency and (index := next(waiting, None)) is not None:
            engine.add_request(str(index), {"prompt_token_ids": list(prompts[index])}, params)
            running += 1
        if not running:
            return answers
        for output in engine.step():
            if output.finished:
                answers[int(output.request_id)] = _answer(output.outputs[0])
                running -= 1
                on_finished()


def _answer(completion: Any) -> list[int]:
    """Return a completion's tokens without the end token."""
    tokens = list(completion.token_ids)
    return tokens[:-1] if completion.finish_reason == "stop" else tokens
