"""Checks of a table file, one by one, for people who want to know what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sere.errors import TableError
from sere.identity import ModelIdentity, span
from sere.similarity import METRICS
from sere.similarity.layer import ROUNDING, TOLERANCE
from sere.table.artifact import SimilarityTable
from sere.table.layers import describe_unknown, off_diagonal


@dataclass(frozen=True)
class Check:
    """One check and how it ended.

    Attributes:
        name: What was looked at.
        passed: Whether it is as it should be.
        detail: What was found, or what is wrong and what to do.
    """

    name: str
    passed: bool
    detail: str


def verify_file(path: str | os.PathLike[str], identity: ModelIdentity | None = None) -> tuple[Check, ...]:
    """Check a table file.

    Args:
        path: The file.
        identity: The model that it is for, or None.

    Returns:
        All checks; only the first, failed, if the file cannot be loaded.

    Raises:
        TableError: The file does not exist.
    """
    try:
        table = SimilarityTable.load(path)
    except TableError as error:
        if not Path(path).is_file():
            raise
        return (Check("file", False, str(error)),)
    return verify_table(table, identity)


def verify_table(table: SimilarityTable, identity: ModelIdentity | None = None) -> tuple[Check, ...]:
    """Check a loaded table against the rules of its metric and, if given, its model."""
    experts = span(table.identity.experts.values())
    checks = [
        Check("file", True, f"{len(table.layers)} layers of {experts} experts, fingerprint matches"),
        Check("metric", table.metric in METRICS, f"{table.metric}; known: {', '.join(METRICS)}"),
        _over_layers("symmetry", table, _asymmetric if _symmetric(table.metric) else None),
        _over_layers("spread", table, _without_spread),
        Check("known", True, describe_unknown(table.layers, table.metric) or "similarities of every expert"),
    ]
    if identity is not None:
        checks.append(_matches(table, identity))
    return tuple(checks)


def _symmetric(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].symmetric


def _over_layers(name: str, table: SimilarityTable, problem: Callable[[Tensor], str | None] | None) -> Check:
    if problem is None:
        return Check(name, True, f"not expected of the metric {table.metric!r}")
    found = {index: problem(layer.similarity) for index, layer in table.layers.items()}
    bad = [f"layer {index}: {text}" for index, text in found.items() if text]
    return Check(name, not bad, "; ".join(bad[:3]) if bad else f"all {len(found)} layers")


def _asymmetric(similarity: Tensor) -> str | None:
    if not torch.equal(similarity.isnan(), similarity.isnan().T):
        return "some similarities are known in one direction only; calibrate again"
    worst = float((similarity - similarity.T).abs().nan_to_num(nan=0).max())
    return f"differs from its transpose by {worst:.2g}; calibrate again" if worst > TOLERANCE else None


def _without_spread(similarity: Tensor) -> str | None:
    E = len(similarity)
    others = off_diagonal(similarity)
    if E > 1 and not len(others):
        return "no similarity is known, so nothing is replaced here"
    if E > 2 and float(others.max() - others.min()) <= ROUNDING:
        return f"all similarities are {float(others.max()):.3g}, so none tells experts apart"
    return None


def _matches(table: SimilarityTable, identity: ModelIdentity) -> Check:
    try:
        table.check(identity)
    except TableError as error:
        return Check("model", False, str(error))
    return Check("model", True, f"calibrated on {table.identity.name!r}, fits {identity.name!r}")
