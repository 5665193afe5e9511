"""Greedy decoding of many prompts in steps of B rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sere.errors import InputError
from sere.eval.decoding.continuous_batching import Job, run_rows
from sere.eval.decoding.prefill import prefill
from sere.eval.decoding.static_batching import continue_groups, end_mark
from sere.integrations.transformers.inputs import has_full_attention_cache

Loop = Literal["rows", "generate"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding gave.

    Attributes:
        tokens: Per prompt the new tokens, without the end token unless the rule keeps it.
        step_ms: Time of each decode step in ms, without prefill.
        rows: Rows of every step (``"rows"``) or of the first (``"generate"``).
        loop: ``"rows"``: every step has the same number of rows. ``"generate"``: groups that wait for their
            longest answer, because the model's cache is not one of plain full attention; rows that have
            ended stay in the step.
    """

    tokens: list[list[int]]
    step_ms: list[float]
    rows: int
    loop: Loop


@dataclass(frozen=True, slots=True)
class StopRule:
    """When an answer ends.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        ids: Ids that end an answer.
        keep_end: Whether an answer that ended holds its end token.
    """

    max_new_tokens: int
    ids: frozenset[int] = frozenset()
    keep_end: bool = False

    def accept(self, job: Job, token: int) -> int | None:
        """Add a token to the job's answer; return it, or None if the answer has ended."""
        ended = token in self.ids
        if self.keep_end or not ended:
            job.tokens.append(token)
        return None if ended or len(job.tokens) >= self.max_new_tokens else token

    def cut(self, tokens: list[int]) -> list[int]:
        """Return tokens up to the first end token, which itself is included only if it is kept."""
        end = next((index for index, token in enumerate(tokens) if token in self.ids), len(tokens))
        return tokens[: end + self.keep_end]


def stop_rule(model: Any, tokenizer: Any, max_new_tokens: int, *, keep_end: bool = False) -> StopRule:
    """Return the rule with the end tokens of the generation settings, or else of the tokenizer.

    Args:
        model: A model of Transformers.
        tokenizer: Its tokenizer, or None.
        max_new_tokens: Most tokens of an answer.
        keep_end: Whether an answer that ended holds its end token.
    """
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if given is None and tokenizer is not None:
        given = tokenizer.eos_token_id
    ids = [] if given is None else [given] if isinstance(given, int) else given
    return StopRule(max_new_tokens, frozenset(ids), keep_end)


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    rule: StopRule,
    on_finished: Callable[[], object] = lambda: None,
) -> Decoded:
    """Continue each prompt greedily; every step decodes ``batch_size`` rows.

    When the prompts run out, the batch is kept full with prompts from the beginning, whose second
    answers are thrown away: so every step, and what re-routing sees in it, has the same number of rows.
    With fewer prompts than ``batch_size``, a step has as many rows as there are prompts.

    Args:
        model: A causal language model of Transformers.
        prompts: Token ids, at least one each.
        batch_size: Rows of a step.
        rule: When an answer ends.
        on_finished: Called after each answer, for progress.

    Raises:
        InputError: A size is not positive or a prompt is empty.

    Source: docs/method.md section 5 (only decode steps are re-routed).
    """
    _check(prompts, batch_size, rule)
    B = min(batch_size, len(prompts))
    answers: list[list[int]] = [[] for _ in prompts]

    def finished(index: int, tokens: list[int]) -> None:
        answers[index] = rule.cut(tokens)
        on_finished()

    if not prompts or has_full_attention_cache(model):
        steps = decode_steps(model, prompts, batch_size=batch_size, rule=rule, on_finished=finished)
        return Decoded(answers, list(steps), B, "rows")
    step_ms = continue_groups(
        model, prompts, B, max_new_tokens=rule.max_new_tokens, stop=rule.ids,
        pad_token_id=end_mark(model, rule.ids), on_finished=finished,
    )  # fmt: skip
    return Decoded(answers, step_ms, B, "generate")


def decode_steps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    rule: StopRule,
    on_finished: Callable[[int, list[int]], object],
) -> Iterator[float]:
    """Decode as `decode` does, one step per turn, so that several runs can take turns.

    Args:
        model: A causal language model for which `has_full_attention_cache` holds.
        prompts: Token ids, at least one each.
        batch_size: Rows of a step.
        rule: When an answer ends.
        on_finished: Called with each answer: its prompt's index and its tokens.

    Yields:
        After each step its time in ms.

    Raises:
        InputError: A size is not positive or a prompt is empty.
    """
    _check(prompts, batch_size, rule)

    def choose(jobs: Sequence[Job], logits: Tensor) -> list[int | None]:
        return [rule.accept(job, token) for job, token in zip(jobs, logits.argmax(-1).tolist(), strict=True)]

    def finished(job: Job) -> None:
        on_finished(job.index, job.tokens)

    jobs = _jobs(model, prompts, rule, finished)
    yield from run_rows(model, jobs, choose, B=min(batch_size, len(prompts)), finished=finished)


def _jobs(
    model: Any, prompts: Sequence[Sequence[int]], rule: StopRule, finished: Callable[[Job], None]
) -> Iterator[Job]:
    """Yield one job per prompt, then fillers without end; answers of one token get no row."""
    filler = False
    while True:
        started = False
        for read in prefill(model, prompts):
            job = Job(read.index, 0, read.cache, filler)
            token = rule.accept(job, int(read.logits[-1].argmax()))
            if token is not None:
                started = True
                job.token = token
                yield job
            elif not filler:
                finished(job)
        if filler and not started:
            return
        filler = True


def _check(prompts: Sequence[Sequence[int]], batch_size: int, rule: StopRule) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    if rule.max_new_tokens < 1:
        raise InputError(f"max_new_tokens: expected at least 1, got {rule.max_new_tokens}")
    empty = next((index for index, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise InputError(f"prompts: number {empty} has no tokens; every prompt needs at least one")
