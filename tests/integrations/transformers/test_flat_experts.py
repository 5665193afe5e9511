"""Experts on a CPU compute only the pairs that carry weight, where that is asked for or faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.flatten import Costs
from sere.flatten.costs import ROWS
from sere.integrations.transformers import flat_experts
from sere.integrations.transformers.flat_experts import FlatExperts
from sere.integrations.transformers.inputs import cache_argument
from sere.policies import Off, TopK
from sere.reroute import Routing
from tests.support.decoding import decode, prefilled, prompts, random_table

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
# Of 4 slots per row; substitutes often meet in one expert.
SETTINGS: dict[str, Any] = {"select_top_k": 1, "active_experts": 4}


def step(model: PreTrainedModel, tokens: Tensor, cache: Any) -> Tensor:
    """Decode one token in each row; return the logits."""
    with torch.no_grad():
        logits: Tensor = model(tokens[:, -1:], **cache_argument(model, cache)).logits
    return logits


def rerouted(model: PreTrainedModel, flatten: str, **settings: Any) -> tuple[Tensor, Any]:
    """Logits of one decode step, and what was flattened in it."""
    cache = prefilled(model, prompts())
    handle = integration.apply(model, random_table(model), flatten=flatten, **SETTINGS | settings)  # type: ignore[arg-type]
    with handle:
        return step(model, prompts(), cache), handle.flattening()


def with_costs(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let pairs be faster up to a share of the slots."""
    monkeypatch.setattr(flat_experts, "costs_of", lambda *_: Costs((share,) * len(ROWS)))


