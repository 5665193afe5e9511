"""Greedy decoding of many prompts in steps of B rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sere.errors import InputError
from sere.eval.continuous_batching import Job, run_rows, supports_rows
from sere.eval.generation import continue_groups, end_mark
from sere.eval.prefill import prefill

Loop = Literal["rows", "generate"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding gave.

    Attributes:
        tokens: Per prompt the new tokens, without the end token unless it was asked for.
        step_ms: Time of each decode step in ms, prefill excluded.
        rows: Rows of every step (``"rows"``) or of the first (``"generate"``).
        loop: ``"rows"``: every step has the same number of rows. ``"generate"``: groups that wait for their
            longest answer, because the model's cache is not one of plain full attention; rows that have
            ended stay in the step.
    """

    tokens: list[list[int]]
    step_ms: list[float]
    rows: int
    loop: Loop


def stop_ids(model: Any, tokenizer: Any = None) -> frozenset[int]:
    """Return the ids that end a text: those of the generation settings, else the tokenizer's end token."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if given is None and tokenizer is not None:
        given = tokenizer.eos_token_id
    if given is None:
        return frozenset()
    return frozenset([given] if isinstance(given, int) else given)


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    stop: frozenset[int],
    keep_end: bool = False,
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
        max_new_tokens: Most tokens an answer may have.
        stop: Ids that end an answer.
        keep_end: Let an answer that ended hold its end token.
        on_finished: Called after each answer, for progress.

    Raises:
        InputError: A size is not positive or a prompt is empty.

    Source: docs/method.md section 5 (decode steps alone are re-routed).
    """
    _check(prompts, batch_size, max_new_tokens)
    B = min(batch_size, len(prompts))
    answers: list[list[int]] = [[] for _ in prompts]

    def finished(index: int, tokens: list[int]) -> None:
        answers[index] = _until_end(tokens, stop, keep_end)
        on_finished()

    if not prompts or supports_rows(model):
        steps = decode_steps(
            model, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens, stop=stop,
            keep_end=keep_end, on_finished=finished,
        )  # fmt: skip
        return Decoded(answers, list(steps), B, "rows")
    step_ms = continue_groups(
        model, prompts, B, max_new_tokens=max_new_tokens, stop=stop, pad_token_id=end_mark(model, stop),
        on_finished=finished,
    )  # fmt: skip
    return Decoded(answers, step_ms, B, "generate")


def decode_steps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    stop: frozenset[int],
    keep_end: bool = False,
    on_finished: Callable[[int, list[int]], object],
) -> Iterator[float]:
    """Decode as ``decode`` does, one step a turn, so that several runs can take turns.

    Args:
        model: A causal language model for which ``supports_rows`` holds.
        prompts: As for ``decode``, like all arguments not named here.
        batch_size: Rows of a step.
        max_new_tokens: Most tokens an answer may have.
        stop: Ids that end an answer.
        keep_end: As for ``decode``.
        on_finished: Called with each answer: its prompt's place and its tokens.

    Yields:
        After each step its time in ms.

    Raises:
        InputError: A size is not positive or a prompt is empty.
    """
    _check(prompts, batch_size, max_new_tokens)
    greedy = _Greedy(stop, max_new_tokens, keep_end)

    def finished(job: Job) -> None:
        on_finished(job.index, job.tokens)

    jobs = _jobs(model, prompts, greedy, finished)
    B = min(batch_size, len(prompts))
    yield from run_rows(model, jobs, greedy.choose, B=B, finished=finished)


@dataclass(frozen=True, slots=True)
class _Greedy:
    stop: frozenset[int]
    limit: int
    keep_end: bool

    def choose(self, jobs: Sequence[Job], logits: Tensor) -> list[int | None]:
        return [self.accept(job, token) for job, token in zip(jobs, logits.argmax(-1).tolist(), strict=True)]

    def accept(self, job: Job, token: int) -> int | None:
        """Add ``token`` to the job's answer; None if the answer has ended."""
        ended = token in self.stop
        if self.keep_end or not ended:
            job.tokens.append(token)
        return None if ended or len(job.tokens) >= self.limit else token


def _jobs(
    model: Any, prompts: Sequence[Sequence[int]], greedy: _Greedy, finished: Callable[[Job], None]
) -> Iterator[Job]:
    """Yield a job a prompt, then fillers without end; answers that end with their first token get no row."""
    filler = False
    while True:
        started = False
        for read in prefill(model, prompts):
            job = Job(read.index, 0, read.cache, filler)
            token = greedy.accept(job, int(read.logits[-1].argmax()))
            if token is not None:
                started = True
                job.token = token
                yield job
            elif not filler:
                finished(job)
        if filler and not started:
            return
        filler = True


def _until_end(tokens: list[int], stop: frozenset[int], keep_end: bool) -> list[int]:
    """Cut what follows the first end token, and the end token itself unless it is to stay."""
    end = next((place for place, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[: end + keep_end]


def _check(prompts: Sequence[Sequence[int]], batch_size: int, max_new_tokens: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    empty = next((place for place, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise InputError(f"prompts: number {empty} has no tokens; every prompt needs at least one")
