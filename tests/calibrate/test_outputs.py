from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sere.calibrate import experts as outputs_module
from sere.calibrate.experts import check_weighted_sum, expert_outputs
from sere.errors import UnsupportedModel
from sere.structure import ExpertsLayer
from tests.support.calibration import first_experts, routing
from tests.support.tiny import ARCHITECTURES


def _qwen3_moe(module: nn.Module, hidden: Tensor, e: int) -> Tensor:
    gate, up = F.linear(hidden, module.gate_up_proj[e]).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, module.down_proj[e])


def _gpt_oss(module: nn.Module, hidden: Tensor, e: int) -> Tensor:
    both = hidden @ module.gate_up_proj[e] + module.gate_up_proj_bias[e]
    gate, up = both[:, ::2].clamp(max=module.limit), both[:, 1::2].clamp(-module.limit, module.limit)
    return ((up + 1) * gate * torch.sigmoid(gate * module.alpha)) @ module.down_proj[
        e
    ] + module.down_proj_bias[e]


def _dbrx(module: nn.Module, hidden: Tensor, e: int) -> Tensor:
    shape = (module.num_experts, module.ffn_hidden_size, module.hidden_size)
    gate, up, down = (getattr(module.mlp, name).view(shape)[e] for name in ("w1", "v1", "w2"))
    return (F.silu(hidden @ gate.T) * (hidden @ up.T)) @ down


# Fused weights; biases, interleaved layout and a clamped activation; weights of all experts in flat matrices.
@pytest.mark.parametrize(
    ("architecture", "formula"), [("qwen3_moe", _qwen3_moe), ("gpt_oss", _gpt_oss), ("dbrx", _dbrx)]
)
def test_outputs_equal_the_formula(architecture: str, formula: object) -> None:
    """Each expert's output is what its own weights give, written out by hand."""
    layer = first_experts(architecture)
    with torch.no_grad():
        for name, parameter in layer.module.named_parameters():
            if "bias" in name:
                parameter.normal_()
    hidden, _, _ = routing(layer, 7)
    outputs = expert_outputs(layer, hidden)
    assert outputs.shape == (layer.num_experts, 7, 32)
    assert outputs.dtype == torch.float32
    with torch.no_grad():
        for e in range(layer.num_experts):
            torch.testing.assert_close(outputs[e], formula(layer.module, hidden, e))  # type: ignore[operator]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weighted_sum_of_outputs_is_the_modules_own_output(architecture: str) -> None:
    """Gate weights times the chosen experts' outputs add up to what the module itself returns."""
    layer = first_experts(architecture)
    hidden, ids, weights = routing(layer, 9)
    outputs = expert_outputs(layer, hidden)
    with torch.no_grad():
        own = layer.module(hidden, ids, weights)
    summed = (outputs[ids, torch.arange(9)[:, None]] * weights[..., None]).sum(dim=1)
    torch.testing.assert_close(summed, own.reshape(9, 32), rtol=1e-4, atol=1e-5)
    check_weighted_sum(layer, hidden, ids, weights, outputs)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_implementation_is_put_back_and_does_not_matter(implementation: str) -> None:
    """Whatever way the model computes its experts, outputs are the same and the choice is as before."""
    layer = first_experts("qwen3_moe")
    hidden, _, _ = routing(layer, 6)
    expected = expert_outputs(layer, hidden)
    layer.module.config._experts_implementation = implementation
    torch.testing.assert_close(expert_outputs(layer, hidden), expected)
    assert layer.module.config._experts_implementation == implementation


def test_all_experts_in_one_product_equals_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The single grouped product that GPUs use gives what the loop over experts gives."""
    layer = first_experts("qwen3_moe")
    hidden, _, _ = routing(layer, 6)
    expected = expert_outputs(layer, hidden)
    monkeypatch.setattr(outputs_module, "_fastest", lambda *_: "grouped_mm")
    calls: list[int] = []
    forward = layer.module.forward
    monkeypatch.setattr(layer.module, "forward", lambda *args: (calls.append(1), forward(*args))[1])
    torch.testing.assert_close(expert_outputs(layer, hidden), expected)
    assert len(calls) == 1


def test_hooks_do_not_fire_and_no_graph_is_kept() -> None:
    """Hooks on the module stay silent, and outputs ask for no gradient."""
    layer = first_experts("mixtral")
    fired: list[int] = []
    layer.module.register_forward_pre_hook(lambda *_: fired.append(1))
    outputs = expert_outputs(layer, routing(layer, 3)[0])
    assert not fired
    assert not outputs.requires_grad


def test_bfloat16_outputs_come_as_float32_of_the_modules_own_rounding() -> None:
    """A bfloat16 model's outputs are its own, widened: nothing is computed anew in another dtype."""
    layer = first_experts("qwen3_moe")
    layer.module.to(torch.bfloat16)
    hidden = routing(layer, 5)[0].to(torch.bfloat16)
    outputs = expert_outputs(layer, hidden)
    assert outputs.dtype == torch.float32
    assert outputs.equal(outputs.to(torch.bfloat16).float())


class _InputWeighted(nn.Module):
    """Applies the gate weight before the nonlinearity, as Llama 4 does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 32, 32))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        rows = hidden_states[:, None] * top_k_weights[..., None]
        return F.gelu(torch.einsum("tkh,tkhg->tkg", rows, self.weight[top_k_index])).sum(dim=1)


def test_gate_weight_on_the_input_is_refused_by_name() -> None:
    """A module that is not the weighted sum of its experts is refused, with its name and the reason."""
    layer = ExpertsLayer(0, "model.layers.0.experts", _InputWeighted(), num_experts=4, top_k=2)
    hidden, ids, weights = routing(layer, 8)
    outputs = expert_outputs(layer, hidden)
    with pytest.raises(
        UnsupportedModel, match=r"model\.layers\.0\.experts \(_InputWeighted\): its output is not"
    ):
        check_weighted_sum(layer, hidden, ids, weights, outputs)


def test_rows_with_ids_outside_do_not_spoil_the_check() -> None:
    """Slots of zero experts and sentinels have no output here; rows that hold one are left out."""
    layer = first_experts("longcat_flash")
    hidden, ids, weights = routing(layer, 8)
    ids[:4, 0] = layer.num_experts + 1
    check_weighted_sum(layer, hidden, ids, weights, expert_outputs(layer, hidden))
    ids[:, 0] = layer.num_experts
    check_weighted_sum(layer, hidden, ids, weights, expert_outputs(layer, hidden))
