"""What the log says at the start of re-routing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

from sere.integrations.vllm.worker.start_log import describe, log_start
from sere.reroute.backends import registry
from sere.reroute.constants import GAIN_UNITS
from sere.table import Tier
from tests.support.vllm.standins import CPUUnquantizedExperts, prepared


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_the_line_names_the_backend(any_table: Any, backend: str) -> None:
    """The line that says that re-routing is active ends with what runs it."""
    state = prepared(any_table, {}, torch.nn.Module, backend=backend)
    assert describe(state).endswith(f", backend {backend}")


@pytest.fixture
def narrow_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiled backend that takes three slots per row."""
    narrow = replace(registry.BACKENDS["cpu"], most_slots=3)
    monkeypatch.setattr(registry, "BACKENDS", MappingProxyType({**registry.BACKENDS, "cpu": narrow}))
    registry.select.cache_clear()
    yield
    registry.select.cache_clear()


@pytest.mark.usefixtures("narrow_backend")
@pytest.mark.parametrize(("backend", "lines"), [("auto", 1), ("torch", 0)], ids=["chosen", "named"])
def test_layers_that_no_compiled_backend_takes(
    any_table: Any, caplog: pytest.LogCaptureFixture, backend: str, lines: int
) -> None:
    """Where tensor operations run because a layer is too large, the start says so, once for its shape."""
    kernel = CPUUnquantizedExperts()
    state = prepared(any_table, {}, torch.nn.Module, kernel=kernel, backend=backend)
    assert state.backends == ["torch"]
    with caplog.at_level("WARNING", logger="vllm.sere"):
        caplog.clear()
        log_start(state)
    slow = [line for line in caplog.messages if "with the slow backend torch" in line]
    assert len(slow) == lines
    assert all(line.endswith("at most 3 slots per row, this layer has 4") for line in slow)


@pytest.mark.parametrize(
    ("kernel", "flatten", "reason"),
    [
        (CPUUnquantizedExperts(), "auto", None),
        (torch.nn.Identity(), "auto", "the expert kernel Identity is not known to take pairs"),
        (torch.nn.Identity(), "off", None),
    ],
    ids=["takes pairs", "another", "not wanted"],
)
def test_an_engine_that_computes_all_slots_says_why(
    any_table: Any, caplog: pytest.LogCaptureFixture, kernel: object, flatten: str, reason: str | None
) -> None:
    """One line at the start, unless the user asked for all slots."""
    state = prepared(any_table, {}, torch.nn.Module, kernel=kernel, backend="torch", flatten=flatten)
    with caplog.at_level("INFO", logger="vllm.sere"):
        caplog.clear()
        log_start(state)
    said = [line for line in caplog.messages if "flatten" in line]
    assert said == ([] if reason is None else [f"sere: flatten: all slots are computed, because {reason}"])


@pytest.mark.parametrize(
    ("kernel", "settings", "least_gain"),
    [
        (CPUUnquantizedExperts(), {}, 0.02),
        (CPUUnquantizedExperts(), {"flatten": "off"}, 0.0),
        (torch.nn.Identity(), {}, 0.0),
        (torch.nn.Identity(), {"min_gain": 0.01}, 0.01),
    ],
    ids=["takes pairs", "not wanted", "another", "asked for"],
)
def test_a_tiers_least_gain_holds_where_slots_are_skipped(
    factors_table: Any,
    caplog: pytest.LogCaptureFixture,
    kernel: object,
    settings: dict[str, Any],
    least_gain: float,
) -> None:
    """Where the kernel computes every slot, giving some up saves nothing; one line says so."""
    tiers = {name: Tier(name, most, min_gain=0.02) for name, most in (("balanced", 8), ("fast", 6))}
    table = factors_table.with_tiers(tiers)
    state = prepared(table, {}, torch.nn.Module, kernel=kernel, backend="torch", **settings)
    with caplog.at_level("INFO", logger="vllm.sere"):
        caplog.clear()
        log_start(state)
    said = [line for line in caplog.messages if "least gains of the table's tiers are left out" in line]
    assert len(said) == (isinstance(kernel, torch.nn.Identity) or "flatten" in settings)
    assert state.config.min_gain == least_gain
    assert state.limits is not None
    for choice in (None, "fast"):
        state.limits.choose(frozenset({choice}))
        assert state.limits.tensor[:, -1].tolist() == [-round(least_gain * GAIN_UNITS)] * 2
    assert state.table.tiers["fast"].min_gain == 0.02, "the table is as it was"
