"""From how many rows on slots that carry nothing get the id that an expert kernel skips."""

from __future__ import annotations

import inspect
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker import freed_slots
from sere.integrations.vllm.worker.start_log import log_start
from sere.integrations.vllm.worker.state import WorkerState
from sere.policies.sere import SereRouter
from sere.reroute import Routing, TokenBatch
from sere.table import Tier
from tests.support.vllm.standins import CPUUnquantizedExperts, prepared


class MarlinExperts:
    """A kernel by its name; none of these tests runs it."""


class DeepGemmExperts(MarlinExperts):
    """Another one."""


class TritonOrDeepGemmExperts(MarlinExperts):
    """One that leaves small steps to Triton."""


SPREAD = {"ep_size": 2, "dp_size": 1}
# Of 16 experts 4 are active, with 4 slots per row: as many rows each as the step has.
SETTINGS: dict[str, Any] = {"active_experts": 4, "cap": True, "min_gain": 0.05}


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version that was read, whatever is installed."""
    monkeypatch.setattr(versions, "engine_version", lambda: "0.32.0")


def engine(factors_table: Any, kernel: object, **settings: Any) -> WorkerState:
    """A worker whose layers have that kernel, spread over two ranks unless ``settings`` say otherwise."""
    return prepared(
        factors_table, {}, torch.nn.Module, kernel=kernel, **{"moe": SPREAD} | SETTINGS | settings
    )


def routed(state: WorkerState, rows: int) -> Routing:
    """Route a decode step of so many rows in layer 0."""
    assert state.limits is not None
    assert state.budgets is not None
    state.limits.choose(frozenset({None}))
    state.budgets.announce(np.ones(rows, dtype=np.int32))
    ids = (5 * torch.arange(rows)[:, None] + torch.arange(4)).remainder(16).to(torch.int32)
    weights = torch.linspace(1.0, 0.1, 4).expand(rows, 4).contiguous()
    return state.layers[0].route(ids, weights, torch.zeros(rows, 16))


# Rows of a block, and so many that M experts have more each; Marlin's grow with the rows of a mean expert.
@pytest.mark.parametrize(
    ("kernel", "M", "first"),
    [
        ("MarlinExperts", 50, 51),
        # Above 110 rows blocks of 8 are too small, but from 116 on they have 16 rows, then 32, 48 and 64.
        ("MarlinExperts", 110, 881),
        # M = 0 bounds nothing.
        ("MarlinExperts", 0, 1025),
        ("DeepGemmExperts", 56, 897),
        ("DeepGemmExperts", 128, 2049),
    ],
)
def test_first_rows(kernel: str, M: int, first: int) -> None:
    """Of 128 experts, 8 slots per row: from that step on experts have more rows than a block."""
    assert freed_slots.first_rows(kernel, [M] * 256, 128, 8) == first


def test_first_rows_with_more_experts_in_larger_steps() -> None:
    """Steps of 60 rows and more read 120 experts, so only large ones count: 40 at 50 rows is not enough."""
    assert freed_slots.first_rows("MarlinExperts", [40] * 59 + [120] * 197, 128, 8) == 961


@pytest.mark.parametrize(("kernel", "first"), [(MarlinExperts(), 9), (DeepGemmExperts(), 129)])
def test_slots_are_freed_in_large_steps_alone(factors_table: Any, kernel: object, first: int) -> None:
    """Below, every id is one of an expert; from there on it is as if the user had asked for sentinels."""
    state = engine(factors_table, kernel, rows=256)
    assert [layer.skips_from for layer in state.layers.values()] == [first] * 2
    small, large = routed(state, first - 1), routed(state, first)
    assert int(small.ids.min()) >= 0
    assert bool((small.weights == 0).any())
    freed = large.ids == -1
    assert bool(freed.any())
    assert torch.equal(freed, large.weights == 0)
    router = engine(factors_table, DeepGemmExperts(), merge="sentinel", sentinel=-1, rows=256)
    expected = routed(router, first)
    assert torch.equal(large.ids, expected.ids)
    assert torch.equal(large.weights, expected.weights)


def test_changed_settings_hold_in_large_steps(factors_table: Any) -> None:
    """Another M counts in steps of either size, and slots are freed from the same number of rows on."""
    state = engine(factors_table, MarlinExperts())
    before = routed(state, 9)
    given = replace(state.given, active_experts=12)
    state.commit(state.propose(given, enabled=True, count_only=False))
    after = routed(state, 9)
    assert not torch.equal(before.ids, after.ids)
    assert bool((after.ids == -1).any())


@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        (MarlinExperts(), {"moe": {"ep_size": 1, "dp_size": 1}}),
        (MarlinExperts(), {"moe": {"ep_size": 2, "dp_size": 2}}),
        (MarlinExperts(), {"moe": SPREAD | {"is_sequence_parallel": True}}),
        (MarlinExperts(), {"parallel": {"enable_eplb": True}}),
        (MarlinExperts(), {"requests": {"merge_given": True}}),
        (MarlinExperts(), {"merge": "same"}),
        (MarlinExperts(), {"min_gain": 0.0}),
        (MarlinExperts(), {"active_experts": 16}),
        (DeepGemmExperts(), {}),
        (TritonOrDeepGemmExperts(), {"rows": 4096}),
        (CPUUnquantizedExperts(), {"rows": 4096}),
        (None, {"rows": 4096}),
    ],
    ids=[
        "no map", "data parallel", "sequence parallel", "copies", "chosen merge", "another merge",
        "no gain", "all experts", "too few rows", "Triton or DeepGEMM", "CPU", "unknown",
    ],
)  # fmt: skip
def test_no_slots_are_freed(factors_table: Any, kernel: Any, settings: dict[str, Any]) -> None:
    """Where the kernel needs all slots, something else reads the ids, or nothing is gained."""
    state = engine(factors_table, kernel, **settings)
    assert all(layer.skips_from is None for layer in state.layers.values())
    assert int(routed(state, 64).ids.min()) >= 0


@pytest.mark.parametrize("gain", [0.0, 0.02])
def test_every_tier_needs_a_gain(factors_table: Any, gain: float) -> None:
    """A tier without τ, which requests may ask for, keeps its bits in steps of any size."""
    tiers = {"fast": Tier("fast", 4, min_gain=0.05), "safe": Tier("safe", 4, min_gain=gain)}
    tiered = {"tier": "fast", "active_experts": "auto", "cap": False, "min_gain": 0.0}
    state = engine(factors_table.with_tiers(tiers), MarlinExperts(), **tiered)
    assert [layer.skips_from for layer in state.layers.values()] == ([9, 9] if gain else [None, None])
    assert state.config.min_gain == (0.05 if gain else 0.0), "τ holds where slots are skipped"


def test_a_tiers_gain_holds_with_sentinels_of_the_users_choice(factors_table: Any) -> None:
    """That kernel skips them in steps of any size."""
    tiers = {"balanced": Tier("balanced", 4, min_gain=0.05)}
    settings = {"merge": "sentinel", "sentinel": -1, "active_experts": "auto", "cap": False, "min_gain": 0.0}
    state = engine(factors_table.with_tiers(tiers), DeepGemmExperts(), **settings)
    assert all(layer.skips_from is None for layer in state.layers.values())
    assert state.config.min_gain == 0.05


@pytest.mark.parametrize(
    "others",
    [
        {"lora_config": object()},
        {"aux_output_config": SimpleNamespace(enable_return_routed_experts=True)},
        {"version": "0.31.0"},
        {"version": None},
    ],
    ids=["adapters", "returned routes", "another version", "no version"],
)
def test_what_else_needs_the_ids(others: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters and returned routes are given the router's ids; other versions were not read."""
    config = SimpleNamespace(parallel_config=SimpleNamespace(enable_eplb=False))
    runner = SimpleNamespace(moe_config=SimpleNamespace(**SPREAD))
    assert freed_slots.skips(MarlinExperts(), runner, config)
    if "version" in others:
        monkeypatch.setattr(versions, "engine_version", lambda: others["version"])
    assert not freed_slots.skips(MarlinExperts(), runner, SimpleNamespace(**vars(config), **others))


