"""Whether a table belongs to the model at hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sere.errors import TableMismatch, name_some
from sere.identity import ModelIdentity, span, summary
from sere.similarity import METRICS
from sere.warn_once import WarnOnce

warn_once = WarnOnce(logging.getLogger("sere"))


def check_identity(table: ModelIdentity, model: ModelIdentity) -> None:
    """Refuse another model than the calibrated one; log once if only the name differs.

    Args:
        table: The model that was calibrated.
        model: The model at hand.

    Raises:
        TableMismatch: The architecture, the layers or a layer's number of experts differ; the text names both
            sides and the values that differ.
    """
    if differences := table.differences(model):
        raise TableMismatch(
            f"the table was calibrated on {summary(table)}, but the model is {summary(model)}: "
            f"{name_some(differences, separator='; ')}; calibrate this model (sere calibrate) or give "
            "its own table"
        )
    if table.name != model.name:
        _warn_other_name(table.name, model.name)


def check_slots(table: ModelIdentity, metric: str, slots: Mapping[int, int]) -> None:
    """Log, once, that the model routes to another number of experts per token than at calibration.

    Args:
        table: The model that was calibrated.
        metric: The table's metric.
        slots: The K of the model at hand by decoder-layer index.
    """
    mine = table.slots
    if table.recorded_digest is not None:  # its file holds the largest K for every layer
        mine, slots = {0: max(mine.values(), default=0)}, {0: max(slots.values(), default=0)}
    if any(mine.get(index, K) != K for index, K in slots.items()):
        _warn_other_slots(table.name, metric, span(mine.values()), span(slots.values()))


def _warn_other_name(table_name: str, model_name: str) -> None:
    warn_once(
        ("name", table_name, model_name),
        "sere: the table was calibrated on %r, but the model is %r, which has the same architecture; the "
        "table fits only if the weights are the same (renamed or quantized), else calibrate again",
        table_name,
        model_name,
    )


def _warn_other_slots(name: str, metric: str, table_slots: str, model_slots: str) -> None:
    routed = metric in METRICS and METRICS[metric].needs_routing
    meaning = (
        f"it was measured on the tokens routed to each expert with K={table_slots}, so its similarities and "
        f"scales describe those tokens; calibrate with K={model_slots} if that matters"
        if routed
        else "similarities do not depend on K, so the table fits"
    )
    warn_once(
        ("slots", name, metric, table_slots, model_slots),
        "sere: the table of %r (%s) was calibrated with K=%s routed slots per token, this model has K=%s: %s",
        name,
        metric,
        table_slots,
        model_slots,
        meaning,
    )
