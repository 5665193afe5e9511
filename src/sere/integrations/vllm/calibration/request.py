"""How an engine is asked to let calibration see its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CALIBRATION_KEY = "sere_calibration"
"""What ``additional_config`` holds, as true, in an engine that calibrates."""

ATTRIBUTE = "sere_observed_layers"
"""Where such an engine's worker has its `ObservedLayers`."""


def calibrates(vllm_config: Any) -> bool:
    """Whether an engine was started to calibrate.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
    """
    additional = getattr(vllm_config, "additional_config", None)
    return isinstance(additional, Mapping) and additional.get(CALIBRATION_KEY) is True
