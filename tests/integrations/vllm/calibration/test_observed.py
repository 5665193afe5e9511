"""What calibration sees of an engine's layers, with stand-ins for vLLM's objects."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sere.calibrate.experts import check_weighted_sum, expert_outputs
from sere.errors import EngineError, InputError, UnsupportedEngine
from sere.integrations.vllm.calibration.observed import ObservedLayers
from tests.support.vllm.engine_layers import Layer, Ranks, batches, observed_layers

Seen = list[tuple[int, Tensor, Tensor, Tensor]]


def watched(observed: ObservedLayers) -> Seen:
    """Return a list that gets what is observed."""
    seen: Seen = []
    observed.observe = lambda *call: seen.append(call)
    return seen


def test_rows_come_in_the_order_of_the_texts() -> None:
    """Whatever the order of the runner's batch; names may end with what vLLM appends to them."""
    layer = Layer()
    observed, runner = observed_layers(layer)
    seen = watched(observed)
    batches(runner, ["1-ab", "0-cd", "2"], [2, 1, 2])
    layer.step(5)
    ((index, hidden, ids, weights),) = seen
    assert (index, observed.rows) == (0, 5)
    assert hidden[:, 0].tolist() == ids[:, 0].tolist() == [2, 0, 1, 3, 4]
    assert weights[:, 1].tolist() == pytest.approx([0.25] * 5)


def test_a_factor_on_the_output_is_one_on_the_weights() -> None:
    """What the layer multiplies its kernel's output by belongs to the gate weights."""
    layer = Layer(routed_scaling_factor=2.5)
    observed, runner = observed_layers(layer)
    seen = watched(observed)
    batches(runner, ["0"], [1])
    layer.step(1)
    assert seen[0][3].tolist() == [[1.875, 0.625]]


def test_nothing_is_observed_before_it_is_asked_for() -> None:
    """Steps of the start, and texts that the engine writes, reach nobody and do not count."""
    layer = Layer()
    observed, runner = observed_layers(layer)
    batches(runner, ["0"], [3])
    layer.step(3)
    assert observed.rows == 0
    assert observed.error is None


@pytest.mark.parametrize(
    ("second", "text"),
    [(["0"], "text 0: the engine read it in several steps"), (["3"], None)],
    ids=["again", "the next"],
)
def test_a_text_that_is_read_in_parts(second: list[str], text: str | None) -> None:
    """The rows of a prompt that was split would be taken for those of other tokens."""
    layer = Layer()
    observed, runner = observed_layers(layer)
    watched(observed)
    for names in (["0", "2"], second):
        batches(runner, names, [1] * len(names))
        layer.step(len(names))
    assert (observed.error is None) == (text is None)
    assert text is None or text in str(observed.error)


def test_an_error_is_kept_and_the_engine_goes_on() -> None:
    """An error in a forward pass would end the engine; it is raised when calibration asks."""
    layer = Layer()
    observed, runner = observed_layers(layer)
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise InputError("layer 0: not finite")

    observed.observe = fail
    for name in ("0", "1"):
        batches(runner, [name], [2])
        layer.step(2)
    assert isinstance(observed.error, InputError)
    assert len(calls) == 1


def test_rows_that_are_none_of_the_step() -> None:
    """A step that was padded cannot be told from one with more tokens."""
    layer = Layer()
    observed, runner = observed_layers(layer)
    watched(observed)
    batches(runner, ["0"], [2])
    layer.step(3)
    assert isinstance(observed.error, EngineError)
    assert "expected the step's 2 rows, got 3" in str(observed.error)


def test_two_layers_of_one_index() -> None:
    """Two language models in one cannot be told apart."""
    with pytest.raises(UnsupportedEngine, match="are both layer 0"):
        observed_layers(Layer(), Layer())


def test_a_kernel_that_routes_inside_itself_is_refused_by_name() -> None:
    """Its experts cannot be computed one by one."""
    layer = Layer()
    layer.routed_experts.quant_method.is_monolithic = True
    with pytest.raises(
        UnsupportedEngine, match=r"Kernel .* routes inside itself, so that its experts cannot"
    ):
        observed_layers(layer)


def test_a_vllm_that_cannot_compute_experts_alone() -> None:
    """Before 0.24 experts and router are one call."""
    layer = Layer()
    layer.routed_experts = SimpleNamespace(quant_method=layer.routed_experts.quant_method)
    with pytest.raises(UnsupportedEngine, match=r"needs 0\.24 or later"):
        observed_layers(layer)


def test_the_module_computes_with_the_engines_kernel() -> None:
    """Ids in the kernel's dtype, float32 weights, and hidden states that it may overwrite."""
    layer = Layer()
    observed, _ = observed_layers(layer)
    hidden = torch.arange(6.0).reshape(3, 2)
    kept = hidden.clone()
    module = observed.layers[0].module
    output = module.forward(hidden, torch.tensor([[1], [0], [2]]), torch.ones(3, 1, dtype=torch.float64))
    assert torch.equal(hidden, kept)
    assert torch.equal(output, kept * torch.tensor([[2.0], [1.0], [3.0]]))
    assert layer.dtypes == [(torch.float32, torch.int32)]
    assert list(module.parameters()) == []


@pytest.mark.parametrize("reduced", [False, True], ids=["parts", "already summed"])
def test_expert_parallel_ranks_sum_their_parts(reduced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two ranks computes its own half of the experts, and each gets every expert's output.

    A kernel that sums over ranks itself is not summed again.
    """
    ranks = Ranks(2)
    standin = SimpleNamespace(tensor_model_parallel_all_reduce=ranks.all_reduce)
    monkeypatch.setitem(sys.modules, "vllm.distributed", standin)
    halves = [range(8), range(8)] if reduced else [range(4), range(4, 8)]
    layers = [Layer(experts=experts, ep_size=2) for experts in halves]
    for layer in layers:
        layer._fused_output_is_reduced = reduced
    found = [observed_layers(layer)[0].layers[0] for layer in layers]
    hidden = torch.arange(1.0, 7.0).reshape(3, 2)

    def compute(rank: int) -> Tensor:
        outputs = expert_outputs(found[rank], hidden)
        check_weighted_sum(
            found[rank], hidden, torch.tensor([[1, 6], [0, 4], [7, 2]]), torch.full((3, 2), 0.5), outputs
        )
        return outputs

    expected = hidden * torch.arange(1.0, 9.0)[:, None, None]
    for outputs in ranks.run(compute):
        assert torch.equal(outputs, expected)
    assert (ranks.sums > 0) is not reduced
