"""What ``apply`` warns of before any step: settings that re-route nothing, and experts that save no time."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.config import RerouteConfig
from sere.policies import Off, Sere
from sere.structure import find_experts
from tests.support.decoding import decode, prompts, random_table

# By module object: the name of the package's ``apply`` is the function.
apply_module = import_module("sere.integrations.transformers.apply")


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    """Each test hears what is said once per process."""
    apply_module.warn_once.forget()


def apply_quietly(*args: Any, **options: Any) -> None:
    """Apply and remove: what is logged, `apply` itself said."""
    handle = integration.apply(*args, **options)
    handle.quiet = True
    handle.remove()


def test_settings_that_re_route_nothing_are_warned_of(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """S = K as settings or in a policy: one line names K and what to do; below K there is none."""
    table, config = random_table(model), RerouteConfig(select_top_k=4, active_experts=3, keep={0: (1,)})
    apply_quietly(model, table, select_top_k=3)
    assert not caplog.records
    apply_quietly(model, table, config=config)
    apply_quietly(model, policy=Sere(table.layers, config))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "sere: Qwen3MoeForCausalLM: select_top_k=4 is not smaller than the model's top_k=4, so nothing will "
        "be re-routed; use a value from 1 to 3"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"threshold": 2},
            r"threshold=2 is above every similarity in the table \(at most \d\.\d+\), so nothing",
        ),
        (
            {"keep": {0: range(16), 1: range(16)}},
            "keep names every expert of every layer, so nothing will be re-routed; keep fewer",
        ),
    ],
    ids=["threshold", "keep"],
)
def test_settings_that_leave_no_substitute_are_warned_of(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], text: str
) -> None:
    """A threshold above every similarity of the table, or all experts kept: said once, before any step."""
    with integration.apply(model, random_table(model), select_top_k=1, **settings) as handle:
        decode(model, prompts())
        assert all(layer.slots_rerouted == 0 for layer in handle.stats())
        assert handle.why_nothing_changed() is not None
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.match(f"sere: Qwen3MoeForCausalLM: {text}", line)
    caplog.clear()
    # One similarity at the threshold is enough to say nothing; a second handle is told in its own use.
    largest = max(
        float(layer.similarity.fill_diagonal_(0).max()) for layer in random_table(model).layers.values()
    )
    apply_quietly(model, random_table(model), select_top_k=1, threshold=largest)
    apply_quietly(model, random_table(model), select_top_k=1, keep={0: range(16), 1: range(15)})
    assert not caplog.records


def test_a_floor_of_all_experts_is_warned_of(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """With active_experts = E all experts are primary, so no slot moves; E - 1 is no reason to warn."""
    table = random_table(model)
    E = table.num_experts
    apply_quietly(model, table, select_top_k=1, active_experts=E - 1)
    assert not caplog.records
    with integration.apply(model, table, select_top_k=1, active_experts=E) as handle:
        handle.quiet = True
        model.generate(torch.arange(1, 9).reshape(4, 2), max_new_tokens=4, do_sample=False)
    assert all(layer.slots_rerouted == 0 for layer in handle.stats())
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        f"active_experts={E} disables re-routing: with {E} experts per layer every routed expert is primary."
        in line
    )


@pytest.mark.parametrize(
    ("implementation", "device", "text"),
    [
        (
            "batched_mm",
            "cpu",
            "re-routing will save no time: batched_mm is chosen, which copies one expert's",
        ),
        ("grouped_mm", "cuda", "re-routing will save no time: generate switches grouped_mm to batched_mm"),
        ("grouped_mm", "cpu", None),
        ("eager", "cuda", None),
    ],
)
def test_experts_that_save_no_time_are_warned_of(
    model: PreTrainedModel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    implementation: str,
    device: str,
    text: str | None,
) -> None:
    """``batched_mm`` reads one expert per token and slot, and is what ``generate`` switches to on a GPU."""
    model.set_experts_implementation(implementation)
    slow = apply_module.why_slow
    layers = find_experts(model)
    monkeypatch.setattr(apply_module, "execution_device", lambda _: torch.device(device))
    reason = slow(model, layers)
    monkeypatch.undo()
    assert (reason is None) == (text is None)
    if text is not None:
        assert text in str(reason)
        assert "experts_implementation='eager'" in str(reason)
    if implementation == "batched_mm":
        apply_quietly(model, random_table(model), select_top_k=1)
        apply_quietly(model, policy=Off())
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == f"sere: Qwen3MoeForCausalLM: {reason}"
