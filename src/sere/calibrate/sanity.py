"""Checks of what a layer's experts compute, and of its similarities; errors name the layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sere.errors import DataError, InputError, SereError, UnsupportedModel, name_some
from sere.similarity import LayerSimilarity
from sere.similarity.layer import ROUNDING
from sere.structure import ExpertsLayer
from sere.table import off_diagonal

logger = logging.getLogger("sere")

_FINITE_ADVICE = "load the model in bfloat16 or float32 (float16 ends at 65,504), or check its weights"


def check_inputs(layer: ExpertsLayer, hidden: Tensor, weights: Tensor) -> None:
    """Refuse hidden states and gate weights that are NaN or infinite before they reach the layer's experts.

    Args:
        layer: The experts module.
        hidden: ``[t, H]``.
        weights: ``[t, K]``.

    Raises:
        InputError: They are; the text names the layer.
    """
    for values, what in ((hidden, "hidden states"), (weights, "gate weights")):
        finite = torch.isfinite(values).all(dim=-1)
        if not bool(finite.all()):
            raise InputError(
                f"{layer.name}: {int((~finite).sum())} of {len(finite)} tokens reach it with NaN or infinite "
                f"{what}; {_FINITE_ADVICE}"
            )


def check_outputs(layer: ExpertsLayer, outputs: Tensor) -> None:
    """Refuse outputs that are NaN or infinite.

    Args:
        layer: Whose experts computed them.
        outputs: ``[E, t, H]``.

    Raises:
        InputError: They are; the text names the layer and the experts.
    """
    finite = torch.isfinite(outputs).all(dim=-1)
    if not bool(finite.all()):
        bad = (~finite).any(dim=1).nonzero().flatten().tolist()
        raise InputError(
            f"{layer.name}: the outputs of {len(bad)} of its {layer.num_experts} experts [{name_some(bad)}] "
            f"are NaN or infinite; {_FINITE_ADVICE}"
        )


def check_tells_apart(layer: ExpertsLayer, metric: str, found: LayerSimilarity) -> None:
    """Refuse known similarities that are all 0, warn if they are all equal: they tell no experts apart.

    Raises:
        InputError: All are 0; the text names layer and metric.
    """
    E = found.num_experts
    if E <= 2:
        return
    others = off_diagonal(found.similarity)
    if not len(others):
        return
    low, high = float(others.min()), float(others.max())
    if low == high == 0:
        raise InputError(
            f"{layer.name}: all similarities of its {E} experts are 0 by the metric {metric!r}, so nothing "
            "can be re-routed with it; try another metric, or check the weights"
        )
    if high - low <= ROUNDING:
        logger.warning(
            "sere: %s: all similarities of its %d experts are %.3g by the metric %r, so none tells experts "
            "apart; are its weights trained?",
            layer.name,
            E,
            low,
            metric,
        )


@contextmanager
def naming_layer(layer: ExpertsLayer) -> Iterator[None]:
    """Put the layer's name at the start of an error about its numbers."""
    try:
        yield
    except (InputError, DataError) as error:
        if str(error).startswith(layer.name):
            raise
        raise type(error)(f"{layer.name}: {error}") from error


def say_few(layer: ExpertsLayer, reached: int, num_tokens: int) -> None:
    """Log that a layer saw only some of the tokens."""
    logger.warning(
        "sere: %s: %d of the %d calibration tokens reached it; its similarities are measured on these only",
        layer.name,
        reached,
        num_tokens,
    )


def never_reached(layer: ExpertsLayer, calls: int) -> SereError:
    """Return the error for a layer that saw no token."""
    if calls == 0:
        return UnsupportedModel(f"{layer.name}: the model's forward pass never called it")
    return DataError(
        f"{layer.name}: no calibration token reached it in {calls} calls; give more or other texts"
    )