@pytest.mark.filterwarnings("ignore:.*re-routing will save no time")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_output_is_that_of_all_slots(model: PreTrainedModel, implementation: str, dtype: torch.dtype) -> None:
    """Up to rounding, in each of Transformers' ways on a CPU, with fewer pairs than slots."""
    model.to(dtype).set_experts_implementation(implementation)
    expected, off = rerouted(model, "off")
    found, on = rerouted(model, "on")
    assert (off.why_not, off.steps) == ("flatten is 'off'", 0)
    assert (on.why_not, on.steps, on.slots) == (None, 2, 2 * 6 * 4)
    assert 0 < on.pairs < on.slots
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=16 * eps * float(expected.abs().max()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropped_slots_are_not_computed(model: PreTrainedModel, implementation: str) -> None:
    """The experts see two of four slots per row where a rule keeps two."""
    model.set_experts_implementation(implementation)
    seen = []
    cache = prefilled(model, prompts())
    with integration.apply(model, policy=TopK(2)) as handle:
        flat = handle._guard.layers[0].flat
        flat.setting = "on"
        experts = model.model.layers[0].mlp.experts
        forward = experts.forward

        def watched(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            seen.append((hidden.shape[0], int((weights != 0).sum()), int((ids < 16).sum())))
            result: Tensor = forward(hidden, ids, weights)
            return result

        experts.forward = watched
        step(model, prompts(), cache)
        del experts.forward
    # The eager experts are tried once: whether they skip an id. Those of older Transformers do not.
    tried = [(1, 0, 0)] if implementation == "eager" else []
    assert seen == [*tried, (6, 12, 12) if tried and flat._skips else (12, 12, 12)]
    assert flat.counts.to_list() == [1, 24, 12, 0]


@pytest.mark.parametrize(("share", "flattened"), [(1.0, True), (0.1, False)], ids=["cheap", "dear"])
def test_pairs_are_taken_where_they_are_faster(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, share: float, flattened: bool
) -> None:
    """By default the measured costs decide; otherwise the output is bit for bit that of all slots."""
    model.set_experts_implementation("grouped_mm")
    expected, _ = rerouted(model, "off")
    with_costs(monkeypatch, share)
    found, counted = rerouted(model, "auto")
    assert (counted.steps, counted.whole) == ((2, 0) if flattened else (0, 2))
    assert flattened or torch.equal(found, expected)
    assert counted.break_even == {"16 experts, 4 slots per row": [[rows, share] for rows in ROWS]}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_prompts_and_exact_steps_are_left_alone(model: PreTrainedModel, implementation: str) -> None:
    """Prefill, S = K, the rule ``off`` and a switched-off handle give the model's own bits and no pairs."""
    model.set_experts_implementation(implementation)
    tokens = prompts()
    with torch.no_grad():
        prefill = model(tokens).logits
    exact = step(model, tokens, prefilled(model, tokens))
    for options in ({"policy": Off()}, {"table": random_table(model), "flatten": "on", "select_top_k": 4}):
        with integration.apply(model, **options) as handle, torch.no_grad():  # type: ignore[arg-type]
            assert torch.equal(model(tokens).logits, prefill)
            assert torch.equal(step(model, tokens, prefilled(model, tokens)), exact)
            assert handle.flattening().steps == 0
    with integration.apply(model, random_table(model), flatten="on", **SETTINGS) as handle:
        handle.enabled = False
        assert torch.equal(step(model, tokens, prefilled(model, tokens)), exact)
        assert handle.flattening().steps == 0


def test_a_row_that_keeps_its_experts_keeps_its_bits(model: PreTrainedModel) -> None:
    """A step with a protected row computes all slots, and says so."""
    model.to(torch.bfloat16).set_experts_implementation("grouped_mm")
    tokens = prompts()
    exact = step(model, tokens, prefilled(model, tokens))
    cache = prefilled(model, tokens)
    with integration.apply(model, random_table(model), flatten="on", **SETTINGS) as handle:
        handle.row_budgets = [4, 1, 1, 1, 1, 1]  # type: ignore[assignment]
        found = step(model, tokens, cache)
        assert handle.flattening().why_not == "a row keeps all its experts"
    assert torch.equal(found[0], exact[0])
    assert not torch.equal(found[1:], exact[1:])


def test_compiled_code_computes_all_slots(model: PreTrainedModel) -> None:
    """Its steps have fixed shapes: the output is that of "off", and the reason is given."""
    model.set_experts_implementation("grouped_mm")
    tokens = prompts()
    results = []
    for flatten in ("off", "on"):
        torch.compiler.reset()
        cache = prefilled(model, tokens)
        with integration.apply(model, random_table(model), flatten=flatten, **SETTINGS) as handle:
            compiled = torch.compile(model, backend="eager")
            results.append(step(compiled, tokens, cache))  # type: ignore[arg-type]
            found = handle.flattening()
    assert (found.steps, found.why_not) == (0, "compiled code has steps of fixed shapes")
    assert torch.equal(*results)


def test_recording_gradients_computes_all_slots(model: PreTrainedModel) -> None:
    """Training stays what it was, and the reason says what to do."""
    cache = prefilled(model, prompts())
    with integration.apply(model, random_table(model), flatten="on", **SETTINGS) as handle:
        model(prompts()[:, -1:], **cache_argument(model, cache))
        assert handle.flattening().why_not == "gradients are recorded; decode under torch.no_grad()"


def test_experts_that_do_not_skip_an_id(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager experts that fail on an id of no expert are found out once, and get pairs."""
    model.set_experts_implementation("eager")
    expected, _ = rerouted(model, "off")
    kind: type[nn.Module] = type(model.model.layers[0].mlp.experts)
    forward = kind.forward

    def strict(self: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Any:
        return forward(self, hidden, torch.arange(16)[ids], weights)

    monkeypatch.setattr(kind, "forward", strict)
    found, counted = rerouted(model, "on")
    assert (counted.why_not, counted.steps) == (None, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def test_a_failed_step_leaves_nothing_behind(model: PreTrainedModel) -> None:
    """The call after one that failed between the experts and their sum is that of an unchanged model."""
    model.set_experts_implementation("grouped_mm")
    tokens = prompts()
    with torch.no_grad():
        expected = model(tokens).logits
    cache = prefilled(model, tokens)
    with integration.apply(model, random_table(model), flatten="on", **SETTINGS):
        experts = model.model.layers[0].mlp.experts
        gate_up, experts.gate_up_proj = experts.gate_up_proj, None
        with pytest.raises(AttributeError):
            step(model, tokens, cache)
        experts.gate_up_proj = gate_up
        with torch.no_grad():
            assert torch.equal(model(tokens).logits, expected)


def test_generate_flattens_its_decode_steps(model: PreTrainedModel) -> None:
    """Five of six tokens come from decode steps; statistics start again when they are reset."""
    with integration.apply(model, random_table(model), flatten="on", **SETTINGS) as handle:
        decode(model, prompts())
        assert handle.flattening().steps == 2 * 5
        handle.reset_stats()
        assert handle.flattening().slots == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_where_the_bits_stay(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, implementation: str, dtype: torch.dtype
) -> None:
    """Without duplicate experts in a row: with batched_mm; with eager, but for its products of fewer rows.

    So the products are computed row by row here.
    """

    def by_row(rows: Tensor, weight: Tensor, *_: object) -> Tensor:
        return torch.stack([weight @ row for row in rows]) if len(rows) else rows @ weight.T

    monkeypatch.setattr(nn.functional, "linear", by_row)
    model.to(dtype).set_experts_implementation(implementation)
    module = model.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, model.config.hidden_size, generator=generator).to(dtype)
    ids = torch.stack([torch.randperm(16, generator=generator)[:4] for _ in range(6)])
    weights = torch.rand(6, 4, generator=generator).to(dtype)
    weights[:, 2:] = 0
    outputs = []
    with torch.no_grad():
        for setting in ("off", "on"):
            flat = FlatExperts(module, 16, 4, setting)
            output = module(*flat.before(module, hidden, Routing(ids, weights), None))
            summed = flat.after(output)
            outputs.append(output if summed is None else summed)
    assert flat.counts.to_list() == [1, 24, 12, 0]
    assert torch.equal(*outputs)
