"""A worker that has just been made learns to let calibration see its layers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from sere.defaults import TABLE, default_table
from sere.errors import UnsupportedEngine
from sere.integrations.vllm.calibration.observed import ObservedLayers
from sere.integrations.vllm.calibration.request import ATTRIBUTE
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker.router_hook import report_layers
from sere.integrations.vllm.worker.weights import without_table


def equip_for_calibration(worker: Any) -> None:
    """Watch the model being built, and afterward the model runner's steps.

    Args:
        worker: vLLM's worker; methods are replaced on this object.

    Raises:
        UnsupportedEngine: vLLM's version or a feature is not supported.
    """
    config = worker.vllm_config
    versions.check_version(
        versions.engine_version(), device_type=config.device_config.device_type, allow_untested=False
    )
    _check_features(config)
    observed = ObservedLayers(config)
    setattr(worker, ATTRIBUTE, observed)
    load_model = worker.load_model
    table = default_table(config.model_config.model) or Path(TABLE)

    @functools.wraps(load_model)
    def loading(*args: Any, **kwargs: Any) -> Any:
        with report_layers(observed.add), without_table(table):
            result = load_model(*args, **kwargs)
        observed.prepare(worker.model_runner)
        return result

    worker.load_model = loading


def _check_features(vllm_config: Any) -> None:
    """Refuse features with which a layer's rows are not the step's.

    Raises:
        UnsupportedEngine: One is on; the text names it.
    """
    parallel = vllm_config.parallel_config
    wrong = {
        "data_parallel_size": getattr(parallel, "data_parallel_size", 1) > 1,
        "prefill_context_parallel_size": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "enable_eplb": bool(getattr(parallel, "enable_eplb", False)),
        "enable_dbo": bool(getattr(parallel, "enable_dbo", False)),
        "speculative_config": getattr(vllm_config, "speculative_config", None) is not None,
    }
    for name, is_on in wrong.items():
        if is_on:
            raise UnsupportedEngine(
                f"{name}: calibration needs each layer's rows to be those of the step, and its experts where "
                "they were loaded; leave this option out (tensor and pipeline parallelism work)"
            )
