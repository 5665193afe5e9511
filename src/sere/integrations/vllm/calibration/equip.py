"""A worker that has just been made learns to let calibration see its layers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from sere.defaults import TABLE, own_table
from sere.integrations.vllm.calibration.observed import ObservedLayers
from sere.integrations.vllm.calibration.request import ATTRIBUTE
from sere.integrations.vllm.worker.router_hook import report_layers
from sere.integrations.vllm.worker.weights import without_table


def equip_for_calibration(worker: Any) -> None:
    """Watch the model being built, and afterward the model runner's steps.

    Args:
        worker: vLLM's worker; methods are replaced on this object.
    """
    config = worker.vllm_config
    observed = ObservedLayers(config)
    setattr(worker, ATTRIBUTE, observed)
    load_model = worker.load_model
    table = own_table(config.model_config.model) or Path(TABLE)

    @functools.wraps(load_model)
    def loading(*args: Any, **kwargs: Any) -> Any:
        with report_layers(observed.add), without_table(table):
            result = load_model(*args, **kwargs)
        observed.prepare(worker.model_runner)
        return result

    worker.load_model = loading
