"""S, M and the least gain of all layers for the coming step: the engine's own, or of requests' tiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sere.config import MOST_INT
from sere.integrations.vllm.tiers import OFF
from sere.reroute.constants import LIMITS

Choice = str | None
"""A tier of the table, ``OFF`` to keep every expert, or None for the engine's own settings."""


class StepLimits:
    """What the layers read of these limits, in one tensor that is written in place when a step needs others.

    A step whose slots are all computed in any case has limits of its own, because a slot that is given up
    saves no time there. Everything is allocated once, on the device: a change is a copy on the stream of the
    forward pass, which captured graphs and compiled code follow. A step like the one before costs a
    comparison.

    Args:
        layers: How many layers there are.
        tiers: The tiers that requests may ask for.
        device: Where the layers run.

    Attributes:
        tensor: ``[layers, LIMITS]``, int32: of each layer what `layer_limits` returns.
        choices: ``[2, 2 + tiers, layers, LIMITS]``, int32: what can be chosen, where slots that are given up
            are skipped, then where all slots are computed.
    """

    def __init__(self, layers: int, tiers: Sequence[str], device: torch.device) -> None:
        self._index: dict[Choice, int] = {name: i for i, name in enumerate((None, OFF, *tiers))}
        self._chosen: tuple[frozenset[Choice], bool] | None = None
        self._exact_rows: Mapping[Choice, int] = dict.fromkeys(self._index, 0)
        self._least: dict[Choice, int] = dict.fromkeys(self._index, 0)
        # Tensors made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            self.tensor = torch.zeros(layers, LIMITS, dtype=torch.int32, device=device)
            self.choices = torch.zeros(2, len(self._index), layers, LIMITS, dtype=torch.int32, device=device)
        self.choices[:, self._index[OFF], :, 0] = MOST_INT

    def write(
        self,
        limits: Mapping[Choice, Tensor],
        limits_of_all_slots: Mapping[Choice, Tensor],
        exact_rows: Mapping[Choice, int],
    ) -> None:
        """Take other limits from the next step on.

        Args:
            limits: By choice, ``OFF`` not among them: ``[layers, LIMITS]``, int32, on the host.
            limits_of_all_slots: The same for steps that compute all slots.
            exact_rows: By the same choices, up to how many rows a step surely changes nothing.
        """
        self._exact_rows = exact_rows
        least = {name: min(values[:, 0].tolist(), default=0) for name, values in limits.items()}
        self._least = {OFF: MOST_INT, **least}
        for choices, given in zip(self.choices, (limits, limits_of_all_slots), strict=True):
            for name, values in given.items():
                choices[self._index[name]].copy_(values)
        self._chosen = None

    def exact_rows(self, asked: frozenset[Choice]) -> int:
        """Return up to how many rows a step surely changes nothing; of several choices the largest.

        Args:
            asked: At least one choice, ``OFF`` not among them.
        """
        return max(self._exact_rows[choice] for choice in asked)

    def least_select_top_k(self, asked: frozenset[Choice]) -> int:
        """Return an S that each layer has at least in a step; 0 if there is no layer.

        Args:
            asked: At least one choice.
        """
        return max(self._least[choice] for choice in asked)

    def choose(self, asked: frozenset[Choice], *, all_slots: bool = False) -> None:
        """Let the coming step have the limits of what its requests ask for, of each number the largest.

        Args:
            asked: At least one choice.
            all_slots: Whether the step computes all slots in any case.
        """
        if (asked, all_slots) == self._chosen:
            return
        first, *others = (self.choices[int(all_slots), self._index[name]] for name in asked)
        self.tensor.copy_(first)
        for limits in others:
            torch.maximum(self.tensor, limits, out=self.tensor)
        self._chosen = asked, all_slots
