"""Evaluate on vLLM: the same questions and marks, decoded by the engine at fixed concurrency."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sere.engines.settings import Start, by_engine, routed
from sere.eval.cases import (
    NO_PROGRESS,
    Progress,
    case_name,
    checkpoint_of,
    head_of,
    missing,
    summarize_layers,
)
from sere.eval.questions import encode, mark
from sere.eval.run import Plan, completed, for_tokenizer
from sere.integrations.vllm import read_stats
from sere.policies.spec import PolicySpec

if TYPE_CHECKING:
    from sere.table import SimilarityTable


def evaluate_engine(
    start: Start,
    tokenizer: Any,
    plan: Plan,
    *,
    table: SimilarityTable,
    dtype: str,
    weights: str = "",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Decode all questions under every setting at every concurrency and score them.

    One engine is started for each group of settings that can share one (`by_engine`), and ended before the
    next. An engine holds B requests at once for as long as there are questions: a request that ends gives
    its place to the next, whose prompt is read beside the others' decoding (exactly, whatever the setting).
    At the end of the questions fewer run at once.

    Args:
        start: Starts an engine.
        tokenizer: The model's tokenizer.
        plan: What to evaluate; passages are not read, for the engine gives no logits of decoded text.
        table: The similarities that the engines use.
        dtype: Of the engines' weights, e.g. ``"bfloat16"``.
        weights: What tells the model from others of its shape; for ``checkpoint``.
        checkpoint: A file that keeps finished cases, as for ``sere.eval.run.evaluate``.
        progress: Shows how far each case is.

    Returns:
        A record as ``sere.eval.run.evaluate`` gives it; ``rows`` is the concurrency, and ``mean_rows`` the
        rows of the steps in which a request decoded, with those of prompts that were read beside it. Such
        rows count among ``experts`` too.

    Raises:
        UnsupportedEngine: A rule may leave duplicate ids within one token's top-k, and the expert kernel is
            not known to handle these; or it needs scores that the model's routers do not have.
    """
    plan = for_tokenizer(plan, tokenizer)
    head = head_of(plan, table.identity, table, dtype=dtype, implementation="vllm")
    kept = checkpoint_of(head, checkpoint, weights=weights)
    prompts = encode(tokenizer, [question.prompt for question in plan.questions], chat=plan.chat_template)
    run = _Run(tokenizer, plan, prompts, progress)
    with kept.going_on():
        for options, settings in by_engine(plan.settings):
            if cases := missing(kept, plan, settings):
                with start(options) as llm:
                    for setting, B in cases:
                        kept.put(case_name(setting, B), run.measure(llm, setting, B))
                # The next engine needs the memory that this name holds.
                del llm
    return completed(head, kept, plan)


@dataclass(frozen=True, slots=True)
class _Run:
    """What every case needs beside its engine."""

    tokenizer: Any
    plan: Plan
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
            "step_ms_median": None,
            "answer_tokens": round(fmean(len(answer) for answer in tokens), 3),
            "experts": summarize_layers(layers),
            "nothing_changed": stats.nothing_changed,
            "text": None,
            "right": "".join("01"[answer] for answer in right),
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
        while running < concurrency and (place := next(waiting, None)) is not None:
            engine.add_request(str(place), {"prompt_token_ids": list(prompts[place])}, params)
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
