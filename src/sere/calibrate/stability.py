"""How stable the choice of neighbors is: whether two halves of the tokens choose the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sere.calibrate.sums import below, under
from sere.similarity import Accumulator, LayerSimilarity

# Parts that differ more are not halves: so few rows came at a time that there was no cut near the middle.
_SMALLEST_PART = 1 / 3


class Halves:
    """Watches one layer's accumulators, and compares what the first and second half of its rows say.

    It takes one copy of the accumulators' sums, in the middle. The accumulators stay as they are.
    """

    def __init__(self, num_tokens: int) -> None:
        """Watch a layer that gets ``num_tokens`` rows; 0 if that is not known."""
        self._half = num_tokens / 2
        self._rows = 0
        self._first: dict[str, tuple[Tensor, Mapping[str, Tensor]]] = {}

    def look(self, rows: int, accumulators: Mapping[str, Accumulator]) -> None:
        """Take the first half, once it is complete.

        Args:
            rows: Rows so far.
            accumulators: Of these rows, by metric.
        """
        if self._first or self._half < 2 or rows < self._half:
            return
        self._rows = rows
        for name, accumulator in accumulators.items():
            self._first[name] = (neighbor_choices(accumulator.finalize()), accumulator.state())

    def state(self) -> dict[str, Tensor]:
        """Return the first half, as far as it is complete, as tensors that `load_state` reads back."""
        tensors = {"rows": torch.tensor([self._rows], device="cpu")}
        for name, (choice, sums) in self._first.items():
            tensors |= under(name, {"choice": choice} | under("sums", sums))
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``; what was taken here is replaced."""
        self._rows = int(state["rows"][0])
        names = dict.fromkeys(key.partition("/")[0] for key in state if "/" in key)
        parts = {name: below(name, state) for name in names}
        self._first = {name: (part["choice"], below("sums", part)) for name, part in parts.items()}

    def finish(self, rows: int, accumulators: Mapping[str, Accumulator]) -> dict[str, Tensor]:
        """Return each expert's nearest neighbor by metric, ``[2, E]``: by the first half, by the second.

        Args:
            rows: All rows.
            accumulators: Of all rows, by metric.

        Returns:
            -1 stands for "not known". Nothing if the parts are not about equal.
        """
        if not self._first or not _SMALLEST_PART < self._rows / rows < 1 - _SMALLEST_PART:
            return {}
        return {
            name: torch.stack([choice, neighbor_choices(accumulators[name].since(state))])
            for name, (choice, state) in self._first.items()
        }


def neighbor_choices(layer: LayerSimilarity) -> Tensor:
    """Return the other expert that resembles each expert most, ``[E]``, int64; -1 if none is known."""
    others = layer.similarity.cpu().nan_to_num(nan=-1).fill_diagonal_(-1)
    best, choice = others.max(dim=1)
    return choice.masked_fill(best == -1, -1)


def stability(
    similarities: Mapping[int, LayerSimilarity], halves: Mapping[int, Tensor]
) -> dict[str, Any] | None:
    """Return how well two halves of the tokens agree, JSON-ready; None if that was not recorded.

    Args:
        similarities: Of all tokens, by decoder-layer index.
        halves: What `Halves.finish` returned of the same metric, by decoder-layer index.

    Returns:
        ``experts``: experts of which both halves know a neighbor. ``agree``: the share of them for which it
        is the same. ``lost``: how much less similar a half's neighbor is than the best one, by the
        similarities of all tokens, in the mean.
    """
    same = known = 0
    lost = 0.0
    for index, (first, second) in ((index, pair.unbind()) for index, pair in halves.items()):
        both = (first >= 0) & (second >= 0)
        values = similarities[index].similarity.cpu().nan_to_num(nan=0).double()
        best = values.clone().fill_diagonal_(-1).max(dim=1).values[both]
        known += int(both.sum())
        same += int((first == second)[both].sum())
        for choice in (first, second):
            lost += float((best - values[both, choice[both]]).sum()) / 2
    return {"experts": known, "agree": same / known, "lost": lost / known} if known else None
