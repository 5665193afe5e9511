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
        cap: Whether P has at most M experts, but for those that are never replaced.
        active_targets: Whether critical experts, too, may take over slots.
        merge: One of ``MERGE_NONE``, ``MERGE_SAME``, ``MERGE_DISTINCT`` and ``MERGE_SENTINEL``.
        sentinel: The id of freed slots with ``MERGE_SENTINEL``, else 0.
    """

    cap: bool
    active_targets: bool
    merge: int
    sentinel: int

    @classmethod
    def of(cls, config: RerouteConfig) -> Self:
        """Return the numbers of a configuration."""
        return cls(
            cap=config.cap,
            active_targets=config.targets == "active",
            merge=MERGE_MODES[config.merge],
            sentinel=0 if config.sentinel is None else config.sentinel,
        )


class RawLayer(NamedTuple):
    """A layer before a backend prepares it; checked.

    Attributes:
        similarity: ``[E, E]``, float32, on the host; NaN where it is not known.
        threshold: ρ; compared in float32, like the similarities.
        limits: ``[LIMITS]``, int32, on the host: S, then M for a step of 1, 2, ... rows, then -τ in units of
            2⁻³⁰; a step with more rows has the last M.
        keep: ``[E]``, bool, on the host: experts that are never replaced.
        sensitivity: ``[E]``, float32, in (0, 1], on the host: factors for the masses.
        scale: ``[E, E]``, float32, or None: factors for the weights of re-routed slots.
        config: The other settings.
    """

    similarity: Tensor
    threshold: float
    limits: Tensor
    keep: Tensor
    sensitivity: Tensor
    scale: Tensor | None
    config: KernelConfig

    def shared(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None, KernelConfig]:
        """Return what every backend keeps, in the order of its ``Layer``: ``limits`` to ``config``.

        The tensors are copies on a device. ``substitutes`` is ``[E, E, 2]``, float32: of each pair the factor
        and the similarity; None without factors.
        """
        pairs = None
        if self.scale is not None:
            pairs = torch.stack([self.scale.to(device), self.similarity.to(device)], dim=2)
        sensitivity = self.sensitivity.to(device, torch.float32, copy=True).contiguous()
        return self.limits.to(device, copy=True), self.keep.to(device), sensitivity, pairs, self.config
