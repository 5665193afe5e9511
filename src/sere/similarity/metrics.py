"""The metrics by name: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from sere.errors import ConfigError, did_you_mean
from sere.similarity import cka, cosine, frobenius, projection, weights
from sere.similarity.accumulator import Accumulator
from sere.similarity.metric import Metric

_ROWS = (
    frobenius.METRIC,
    cosine.METRIC,
    cka.METRIC,
    *cka.WITH_ONE_KERNEL,
    projection.METRIC,
    weights.METRIC,
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ROWS})
"""Every metric by its name. Calibration, tables, the command line and the common tests look here."""

DEFAULT_METRIC = projection.METRIC.name
"""The metric wherever none is named: the only one with factors. The paper's is ``frobenius``."""


def get_metric(name: str) -> Metric:
    """Return the metric of this name.

    Raises:
        ConfigError: No metric has this name; the text suggests the nearest.
    """
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}{did_you_mean(str(name), METRICS)}")
    return METRICS[name]


def resolve_parameters(metric: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of a metric: those given, checked, and the defaults of the others.

    Args:
        metric: A name in `METRICS`.
        parameters: Some of its parameters.

    Raises:
        ConfigError: The metric or a parameter is unknown (the text names the nearest), or a value is wrong.
    """
    return get_metric(metric).resolve(parameters)


def make_accumulator(
    metric: str,
    num_experts: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    **parameters: Any,
) -> Accumulator:
    """Make the accumulator of one layer.

    Args:
        metric: A name in `METRICS`.
        num_experts: Number of experts of the layer.
        device: Where to compute; None for the device of the outputs.
        dtype: What products are computed in: float32 or float64.
        **parameters: The metric's parameters, e.g. ``kernel="rbf", bandwidth=0.5`` for ``cka``.

    Raises:
        ConfigError: The metric or a parameter is unknown or wrong, or the metric takes weights, not outputs.
        InputError: ``num_experts`` or ``dtype`` is wrong.
    """
    found = get_metric(metric)
    values = found.resolve(parameters)
    if found.accumulator is None:
        raise ConfigError(
            f"{metric}: is computed from the experts' weights, not from outputs; use "
            f"METRICS[{metric!r}].of_weights"
        )
    return found.accumulator(num_experts, device=device, dtype=dtype, **values)
