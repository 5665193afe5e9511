"""The front end of an engine that calibrates: refuse what is wrong before any process is started."""

from __future__ import annotations

from typing import Any

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.start import versions


def check_calibration(vllm_config: Any) -> None:
    """Refuse versions that nobody has tried, and features with which a layer's rows are not the step's.

    Args:
        vllm_config: vLLM's ``VllmConfig``, complete.

    Raises:
        UnsupportedEngine: The version is outside the range, or a feature is on; the text names it.
    """
    versions.check_version(
        versions.engine_version(), device_type=vllm_config.device_config.device_type, allow_untested=False
    )
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
