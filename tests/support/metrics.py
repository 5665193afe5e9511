"""Cases for every metric in `METRICS`, and what its definition gives for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sere.similarity import METRICS

WINDOW = 8
# Parameters with which a metric is tested besides its defaults.
_MORE: dict[str, list[dict[str, Any]]] = {
    "cka": [
        {"kernel": "rbf", "bandwidth": 0.7},
        {"kernel": "polynomial", "degree": 2, "offset": 0.5},
    ]
}


def _cases() -> dict[str, tuple[str, dict[str, Any]]]:
    cases = {}
    for name, metric in METRICS.items():
        if metric.accumulator is None:
            continue
        small = {"window": WINDOW} if "window" in metric.parameters else {}
        for parameters in ({}, *_MORE.get(name, [])):
            words = " ".join(f"{key}={value}" for key, value in parameters.items())
            cases[f"{name} {words}".strip()] = (name, small | parameters)
    return cases


OF_OUTPUTS = _cases()
"""Metric and parameters by an id, for each metric of outputs; windows are short."""


def experts(E: int, T: int, H: int, seed: int = 0) -> Tensor:
    """Outputs with a common part and some pairs alike, as trained experts have."""
    generator = torch.Generator().manual_seed(seed)
    own, base = torch.randn(E, T, H, generator=generator), torch.randn(T, H, generator=generator)
    alike = torch.rand(E, 1, 1, generator=generator)
    return 3 * base * alike + own * (1 - alike)


def routing(E: int, T: int, K: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The router's choice; some ids are not experts, and some weights are 0."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, E + 1, (T, K), generator=generator)
    weights = torch.rand(T, K, generator=generator)
    return ids, weights * (torch.rand(T, K, generator=generator) > 0.2)


def defined(case: str, Y: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Similarity and scale by the metric's definition."""
    name, parameters = OF_OUTPUTS[case]
    metric = METRICS[name]
    values = metric.resolve(parameters)
    found = metric.definition(*((Y, ids, weights) if metric.needs_routing else (Y,)), **values)
    return (found, None) if isinstance(found, Tensor) else found
