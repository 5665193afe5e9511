"""Decode steps of exactly B rows, as in a serving engine under load (continuous batching).

The rows of a step share one cache, aligned at its right end. A row whose text has ended gets the next prompt
at once: the prompt's keys and values are written to the left of the common right end, and the mask hides
everything before them. Every row has its own positions, so it computes what it would compute in a batch of
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sere.eval.decoding.prefill import KeyValues
from sere.integrations.transformers.inputs import cache_argument


@dataclass(slots=True)
class Job:
    """One text while it is decoded.

    Attributes:
        index: Its index among the texts.
        token: The next input token.
        cache: Keys and values of the tokens before it; given away when the job gets a row.
        filler: Whether it only keeps the batch full, and its result is not used.
        tokens: The tokens chosen so far.
    """

    index: int
    token: int
    cache: KeyValues
    filler: bool = False
    tokens: list[int] = field(default_factory=list)


Choose = Callable[[Sequence[Job], Tensor], list[int | None]]
"""Given the jobs of a step and their logits ``[B, V]``: each row's next token, or None if it has ended."""


@torch.no_grad()
def run_rows(
    model: Any, jobs: Iterator[Job], choose: Choose, *, B: int, finished: Callable[[Job], object]
) -> Iterator[float]:
    """Decode ``jobs`` in steps of ``B`` rows until all but the fillers have ended, one step per turn.

    Args:
        model: A causal language model for which `has_full_attention_cache` holds.
        jobs: The texts in order, then fillers without end, so that every step has ``B`` rows; or nothing.
        choose: Chooses each row's next token.
        B: Rows of a step.
        finished: Called with each job that has ended, except fillers.

    Yields:
        After each step its time in ms: the model's forward pass and the choice, without prefill.
    """
    rows = list(islice(jobs, B))
    if not rows:
        return
    slots = _Slots(model, rows)
    while not all(job.filler for job in rows):
        started = perf_counter()
        chosen = choose(rows, slots.step([job.token for job in rows]))
        step_ms = (perf_counter() - started) * 1e3
        for row, token in enumerate(chosen):
            if token is not None:
                rows[row].token = token
                continue
            if not rows[row].filler:
                finished(rows[row])
            rows[row] = next(jobs)
            slots.put(row, rows[row])
        if None in chosen:
            slots.trim()
        yield step_ms


class _Slots:
    """The cache of B rows, aligned at the right end."""

    def __init__(self, model: Any, jobs: Sequence[Job]) -> None:
        from transformers import DynamicCache

        self.model = model
        self.cache = DynamicCache(config=model.config)
        B = len(jobs)
        self.lengths = [0] * B
        self.mask = torch.zeros(B, 0, dtype=torch.bool, device=model.device)
        for index, (k, v) in enumerate(jobs[0].cache):
            empty_k, empty_v = (x.new_zeros(B, x.shape[0], 0, x.shape[2]) for x in (k, v))
            self.cache.update(empty_k, empty_v, index)
        self._widen(max(job.cache[0][0].shape[1] for job in jobs))
        for row, job in enumerate(jobs):
            self.put(row, job)

    def step(self, tokens: list[int]) -> Tensor:
        """Feed one token per row and return the logits, ``[B, V]``."""
        positions = torch.tensor(self.lengths, device=self.mask.device)[:, None]
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        output = self.model(
            input_ids=torch.tensor(tokens, device=self.mask.device)[:, None],
            attention_mask=self.mask.long(),
            position_ids=positions,
            use_cache=True,
            **cache_argument(self.model, self.cache),
        )
        self.lengths = [length + 1 for length in self.lengths]
        logits: Tensor = output.logits[:, -1]
        return logits

    def put(self, row: int, job: Job) -> None:
        """Give ``row`` to ``job``; its keys and values end at the common right end."""
        length = job.cache[0][0].shape[1]
        self._widen(length)
        start = self.mask.shape[1] - length
        for layer, (k, v) in zip(self.cache.layers, job.cache, strict=True):
            layer.keys[row, :, start:] = k
            layer.values[row, :, start:] = v
        self.mask[row, :start] = False
        self.mask[row, start:] = True
        self.lengths[row] = length
        job.cache = []

    def trim(self) -> None:
        """Drop the columns on the left that no row uses any longer."""
        spare = self.mask.shape[1] - max(self.lengths)
        if spare > 0:
            self.mask = self.mask[:, spare:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]

    def _widen(self, width: int) -> None:
        """Add hidden columns on the left until there are ``width``."""
        missing = width - self.mask.shape[1]
        if missing > 0:
            self.mask = torch.nn.functional.pad(self.mask, (missing, 0))
            for layer in self.cache.layers:
                layer.keys, layer.values = (
                    torch.nn.functional.pad(x, (0, 0, missing, 0)) for x in (layer.keys, layer.values)
                )
