"""How an engine that calibrates is started."""

from __future__ import annotations

import pytest
import torch

from sere.calibrate import CalibrationConfig
from sere.calibrate.vllm.options import FIXED, engine_options
from sere.errors import ConfigError


@pytest.mark.parametrize("name", FIXED)
def test_what_calibration_sets_itself_is_refused(name: str) -> None:
    """The text says what to do instead."""
    config = CalibrationConfig(engine="vllm", engine_options={name: 1})
    with pytest.raises(ConfigError, match=f"engine_options: {name}: calibration sets it itself; "):
        engine_options(config, writes=0)


def test_one_dtype() -> None:
    """Two places that say it could differ."""
    config = CalibrationConfig(engine="vllm", dtype=torch.float32, engine_options={"dtype": "half"})
    with pytest.raises(ConfigError, match="dtype: expected it once"):
        engine_options(config, writes=0)


def test_the_engine_has_room_for_a_batch_of_texts() -> None:
    """Each text is read in one step, in a batch of ``batch_size``; its options replace our own defaults."""
    config = CalibrationConfig(
        engine="vllm", batch_size=100, seq_len=200, max_tokens=20_000, dtype=torch.float32,
        engine_options={"tensor_parallel_size": 2, "max_model_len": 300},
    )  # fmt: skip
    found = engine_options(config, writes=0)
    assert (found["max_num_seqs"], found["max_num_batched_tokens"]) == (100, 20_000)
    assert (found["max_model_len"], found["dtype"]) == (300, "float32")
    assert engine_options(config, writes=128)["max_num_seqs"] == 128
