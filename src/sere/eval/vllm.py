"""Evaluate on vLLM: the same questions and marks, decoded by the engine at fixed concurrency."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sere.errors import ConfigError, UnsupportedEngine
from sere.eval.apply import make_rival
from sere.eval.questions import encode, mark
from sere.eval.run import (
    NO_PROGRESS,
    Plan,
    Progress,
    case_name,
    checkpoint_of,
    completed,
    head_of,
    missing,
    summarise_layers,
)
from sere.eval.settings import Setting
from sere.integrations.vllm import configure, read_stats
from sere.integrations.vllm.kernels import BEARS_DUPLICATES
from sere.integrations.vllm.local import session_of

if TYPE_CHECKING:
    from sere.table import SimilarityTable

LIVE = frozenset({"select_top_k", "threshold"})
"""Options of a setting that an engine can change while it runs; the others are part of its start."""

COUNT_ONLY: Mapping[str, Any] = {"enabled": True, "select_top_k": 1 << 19, "threshold": 0.0}
"""Changes that count experts and re-route none: S is beyond any K."""

Start = Callable[[Mapping[str, Any]], AbstractContextManager[Any]]
"""Starts an engine, eager and in this process, with settings of re-routing beside the table, and ends it."""


def check_settings(settings: Sequence[Setting]) -> None:
    """Refuse settings that no engine can run.

    Raises:
        ConfigError: A policy needs the scores of all experts, which routers of vLLM do not hand on.
    """
    for setting in settings:
        if not setting.needs_table and make_rival(setting).needs_scores:
            raise ConfigError(
                f"setting {setting.label}: {setting.kind} needs the router's scores of all experts, which "
                "vLLM does not hand on; on vLLM expected off, sere, random or topk, so evaluate it with "
                "--engine transformers"
            )


def by_engine(settings: Sequence[Setting]) -> list[tuple[dict[str, Any], list[Setting]]]:
    """Group settings by the engine that they need.

    Args:
        settings: In the order in which they are to be measured.

    Returns:
        For each engine the settings of its start and what is measured in it. ``sere`` settings that differ
        in S and ρ alone share one; what is no ``sere`` setting runs in any engine and so in the first.
    """
    groups: dict[tuple[tuple[str, Any], ...], list[Setting]] = {}
    first = next((_of_start(setting) for setting in settings if setting.needs_table), ())
    for setting in settings:
        groups.setdefault(_of_start(setting) if setting.needs_table else first, []).append(setting)
    return [(dict(options), group) for options, group in groups.items()]


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
        ConfigError: No engine can run one of the settings.
        UnsupportedEngine: A control's rows may hold an expert twice, and the expert kernel is not known to
            bear that.
    """
    check_settings(plan.settings)
    head = head_of(plan, table.identity, table, dtype=dtype, implementation="vllm")
    kept = checkpoint_of(head, checkpoint, weights=weights)
    run = _Run(tokenizer, plan, encode(tokenizer, [question.prompt for question in plan.questions]), progress)
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

    def measure(self, llm: Any, setting: Setting, B: int) -> dict[str, Any]:
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
            layers = read_stats(llm, reset=True).layers
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
            "experts": summarise_layers(layers),
            "text": None,
            "right": "".join("01"[answer] for answer in right),
        }


def counted_changes(setting: Setting) -> dict[str, Any]:
    """Return what to change in a running engine for a setting, so that its experts are counted; off too."""
    live = {name: value for name, value in setting.options.items() if name in LIVE}
    return dict(COUNT_ONLY) | live


@contextmanager
def routed(llm: Any, setting: Setting, *, seed: int = 0) -> Iterator[None]:
    """Let an engine run a setting: ``sere`` as the engine itself does it, others in its place.

    Who has which row, that prompts are exact, and the counters are the engine's in either case.

    Args:
        llm: An engine of this process, started with what ``by_engine`` says, eager.
        setting: What to run.
        seed: Of ``random``, unless the setting has its own.

    Raises:
        UnsupportedEngine: The expert kernel is not known to bear an expert twice in a row.
    """
    configure(llm, **counted_changes(setting))
    if setting.needs_table:
        yield
        return
    session = session_of(llm)
    layers = list(session.layers.values())
    if setting.kind != "off" and session.kernel not in BEARS_DUPLICATES:
        raise UnsupportedEngine(
            f"setting {setting.label}: the expert kernel {session.kernel or 'in use'} is not known to bear "
            "an expert twice in a row; evaluate it with --engine transformers"
        )
    policy = make_rival(setting, seed=seed)
    policy.bind({layer.index: layer.E for layer in layers})
    plans = [layer.plan for layer in layers]
    for layer in layers:
        # Of a plan a layer asks its route alone.
        layer.plan = SimpleNamespace(route=partial(policy.route, layer.index))  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, plan in zip(layers, plans, strict=True):
            layer.plan = plan


def _of_start(setting: Setting) -> tuple[tuple[str, Any], ...]:
    """Return a setting's options that are part of an engine's start."""
    return tuple(sorted((name, value) for name, value in setting.options.items() if name not in LIVE))


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
