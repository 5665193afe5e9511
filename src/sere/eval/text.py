"""How well the model still predicts given texts: likelihood, agreement, divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import exp, inf, isfinite, sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sere.errors import DataError, InputError
from sere.eval.decoding.continuous_batching import Job, run_rows
from sere.eval.decoding.prefill import prefill
from sere.eval.decoding.static_batching import Forced, force, groups
from sere.integrations.transformers.inputs import has_full_attention_cache

if TYPE_CHECKING:
    from sere.integrations.transformers import Handle

# Tokens of each English passage that prefill reads, so that the model knows what it continues.
PREFIX = 8


@dataclass(frozen=True, slots=True)
class Text:
    """A text to be scored in decode steps.

    Attributes:
        tokens: Its token ids.
        read: How many of them prefill reads, at least 1. The next token is fed in the first decode step; the
            one after it is the first that is scored.
    """

    tokens: Sequence[int]
    read: int

    @property
    def scored(self) -> int:
        """How many of its tokens are scored."""
        return len(self.tokens) - self.read - 1


@dataclass(slots=True)
class TextScore:
    """Sums over the scored tokens of one text.

    Attributes:
        tokens: How many there are.
        loss: Negative log-likelihood, nats.
        kl: KL(unmodified ‖ scored model), nats. If the unmodified model's distributions come from prefill,
            rounding makes it slightly larger than 0 even without re-routing.
        root_kl: The sum of the square roots of the tokens' KL, which a few large ones do not decide.
        agreed: Tokens where the most likely token is the unmodified model's too.
    """

    tokens: int = 0
    loss: float = 0.0
    kl: float = 0.0
    root_kl: float = 0.0
    agreed: int = 0


def passage_texts(encoded: Sequence[Sequence[int]]) -> list[Text]:
    """Return passages as texts whose first `PREFIX` tokens are read by prefill.

    Raises:
        DataError: There is no passage, or one is too short.
    """
    short = min((len(passage) for passage in encoded), default=0)
    if short < PREFIX + 2:
        raise DataError(f"text: expected passages of at least {PREFIX + 2} tokens, got one of {short}")
    return [Text(passage, PREFIX) for passage in encoded]


@contextmanager
def paused(handle: Handle) -> Iterator[None]:
    """Run a model to which a setting is applied as if it were unmodified."""
    handle.enabled = False
    try:
        yield
    finally:
        handle.enabled = handle.active


def summarize(scores: Sequence[TextScore]) -> dict[str, Any]:
    """Return perplexity, divergence per token in nats, and number of tokens over all texts."""
    tokens = sum(score.tokens for score in scores)
    loss = sum(score.loss for score in scores) / tokens
    return {
        "perplexity": exp(loss) if loss < 700 else inf,
        "kl": sum(score.kl for score in scores) / tokens,
        "tokens": tokens,
    }


@torch.no_grad()
def score_texts(
    model: Any,
    texts: Sequence[Text],
    *,
    batch_size: int,
    unmodified: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_finished: Callable[[], object] = lambda: None,
) -> list[TextScore]:
    """Read texts in decode steps of ``batch_size`` rows and score each next token.

    One token per row and step, with the model's cache, so that re-routing sees the same batches as in
    serving. If the cache is one of plain full attention, a row whose text has ended continues with the next
    text, and the unmodified model's distributions come from prefill. Otherwise a group of texts begins
    together, and a row that has ended is fed its own tokens again, unscored. Such a group is decoded twice,
    first by the unmodified model, because with some of these caches prefill computes something else or
    padding changes the result. In both cases every step has the same number of rows, all of real text.

    Args:
        model: A causal language model of Transformers; re-routing, if any, on decode steps only.
        texts: At least one scored token each.
        batch_size: Rows of a step, at most the number of texts.
        unmodified: A context in which the model's decode steps are not re-routed.
        on_finished: Called after each text, for progress.

    Returns:
        One score per text.

    Raises:
        InputError: The model's logits are not finite numbers.
    """
    scorer = _Scorer(texts)
    B = min(batch_size, len(texts))
    if has_full_attention_cache(model):
        reader = _Reader(texts, scorer)
        steps = run_rows(model, reader.jobs(model), reader.choose, B=B, finished=lambda _: on_finished())
        for _ in steps:
            pass
    else:
        _score_groups(model, texts, scorer, B, unmodified, on_finished)
    return scorer.scores


class _Scorer:
    """Adds up how well the model predicts each text's tokens.

    Attributes:
        expected: Per text that is being decoded, the unmodified model's logits of its scored tokens,
            ``[n, V]``; else None.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = texts
        self.scores = [TextScore() for _ in texts]
        self.expected: list[Tensor | None] = [None] * len(texts)

    def expect(self, index: int, logits: Tensor) -> None:
        """Keep the unmodified model's logits of the text's scored tokens, ``[n, V]``."""
        self.expected[index] = logits

    def add(self, indices: Sequence[int], logits: Tensor) -> None:
        """Score the next token of some texts, ``logits`` ``[len(indices), V]``.

        Raises:
            InputError: A logit is not a finite number.
        """
        references, wanted = [], []
        for index in indices:
            text, expected, scored = self.texts[index], self.expected[index], self.scores[index].tokens
            assert expected is not None
            references.append(expected[scored])
            wanted.append(text.tokens[text.read + 1 + scored])
        got = logits.double().log_softmax(-1)
        reference = torch.stack(references).double().log_softmax(-1)
        targets = torch.tensor(wanted, device=logits.device)
        losses = -got.gather(1, targets[:, None])[:, 0]
        # A token that is impossible under the unmodified model adds nothing.
        terms = torch.where(reference.isneginf(), 0.0, reference.exp() * (reference - got))
        rows = zip(
            indices,
            losses.tolist(),
            terms.sum(-1).tolist(),
            (got.argmax(-1) == reference.argmax(-1)).tolist(),
            strict=True,
        )
        for index, loss, kl, agreed in rows:
            if not (isfinite(loss) and isfinite(kl)):
                raise InputError(
                    "model: its logits are not finite numbers; float16 may overflow: try --dtype bfloat16 or "
                    "float32"
                )
            score = self.scores[index]
            score.loss, score.kl, score.agreed = score.loss + loss, score.kl + kl, score.agreed + agreed
            # Rounding may leave a divergence slightly below 0.
            score.root_kl += sqrt(max(0.0, kl))
            score.tokens += 1
            if score.tokens == self.texts[index].scored:
                self.expected[index] = None


