"""How often each expert of one worker's layers was chosen and ran, if its engine counts that."""

from __future__ import annotations

from typing import Any

from sere.errors import ConfigError
from sere.integrations.vllm.worker.state import WorkerState

NOT_COUNTED = (
    'the uses of each expert are not counted in this engine: start it with "count_experts": true under '
    "additional_config['sere']"
)


def report_experts(state: WorkerState) -> dict[str, Any]:
    """Return what each layer counted, as plain numbers, which can be sent between processes.

    Args:
        state: The worker's state.

    Raises:
        ConfigError: The engine was started without ``count_experts``.
    """
    if not state.plugin_config.count_experts:
        raise ConfigError(NOT_COUNTED)
    return {
        "fingerprint": state.fingerprint,
        "data_parallel_rank": state.data_parallel_rank,
        "layers": [
            {
                "index": layer.shape.index,
                "name": layer.name,
                "share": layer.share,
                "experts": layer.experts.tolist(),
            }
            for layer in state.layers.values()
            if layer.experts is not None
        ],
    }
