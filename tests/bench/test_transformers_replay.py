"""Recorded routing and pairs are run as they were, without the work of computing them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import pytest
import torch

from sere.bench.run import BenchPlan, bench
from sere.bench.stepper import Stepper
from sere.bench.target import Subject, random_table, random_tokens
from sere.bench.transformers_replay import record_handle, replayed_handle
from sere.errors import EngineError
from sere.integrations.transformers import apply
from sere.policies.spec import parse_specs
from tests.support.tiny import tiny_model

SETTINGS: dict[str, Any] = {"select_top_k": 1, "active_experts": 4, "flatten": "on"}
LAYERS, STEPS = 2, 4


def forbidden(*_: object) -> NoReturn:
    raise AssertionError("computed in a replay")


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_a_replay_computes_neither_routing_nor_pairs(implementation: str) -> None:
    """It gives the logits that were recorded, as often as wanted, and puts everything back."""
    model = tiny_model("qwen3_moe")
    model.set_experts_implementation(implementation)
    tokens = random_tokens(model, 6, 4 + STEPS)
    stepper = Stepper(model, tokens[:, :4], tokens[:, 4:])
    fewer = Stepper(model, tokens[:5, :4], tokens[:5, 4:])
    logits: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda _, __, output: logits.append(output.logits))
    with apply(model, random_table(model), **SETTINGS) as handle:
        recording = record_handle(handle, stepper.block)
        assert recording.describe() == {"routings": LAYERS * STEPS, "pairs": LAYERS * STEPS}
        counted = handle.flattening()
        for layer in handle.layers:
            layer.route = layer.flat.find = layer.flat.skip = forbidden  # type: ignore[method-assign]
        for _ in range(2):
            handle.reset_stats()
            with replayed_handle(handle, recording):
                stepper.block()
            assert handle.flattening() == counted
            assert handle.stats()[0].steps == 0
        with pytest.raises(AssertionError, match="computed in a replay"):
            stepper.block()
        with replayed_handle(handle, recording):
            stepper.block()
            with pytest.raises(EngineError, match=f"expected the {LAYERS * STEPS} calls of the routing"):
                stepper.block()
        with (
            pytest.raises(EngineError, match=r"recorded shape \(6, 4\), got \(5, 4\)"),
            replayed_handle(handle, recording),
        ):
            fewer.block()
    hook.remove()
    assert 0 < counted.pairs < counted.slots
    recorded, *again = (logits[first : first + STEPS] for first in range(0, 3 * STEPS, STEPS))
    assert all(torch.equal(a, b) for run in again for a, b in zip(recorded, run, strict=True))


def test_each_setting_has_a_replay_beside_it() -> None:
    """Of the same pairs, in turns with it; with one row, where nothing is routed, there is none."""
    model = tiny_model("qwen3_moe")
    subject = Subject(model, random_table(model), {})
    settings = parse_specs(["sere:select_top_k=1,active_experts=4,flatten=on"])
    shown: list[tuple[str, int]] = []

    def progress(name: str, total: int) -> nullcontext[Callable[..., object]]:
        shown.append((name, total))
        return nullcontext(lambda: None)

    plan = BenchPlan(settings=settings, batch_sizes=[1, 6], prompt=4, steps=2, rounds=1, progress=progress)
    records = {record["case"]: record for record in bench(subject, plan)}
    label = settings[1].label
    assert [*records] == ["B=1 off", f"B=1 {label}", "B=6 off", f"B=6 {label}", f"B=6 replay {label}"]
    on, replay = records[f"B=6 {label}"], records[f"B=6 replay {label}"]
    assert on["replayed"] is None
    # A block has one step more than are timed.
    assert replay["replayed"] == {"routings": LAYERS * 3, "pairs": LAYERS * 3}
    assert replay["flattening"] == on["flattening"]
    assert 0 < on["flattening"]["pairs"] < on["flattening"]["slots"]
    assert replay["experts"] is replay["overhead"] is None
    assert replay["config"]["interleaved"] == ["off", label, f"replay {label}"]
    # Rounds, one more that warms up, and one that counts.
    assert shown == [("B=1, recording", 1), ("B=1", 2 * 3), ("B=6, recording", 1), ("B=6", 3 * 3)]
    shown.clear()
    list(bench(subject, replace(plan, batch_sizes=[1], replay=False)))
    assert shown == [("B=1", 2 * 3)]
