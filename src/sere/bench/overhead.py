"""The overhead of re-routing: the time inside its hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from sere.bench.timing import synchronize
from sere.structure import find_experts


@dataclass(frozen=True, slots=True)
class Overhead:
    """Time that re-routing itself takes.

    Attributes:
        us_per_layer: Median time per layer and step, in µs.
        ms_per_step: Median over steps of the sum over layers, in ms.
    """

    us_per_layer: float
    ms_per_step: float


def measure_overhead(model: Any, block: Callable[[], list[float]]) -> Overhead:
    """Run a block of decode steps and time the hooks between each experts module's call and its forward.

    One clock hook is set before the existing hooks and one after them. Both wait for the device, so the
    block's own step times mean nothing.

    Args:
        model: A model on which a setting is applied.
        block: Runs decode steps from a prefilled state; returns the time of each step but the first.
    """
    layers = find_experts(model)
    clock = _Clock()
    hooks = []
    try:
        for layer in layers:
            hooks.append(layer.module.register_forward_pre_hook(clock.start, prepend=True))
            hooks.append(layer.module.register_forward_pre_hook(clock.stop))
        block()
    finally:
        for hook in hooks:
            hook.remove()
    calls = clock.us[len(layers) :]  # the first step prepares and compiles
    steps = [sum(calls[at : at + len(layers)]) for at in range(0, len(calls), len(layers))]
    return Overhead(median(calls), median(steps) / 1e3)


class _Clock:
    def __init__(self) -> None:
        self.started = 0.0
        self.us: list[float] = []

    def start(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        synchronize(args[0].device)
        self.started = perf_counter()

    def stop(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        synchronize(args[0].device)
        self.us.append((perf_counter() - self.started) * 1e6)
