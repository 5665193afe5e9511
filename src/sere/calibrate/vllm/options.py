"""How an engine that calibrates is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sere.calibrate.config import CalibrationConfig
from sere.errors import ConfigError
from sere.integrations.vllm.calibration.request import CALIBRATION_KEY

FIXED: Mapping[str, str] = {
    "model": "give MODEL",
    "additional_config": "calibration sets it itself",
    "enforce_eager": "experts are computed between a layer's router and its experts",
    "enable_prefix_caching": "each token must be computed",
    "skip_tokenizer_init": "requests are token ids",
    "max_num_seqs": "use --batch-size (batch_size)",
    "max_num_batched_tokens": "use --batch-size and --seq-len (batch_size, seq_len)",
    "async_scheduling": "texts are read one batch after the other",
    "trust_remote_code": "use --trust-remote-code (trust_remote_code)",
    "seed": "use --seed (seed)",
    "data_parallel_size": "use tensor_parallel_size or pipeline_parallel_size",
}
"""Engine options that calibration sets itself, and what to do instead."""

MEMORY = frozenset({"gpu_memory_utilization", "kv_cache_memory_bytes"})
"""Engine options that say how much memory it may take."""

# Rows of a call of the expert kernel, for which the engine makes room.
_ROWS = 8192
CACHE_BYTES = 2**31
"""Of the engine on each device: the texts of one step need little, all else is for experts' outputs."""


def engine_options(config: CalibrationConfig, *, writes: int) -> dict[str, Any]:
    """Return the arguments of vLLM's ``LLM``.

    Args:
        config: What to compute.
        writes: Texts that the engine writes at a time; 0 for none.

    Raises:
        ConfigError: An option is given that calibration sets itself.
    """
    given = dict(config.engine_options or {})
    for name in sorted(given.keys() & FIXED.keys()):
        raise ConfigError(f"engine_options: {name}: calibration sets it itself; {FIXED[name]}")
    if config.dtype is not None and "dtype" in given:
        raise ConfigError("engine_options: dtype: expected it once, got the argument dtype as well")
    ours: dict[str, Any] = {"max_model_len": config.seq_len + 1, "disable_log_stats": True}
    if not MEMORY & given.keys():
        ours["kv_cache_memory_bytes"] = CACHE_BYTES
    if config.dtype is not None:
        ours["dtype"] = str(config.dtype).removeprefix("torch.")
    fixed = {
        "additional_config": {CALIBRATION_KEY: True},
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "skip_tokenizer_init": True,
        "max_num_seqs": max(config.batch_size, writes),
        "max_num_batched_tokens": max(_ROWS, config.batch_size * config.seq_len),
        "async_scheduling": False,
        "trust_remote_code": config.trust_remote_code,
        "seed": config.seed or 0,
    }
    return ours | given | fixed
