"""How well the model still predicts English: perplexity, and divergence from the unmodified model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf
from typing import Any

import torch
from torch import Tensor

from sere.errors import DataError
from sere.eval.prefill import prefill
from sere.eval.rows import Job, run_rows, supports_rows

# Tokens of each passage that are read before decoding begins: a model must know what it is reading.
PREFIX = 8


@dataclass(frozen=True, slots=True)
class TextScore:
    """Scores on passages read token by token in decode steps.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of a token.
        kl: Mean over tokens of KL(unmodified ‖ at hand), in nats. The unmodified model's distributions
            come from prefill, so even without re-routing this is a rounding error above 0.
        tokens: Number of tokens scored.
    """

    perplexity: float
    kl: float
    tokens: int


def score_text(
    model: Any,
    passages: Sequence[Sequence[int]],
    *,
    batch_size: int,
    on_finished: Callable[[], object] = lambda: None,
) -> TextScore | None:
    """Read the passages in decode steps of ``batch_size`` rows and score each next token.

    One token a row and step, with a cache, so that re-routing sees decode batches as it does in
    serving. The first ``PREFIX`` tokens of a passage are prefilled and not scored.

    Args:
        model: A causal language model of Transformers; re-routing, if any, on decode steps only.
        passages: Token ids, more than ``PREFIX + 1`` each.
        batch_size: Rows of a step, at most the number of passages.
        on_finished: Called after each passage, for progress.

    Returns:
        The scores, or None if the model's cache is not one of plain full attention.

    Raises:
        DataError: There is no passage, or one is too short.
    """
    short = min((len(passage) for passage in passages), default=0)
    if short < PREFIX + 2:
        raise DataError(f"text: expected passages of at least {PREFIX + 2} tokens, got one of {short}")
    if not supports_rows(model):
        return None
    reader = _Reader(passages, [None] * len(passages))
    B = min(batch_size, len(passages))
    for _ in run_rows(model, reader.jobs(model), reader.choose, B=B, finished=lambda _: on_finished()):
        pass
    return TextScore(_exp(reader.loss / reader.count), reader.kl / reader.count, reader.count)


@dataclass(slots=True)
class _Reader:
    """Feeds the passages' own tokens and adds up what the model made of them.

    Attributes:
        expected: By passage, the unmodified model's logits ``[n, V]``; there while the passage is read.
    """

    passages: Sequence[Sequence[int]]
    expected: list[Tensor | None]
    loss: float = 0.0
    kl: float = 0.0
    count: int = 0

    def jobs(self, model: Any) -> Iterator[Job]:
        """Yield a job a passage, then fillers without end."""
        filler = False
        while True:
            for read in prefill(model, self.passages, all_logits=not filler):
                if not filler:
                    self.expected[read.index] = read.logits
                cache = [(k[:, :PREFIX], v[:, :PREFIX]) for k, v in read.cache]
                yield Job(read.index, self.passages[read.index][PREFIX], cache, filler)
            filler = True

    def choose(self, jobs: Sequence[Job], logits: Tensor) -> list[int | None]:
        """Score each row's next token and return it; None after a passage's last token."""
        chosen = [self._follow(job) for job in jobs]
        scored = [row for row, job in enumerate(jobs) if not job.filler]
        if scored:
            self._score([jobs[row] for row in scored], logits[scored])
        return chosen

    def _follow(self, job: Job) -> int | None:
        passage = self.passages[job.index]
        place = PREFIX + 1 + len(job.tokens)
        job.tokens.append(passage[place])
        return passage[place] if place + 1 < len(passage) else None

    def _score(self, jobs: Sequence[Job], logits: Tensor) -> None:
        """Add one step's losses and divergences; each job's next token is its last chosen one."""
        references = []
        for job in jobs:
            reference = self.expected[job.index]
            assert reference is not None
            references.append(reference[PREFIX + len(job.tokens) - 1])
            if PREFIX + 1 + len(job.tokens) == len(self.passages[job.index]):
                self.expected[job.index] = None
        wanted = torch.tensor([job.tokens[-1] for job in jobs], device=logits.device)
        got = logits.double().log_softmax(-1)
        reference = torch.stack(references).double().log_softmax(-1)
        self.loss -= float(got.gather(1, wanted[:, None]).sum())
        self.kl += float(torch.nn.functional.kl_div(got, reference, reduction="sum", log_target=True))
        self.count += len(jobs)


def _exp(value: float) -> float:
    return exp(value) if value < 700 else inf
