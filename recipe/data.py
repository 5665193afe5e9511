"""Training documents as arrays, and batches of nearly equal length from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recipe.settings import Settings
from sere.eval.tasks import TASK_NAMES, english, questions


@dataclass(frozen=True, slots=True)
class Documents:
    """Encoded documents: i is ``tokens[start[i]:start[i + 1]]``, its loss starts at ``loss_from[i]``."""

    tokens: np.ndarray
    start: np.ndarray
    loss_from: np.ndarray

    def __len__(self) -> int:
        return len(self.loss_from)


def load_documents(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Documents:
    """Draw and encode the training documents; questions bear a loss on their solution only."""
    texts: list[tuple[str, str]] = [
        (question.prompt, question.solution)
        for task in TASK_NAMES
        for question in questions(task, split="train", count=settings.docs_per_task, seed=settings.seed)
    ]
    texts += [("", text) for text in english(split="train", count=settings.english_docs, seed=settings.seed)]
    code = np.zeros(128, dtype=np.uint8)
    for token, index in tokenizer.get_vocab().items():
        if len(token) == 1:
            code[ord(token)] = index
    end = np.array([tokenizer.eos_token_id], dtype=np.uint8)
    parts = [np.append(code[np.frombuffer((a + b).encode("ascii"), np.uint8)], end) for a, b in texts]
    start = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return Documents(np.concatenate(parts), start, np.array([max(len(a), 1) for a, _ in texts]))


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs and targets, ``[B, L]`` int64; targets without loss are -100. ``real`` is False on padding."""

    inputs: Tensor
    targets: Tensor
    real: Tensor


def _collate(documents: Documents, chosen: np.ndarray) -> Batch:
    lengths = documents.start[chosen + 1] - documents.start[chosen]
    inputs = np.zeros((len(chosen), lengths.max() - 1), dtype=np.int64)
    targets = np.full_like(inputs, -100)
    for row, (document, length) in enumerate(zip(chosen, lengths, strict=True)):
        tokens = documents.tokens[documents.start[document] : documents.start[document + 1]]
        inputs[row, : length - 1] = tokens[:-1]
        first = documents.loss_from[document]
        targets[row, first - 1 : length - 1] = tokens[first:]
    real = np.arange(inputs.shape[1])[None] < (lengths - 1)[:, None]
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(real))


def weights(settings: Settings) -> np.ndarray:
    """Return the probability of each document under the settings' emphasis."""
    counts = [settings.docs_per_task] * len(TASK_NAMES) + [settings.english_docs]
    factors = [settings.emphasis.get(name, 1.0) for name in (*TASK_NAMES, "english")]
    each = np.repeat(np.array(factors), counts)
    odds: np.ndarray = each / each.sum()
    return odds


def steps(
    documents: Documents, settings: Settings, first_step: int = 0, emphasis_from: int | None = None
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each step, without end; documents of like length share one.

    From step ``emphasis_from`` on, documents are drawn by ``weights``, before it all alike.
    """
    lengths = np.diff(documents.start)
    stressed = weights(settings)
    step = first_step
    while True:
        # Drawn by step number, so that a resumed run sees what an uninterrupted one would.
        rng = np.random.default_rng((settings.seed, step))
        odds = None if emphasis_from is None or step < emphasis_from else stressed
        mean_length = float(np.average(lengths, weights=odds))
        per_step = max(4, round(settings.step_tokens / mean_length))
        chosen = rng.choice(len(documents), per_step, replace=False, p=odds)
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        total = np.cumsum(lengths[chosen])
        parts = max(1, round(int(total[-1]) / settings.micro_tokens))
        cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts)
        yield [_collate(documents, part) for part in np.split(chosen, cuts) if len(part)]
        step += 1
