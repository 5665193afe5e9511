"""Log-likelihoods of given continuations, taken in decode steps, where re-routing acts, not in prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from random import Random
from typing import Any

import torch
from torch import Tensor

from sere.errors import InputError
from sere.eval.decoding.continuous_batching import Job, run_rows
from sere.eval.decoding.prefill import prefill
from sere.eval.decoding.static_batching import Forced, force, groups
from sere.integrations.transformers.inputs import has_full_attention_cache


@dataclass(frozen=True, slots=True)
class Continuation:
    """What is to be scored.

    Attributes:
        context: Token ids that the model has read before, at least one.
        tokens: Token ids that are scored, at least one.
    """

    context: Sequence[int]
    tokens: Sequence[int]

    @property
    def read(self) -> int:
        """How many tokens prefill reads: all of the context but its last token, and at least one."""
        return max(1, len(self.context) - 1)

    @property
    def text(self) -> list[int]:
        """Context and continuation."""
        return [*self.context, *self.tokens]

    @property
    def fed(self) -> int:
        """How many decode steps it takes: one per scored token, but for one after a context of one token."""
        return len(self.context) + len(self.tokens) - self.read - 1


@dataclass(slots=True)
class Likelihood:
    """Sums over the tokens of one continuation.

    Attributes:
        nats: Log-likelihood, at most 0.
        greedy: Whether each token is the model's most likely one.
    """

    nats: float = 0.0
    greedy: bool = True

    def add(self, nats: float, *, greedy: bool) -> None:
        """Add a token.

        Raises:
            InputError: Its log-probability is not a finite number.
        """
        if not isfinite(nats):
            raise InputError(
                "model: its logits are not finite numbers; float16 may overflow: try --dtype bfloat16 or "
                "float32"
            )
        self.nats += nats
        self.greedy &= greedy


def cut(context: Sequence[int], tokens: Sequence[int], *, longest: int) -> Continuation:
    """Return a continuation without what is beyond the longest text, cut from the left as lm-eval does."""
    text = [*context, *tokens][-longest:]
    left = max(1, len(text) - len(tokens))
    return Continuation(text[:left], text[left:])


def shuffled(asked: Sequence[Continuation]) -> list[int]:
    """Return the order in which continuations are scored, which depends on nothing but their number.

    Raises:
        InputError: A context or a continuation is empty.
    """
    for index, one in enumerate(asked):
        if not one.context or not one.tokens:
            raise InputError(
                f"log-likelihood: expected at least one token of context and of continuation, got "
                f"{len(one.context)} and {len(one.tokens)} for number {index}"
            )
    order = list(range(len(asked)))
    Random(len(order)).shuffle(order)
    return order


@torch.no_grad()
def log_likelihoods(
    model: Any,
    asked: Sequence[Continuation],
    *,
    batch_size: int,
    on_finished: Callable[[], object] = lambda: None,
) -> list[Likelihood]:
    """Feed given continuations one token per row and step, and add up their log-probabilities.

    Prefill reads the context without its last token. That token and those of the continuation are then fed
    in decode steps, so that every scored token is predicted by a step that re-routing sees. The only
    exception is the first token after a context of one token, which prefill predicts. Without re-routing the
    result is that of one forward pass over the text, up to rounding.

    Every step has ``batch_size`` rows of real text, in a shuffled order that depends on nothing but the
    number of continuations: neighbors in a list often share their context and with it their experts. When
    the continuations run out, rows are filled with the first ones again, unscored.

    Args:
        model: A causal language model of Transformers; re-routing, if any, on decode steps only, with no pad
            token (``pad_token_id=-1``), because every row is real.
        asked: What to score.
        batch_size: Rows of a step, at least 1.
        on_finished: Called after each continuation, for progress.

    Returns:
        One entry per continuation, in the order given.

    Raises:
        InputError: A context or a continuation is empty, or the logits are not finite numbers.
    """
    order = shuffled(asked)
    scorer = _Scorer(asked, [Likelihood() for _ in asked], on_finished)
    if has_full_attention_cache(model):
        _score_rows(model, scorer, order, batch_size)
    else:
        _score_groups(model, scorer, order, batch_size)
    return scorer.scores


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Adds up the log-probabilities of the tokens that were predicted."""

    asked: Sequence[Continuation]
    scores: list[Likelihood]
    on_finished: Callable[[], object]

    def add(self, index: int, position: int, logits: Tensor) -> None:
        """Score the token at a position of a text by the logits ``[V]`` that predict it.

        Raises:
            InputError: A logit is not a finite number.
        """
        text, score = self.asked[index].text, self.scores[index]
        found = float(logits.float().log_softmax(-1)[text[position]])
        score.add(found, greedy=int(logits.argmax()) == text[position])
        if position == len(text) - 1:
            self.on_finished()


def _score_rows(model: Any, scorer: _Scorer, order: Sequence[int], batch_size: int) -> None:
    """Score with rows that begin the next text when theirs has ended."""
    fed = [index for index in order if scorer.asked[index].fed]
    for index, found in _read(model, scorer, [index for index in order if not scorer.asked[index].fed]):
        scorer.add(index, 1, found.logits[-1])
    if not fed:
        return
    rows = _Rows(model, scorer, fed)
    steps = run_rows(
        model, rows.jobs(), rows.choose, B=min(batch_size, len(fed)), finished=lambda _: None
    )  # fmt: skip
    for _ in steps:
        pass


def _read(model: Any, scorer: _Scorer, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yield each text's index and what prefill found."""
    texts = [one.text[: one.read] for one in (scorer.asked[index] for index in indices)]
    for found in prefill(model, texts):
        yield indices[found.index], found


@dataclass(frozen=True, slots=True)
class _Rows:
    """Feeds texts to `run_rows`."""

    model: Any
    scorer: _Scorer
    order: Sequence[int]

    def jobs(self) -> Iterator[Job]:
        """Yield one job per text, then fillers without end."""
        filler = False
        while True:
            for index, found in _read(self.model, self.scorer, self.order):
                one = self.scorer.asked[index]
                if not filler and len(one.context) == 1:
                    self.scorer.add(index, 1, found.logits[-1])
                yield Job(index, one.text[one.read], found.cache, filler)
            filler = True

    def choose(self, jobs: Sequence[Job], logits: Tensor) -> list[int | None]:
        """Score each row's next token and return it; None if no further token needs it."""
        return [self._follow(job, row) for job, row in zip(jobs, logits, strict=True)]

    def _follow(self, job: Job, logits: Tensor) -> int | None:
        one = self.scorer.asked[job.index]
        position = one.read + 1 + len(job.tokens)
        if not job.filler:
            self.scorer.add(job.index, position, logits)
        token = one.text[position]
        job.tokens.append(token)
        return token if position + 1 < len(one.text) else None


def _score_groups(model: Any, scorer: _Scorer, order: Sequence[int], batch_size: int) -> None:
    """Score groups of texts with the model's own ``generate``, which works with every cache."""
    for places in groups(len(order), min(batch_size, len(order)) or 1):
        asked = [scorer.asked[order[place]] for place in places]
        # Texts that only fill up the last group were scored in the first.
        own = [order[place] for place in places if place >= places[0]]

        def see(step: int, logits: Tensor, own: Sequence[int] = own) -> None:
            for row, index in enumerate(own):
                one = scorer.asked[index]
                position = one.read + step
                if position < len(one.text) and (step > 0 or len(one.context) == 1):
                    scorer.add(index, position, logits[row])

        rows = [Forced(one.text[: one.read], one.text[one.read :]) for one in asked]
        force(model, rows, 1 + max(one.fed for one in asked), see)
