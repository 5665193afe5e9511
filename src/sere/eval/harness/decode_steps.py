"""lm-eval's log-likelihood requests, answered by what scores continuations in decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tqdm import tqdm

from sere.eval.likelihoods import Continuation, Likelihood, cut

Request = tuple[Any, list[int], list[int]]
"""lm-eval's key of a request, or None for a part of a rolling text; its context; and the scored tokens."""


class Score(Protocol):
    """Scores continuations, and calls ``on_finished`` after each."""

    def __call__(self, asked: Sequence[Continuation], *, on_finished: Any) -> list[Likelihood]:
        """Return one entry per continuation."""


def answer(
    requests: Sequence[Request], score: Score, *, longest: int, cache_hook: Any, disable_tqdm: bool
) -> list[tuple[float, bool]]:
    """Return the log-likelihood of each request, and whether its tokens are the most likely ones.

    Args:
        requests: Tokens after tokens.
        score: Scores them.
        longest: Most tokens of a text; longer ones lose their beginning.
        cache_hook: Where lm-eval's model keeps answers.
        disable_tqdm: Whether to show no progress.
    """
    asked = [cut(context, tokens, longest=longest) for _, context, tokens in requests]
    with tqdm(total=len(asked), disable=disable_tqdm, desc="Scoring in decode steps") as bar:
        scores = score(asked, on_finished=bar.update)
    answers = [(one.nats, one.greedy) for one in scores]
    for (key, *_), found in zip(requests, answers, strict=True):
        if key is not None:
            cache_hook.add_partial("loglikelihood", key, found)
    return answers