def test_the_log_says_from_how_many_rows_on(factors_table: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One line at the start, and none where all slots are computed."""
    for kernel, lines in ((MarlinExperts(), 1), (DeepGemmExperts(), 0)):
        state = engine(factors_table, kernel)
        with caplog.at_level("INFO", logger="vllm.sere"):
            caplog.clear()
            log_start(state)
        said = [line for line in caplog.messages if "the id -1" in line]
        assert len(said) == lines
        assert all("in steps of 9 or more rows" in line for line in said)


def test_both_ways_are_warmed_up(factors_table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that compiles for a setting does so at the start, one step of each kind."""
    rows: list[int] = []
    route = SereRouter.__call__

    def noted(self: SereRouter, batch: TokenBatch) -> Routing:
        rows.append(len(batch.topk_ids))
        return route(self, batch)

    monkeypatch.setattr(SereRouter, "__call__", noted)
    engine(factors_table, MarlinExperts())
    assert rows == [1, 9]


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_the_installed_kernel_is_the_one_that_was_read() -> None:
    """Marlin's blocks, that its sum takes all slots without an expert map, and DeepGEMM's two questions."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    folder = "vllm.model_executor.layers.fused_moe"
    marlin, deep_gemm = (
        import_module(f"{folder}.{name}") for name in ("experts.marlin_moe", "deep_gemm_utils")
    )
    blocks = inspect.getsource(marlin.fused_marlin_moe)
    assert "for block_size_m in [8, 16, 32, 48, 64]:" in blocks
    assert "if M * topk / E / block_size_m < 0.9:" in blocks
    summed = inspect.getsource(marlin.MarlinExperts.moe_sum)
    with_map, without = summed.split("else:")
    assert "if expert_map is not None:" in with_map
    assert "ops.moe_sum(input, output, topk_ids, expert_map)" in with_map
    assert "ops.moe_sum(input, output)" in without
    assert inspect.getsource(deep_gemm).count("if expert_id >= 0:") == 2