@dataclass(frozen=True, slots=True)
class _Reader:
    """Feeds the texts' own tokens to `run_rows`."""

    texts: Sequence[Text]
    scorer: _Scorer

    def jobs(self, model: Any) -> Iterator[Job]:
        """Yield one job per text, then fillers without end."""
        tokens, keep = [text.tokens for text in self.texts], 1 + max(text.scored for text in self.texts)
        filler = False
        while True:
            for found in prefill(model, tokens, keep=1 if filler else keep):
                text = self.texts[found.index]
                if not filler:
                    # The logits of the last token predict what follows the text.
                    self.scorer.expect(found.index, found.logits[-text.scored - 1 : -1].clone())
                cache = [(k[:, : text.read], v[:, : text.read]) for k, v in found.cache]
                yield Job(found.index, text.tokens[text.read], cache, filler)
            filler = True

    def choose(self, jobs: Sequence[Job], logits: Tensor) -> list[int | None]:
        """Score each row's next token and return it; None after a text's last token."""
        scored = [row for row, job in enumerate(jobs) if not job.filler]
        if scored:
            self.scorer.add([jobs[row].index for row in scored], logits[scored])
        return [self._follow(job) for job in jobs]

    def _follow(self, job: Job) -> int | None:
        text = self.texts[job.index]
        index = text.read + 1 + len(job.tokens)
        job.tokens.append(text.tokens[index])
        return text.tokens[index] if index + 1 < len(text.tokens) else None


def _score_groups(
    model: Any,
    texts: Sequence[Text],
    scorer: _Scorer,
    B: int,
    unmodified: Callable[[], AbstractContextManager[object]],
    on_finished: Callable[[], object],
) -> None:
    """Score groups of B texts with the model's own ``generate``, which works with every cache."""
    for indices in groups(len(texts), B):
        rows = [Forced(texts[i].tokens[: texts[i].read], texts[i].tokens[texts[i].read :]) for i in indices]
        # Texts that only fill up the last group were scored in the first.
        group = _Group(scorer, [index for index in indices if index >= indices[0]])
        with unmodified():
            force(model, rows, 1 + max(group.scored), group.keep)
        group.expect()
        force(model, rows, 1 + max(group.scored), group.score)
        for _ in group.own:
            on_finished()


class _Group:
    """Texts that are decoded together, twice: for the unmodified model's logits, then for the scores.

    Attributes:
        own: Indices of its texts, which are its first rows.
        scored: How many tokens of each are scored, without the first, whose logits come from prefill.
    """

    def __init__(self, scorer: _Scorer, own: Sequence[int]) -> None:
        self.scorer, self.own = scorer, own
        self.scored = [scorer.texts[index].scored for index in own]
        self.kept: list[list[Tensor]] = [[] for _ in own]

    def keep(self, step: int, logits: Tensor) -> None:
        """Keep the logits ``[B, V]`` of a step."""
        for row in self._rows(step):
            self.kept[row].append(logits[row].clone())

    def expect(self) -> None:
        """Hand over what was kept."""
        for index, kept in zip(self.own, self.kept, strict=True):
            self.scorer.expect(index, torch.stack(kept))

    def score(self, step: int, logits: Tensor) -> None:
        """Score the logits ``[B, V]`` of a step."""
        if rows := self._rows(step):
            self.scorer.add([self.own[row] for row in rows], logits[rows])

    def _rows(self, step: int) -> list[int]:
        return [row for row, count in enumerate(self.scored) if 0 < step <= count]
