"""The metrics by name, with their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from sere.errors import ConfigError, did_you_mean
from sere.similarity.accumulator import Accumulator
from sere.similarity.cka import CKA, KERNELS
from sere.similarity.cosine import Cosine
from sere.similarity.frobenius import Frobenius
from sere.similarity.projection import Projection

_KERNEL_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "rbf": {"bandwidth": 1.0},
    "polynomial": {"degree": 3, "offset": 1.0},
}


@dataclass(frozen=True)
class Metric:
    """A similarity metric: what it is called, takes and needs.

    Attributes:
        name: The word for it in settings, tables and on the command line.
        summary: What it measures, in one line.
        build: Makes its accumulator from E and parameters; None for a metric of the weights.
        defaults: Its parameters and their defaults.
        symmetric: Whether p is as similar to e as e to p.
        needs_routing: Whether it needs the router's ids and weights.
        unknown: Why nothing is known of some experts, and what helps; empty where all are known.
    """

    name: str
    summary: str
    build: Callable[..., Accumulator] | None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    symmetric: bool = True
    needs_routing: bool = False
    unknown: str = ""


_SAME = "they gave the same output for all tokens of each window"
_CKA_DEFAULTS = {"kernel": "linear", "window": 128}

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("frobenius", "distance of outputs, relative to the farthest pair", Frobenius),
            Metric(
                "cosine",
                "mean cosine of outputs, token by token",
                Cosine,
                unknown="they gave no output on any token",
            ),
            Metric(
                "cka",
                "centered kernel alignment (kernel= linear, rbf, polynomial)",
                CKA,
                _CKA_DEFAULTS,
                unknown=_SAME,
            ),
            *(
                Metric(
                    f"cka_{kernel}",
                    f"cka with the {kernel} kernel",
                    CKA,
                    _CKA_DEFAULTS | {"kernel": kernel},
                    unknown=_SAME,
                )
                for kernel in KERNELS
            ),
            Metric(
                "projection",
                "share of an expert's routed output that one scalar times another explains",
                Projection,
                symmetric=False,
                needs_routing=True,
                unknown="no calibration token was routed to them, or they gave no output where one was; "
                "calibrate on more tokens to know them",
            ),
            Metric(
                "weights",
                "cosine of the experts' weights; needs no data",
                None,
                unknown="their weights are all 0",
            ),
        )
    }
)


def get_metric(name: str) -> Metric:
    """Return the metric of this name.

    Raises:
        ConfigError: There is none; the text names the nearest.
    """
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}{did_you_mean(str(name), METRICS)}")
    return METRICS[name]


def resolve_parameters(metric: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of a metric: those given, checked, and the defaults of the others.

    Args:
        metric: A name of `METRICS`.
        parameters: Some of its parameters.

    Raises:
        ConfigError: The metric or a parameter is unknown (the text names the nearest), or a value is wrong.
    """
    valid = dict(get_metric(metric).defaults)
    if "kernel" in valid:
        kernel = valid["kernel"] if metric != "cka" else parameters.get("kernel", valid["kernel"])
        if kernel not in KERNELS:
            raise ConfigError(f"{metric}: unknown kernel {kernel!r}{did_you_mean(str(kernel), KERNELS)}")
        valid |= {"kernel": kernel} | dict(_KERNEL_DEFAULTS[kernel])
    for name, value in parameters.items():
        if name not in valid:
            hint = did_you_mean(name, valid) if valid else "; it has none"
            raise ConfigError(f"{metric}: unknown parameter {name!r}{hint}")
        _check_value(metric, name, value, valid[name])
    return valid | dict(parameters)


def make_accumulator(
    metric: str,
    E: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    **parameters: Any,
) -> Accumulator:
    """Make the accumulator of one layer.

    Args:
        metric: A name of `METRICS`.
        E: Number of experts.
        device: Where to compute; None for where the outputs are.
        dtype: What products are computed in: float32 or float64.
        **parameters: The metric's parameters, e.g. ``kernel="rbf", bandwidth=0.5`` for ``cka``.

    Raises:
        ConfigError: The metric or a parameter is unknown or wrong, or the metric takes no outputs.
        InputError: ``E`` or ``dtype`` is wrong.
    """
    values = resolve_parameters(metric, parameters)
    build = METRICS[metric].build
    if build is None:
        raise ConfigError(f"{metric}: is computed from the experts' weights; use weights_similarity(weights)")
    return build(E, device=device, dtype=dtype, **values)


def _check_value(metric: str, name: str, value: Any, default: Any) -> None:
    if name == "kernel":
        if value != default:
            raise ConfigError(f"{metric}: has the kernel {default!r}, got kernel={value!r}; use metric 'cka'")
        return
    least = {"window": 2, "degree": 1}.get(name)
    if least is not None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{metric}: {name}: expected an integer of at least {least}, got {value!r}")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value < float("inf")) or (name == "bandwidth" and value == 0):
        bound = "above 0" if name == "bandwidth" else "of at least 0"
        raise ConfigError(f"{metric}: {name}: expected a finite number {bound}, got {value!r}")
