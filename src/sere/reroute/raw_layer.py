"""One layer and its settings as ``prepare_layer`` hands them to a backend: host tensors and plain numbers."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.reroute.constants import MERGE_MODES


class KernelConfig(NamedTuple):
    """The settings that a kernel takes as numbers; docs/method.md section 4 defines each.

    Attributes:
        select_top_k: S, slots per row that are primary where a batch has no budgets.
        min_active: Least size of the primary set.
        active_targets: Whether critical experts, too, may take over slots.
        merge: One of ``MERGE_NONE``, ``MERGE_SAME``, ``MERGE_DISTINCT`` and ``MERGE_SENTINEL``.
        sentinel: The id of freed slots with ``MERGE_SENTINEL``, else 0.
    """

    select_top_k: int
    min_active: int
    active_targets: bool
    merge: int
    sentinel: int

    @classmethod
    def of(cls, config: RerouteConfig) -> Self:
        """Return the numbers of a configuration."""
        return cls(
            select_top_k=config.select_top_k,
            min_active=config.min_active,
            active_targets=config.targets == "active",
            merge=MERGE_MODES[config.merge],
            sentinel=0 if config.sentinel is None else config.sentinel,
        )


class RawLayer(NamedTuple):
    """A layer before a backend prepares it; checked.

    Attributes:
        similarity: ``[E, E]``, float32, on the host; NaN where it is not known.
        threshold: ρ; compared in float32, like the similarities.
        keep: ``[E]``, bool, on the host: experts that are never replaced.
        scale: ``[E, E]``, float32, or None: factors for the weights of re-routed slots.
        config: The other settings.
    """

    similarity: Tensor
    threshold: float
    keep: Tensor
    scale: Tensor | None
    config: KernelConfig

    def shared(self, device: torch.device) -> tuple[Tensor, Tensor | None, KernelConfig]:
        """Return what every backend keeps: ``keep`` and a copy of ``scale``, on a device, and ``config``."""
        scale = None if self.scale is None else self.scale.to(device, copy=True).contiguous()
        return self.keep.to(device), scale, self.config
