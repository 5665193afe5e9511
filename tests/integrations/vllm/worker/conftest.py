"""What the tests of a worker's parts have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.vllm.standins import CPUUnquantizedExperts, SmallEngine, Start, prepared


@pytest.fixture
def start(any_table: Any, caplog: pytest.LogCaptureFixture) -> Start:
    """Make an engine of two layers, 16 experts and 4 slots with the given settings."""
    caplog.set_level("WARNING", logger="vllm.sere")

    def started(skipped: tuple[int, ...] = (), **settings: Any) -> SmallEngine:
        state = prepared(any_table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts(), **settings)
        return SmallEngine(state, skipped)

    return started
