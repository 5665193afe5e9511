"""Experts that something else than their class computes: a registered dispatch, accelerate's offloading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from sere.calibrate.experts import expert_outputs
from sere.calibrate.in_memory import collect_in_memory
from sere.errors import UnsupportedModel
from sere.structure import find_experts
from tests.support.calibration import ALL_METRICS, config, first_experts, routing, some_tokens, worst
from tests.support.tiny import tiny_model


def run(model: Any, *metrics: str) -> Any:
    """Calibrate a model in memory."""
    return collect_in_memory(model, find_experts(model), some_tokens(), config(*metrics)).similarities


class Listed(nn.Module):
    """Experts kept as lists of linears, with no weights of a name that their class's forward knows."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.config = experts.config
        self.up, self.down = nn.ModuleList(), nn.ModuleList()
        for both, down in zip(experts.gate_up_proj, experts.down_proj, strict=True):
            for parts, weight in ((self.up, both), (self.down, down)):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight = nn.Parameter(weight.detach().clone())
                parts.append(linear)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Dispatch as Transformers' decorated classes do."""
        function = ALL_EXPERTS_FUNCTIONS.get_interface(self.config._experts_implementation, missing)
        return function(self, hidden_states, top_k_index, top_k_weights)


def missing(module: nn.Module, *_: Tensor) -> Tensor:
    """Stand for a class's forward over weights that are not there."""
    return module.gate_up_proj  # type: ignore[return-value]  # raises AttributeError


def one_by_one(module: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Compute every slot by itself."""
    rows = []
    for row, row_ids, row_weights in zip(hidden, ids.tolist(), weights, strict=True):
        parts = []
        for e, weight in zip(row_ids, row_weights, strict=True):
            gate, up = module.up[e](row).chunk(2, dim=-1)
            parts.append(module.down[e](F.silu(gate) * up) * weight)
        rows.append(torch.stack(parts).sum(dim=0))
    return torch.stack(rows)


def with_all_slots(module: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Compute as a kernel does that is made for K = 4 slots."""
    if ids.shape[1] != 4:
        raise RuntimeError(f"made for 4 slots, got {ids.shape[1]}")
    return one_by_one(module, hidden, ids, weights)


@pytest.fixture
def registry() -> Iterator[dict[str, Any]]:
    """Give Transformers' functions by name; put back what was there."""
    known = type(ALL_EXPERTS_FUNCTIONS)._global_mapping
    before = dict(known)
    yield known
    known.clear()
    known.update(before)


# A new name, one of Transformers' own taken over, and a function that asks for K slots.
@pytest.mark.parametrize(
    ("name", "function"),
    [("mine", one_by_one), ("grouped_mm", one_by_one), ("eager", one_by_one), ("mine", with_all_slots)],
)
def test_a_registered_dispatch_computes_the_outputs(
    name: str, function: Any, registry: dict[str, Any]
) -> None:
    """Experts as lists of linears, computed by a registered function: the table of the usual experts."""
    expected = run(tiny_model("qwen3_moe"))
    model = tiny_model("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.experts = Listed(layer.mlp.experts)
    registry[name] = function
    model.config._experts_implementation = name
    assert worst(run(model), expected) < 1e-5
    assert model.config._experts_implementation == name


def test_what_the_dispatch_raises_is_raised(registry: dict[str, Any]) -> None:
    """A function that fails for any number of slots fails with its own error."""

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no such kernel on this machine")

    layer = first_experts("qwen3_moe")
    registry["mine"] = broken
    layer.module.config._experts_implementation = "mine"
    with pytest.raises(RuntimeError, match="no such kernel on this machine"):
        expert_outputs(layer, routing(layer, 3)[0])


def offloaded(how: str, folder: Path) -> Any:
    """Return a tiny model some or all of whose weights accelerate brings in for each call."""
    if how == "cpu":
        return accelerate.cpu_offload(tiny_model("qwen3_moe"), execution_device="cpu")
    tiny_model("qwen3_moe").save_pretrained(folder / "model")
    rest = ("model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    place = {"": "disk"} if how == "disk" else {"model.layers.0": "disk"} | dict.fromkeys(rest, "cpu")
    return AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=place, offload_folder=folder / "offload"
    )


@pytest.mark.parametrize("how", ["disk", "one layer", "cpu"])
def test_offloaded_weights_give_the_same_table(how: str, tmp_path: Path) -> None:
    """Every metric of a model on disk or in host memory is that of the model in memory, bit for bit."""
    assert worst(run(offloaded(how, tmp_path)), run(tiny_model("qwen3_moe"))) == 0


def test_offloaded_weights_come_in_once_for_all_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a layer's weights from a disk once per expert would take E times as long."""
    layer = find_experts(offloaded("disk", tmp_path))[0]
    reads: list[int] = []
    before = layer.module._hf_hook.pre_forward
    monkeypatch.setattr(
        layer.module._hf_hook, "pre_forward", lambda *args, **kw: (reads.append(1), before(*args, **kw))[1]
    )
    expert_outputs(layer, routing(layer, 3)[0])
    assert len(reads) == 1


@pytest.mark.parametrize("metric", ALL_METRICS)
def test_a_model_without_weights_is_refused_by_name(metric: str) -> None:
    """A model on the meta device, where nothing brings its weights in, is refused before it runs."""
    with torch.device("meta"):
        model = type(tiny_model("qwen3_moe"))(tiny_model("qwen3_moe").config)
    with pytest.raises(UnsupportedModel, match=r"embed_tokens\.weight: has no values .*low_memory=True"):
        run(model, metric)


def test_experts_without_weights_are_refused_by_name() -> None:
    """Without tokens the model does not run, and only the experts' own weights are needed."""
    with torch.device("meta"):
        model = type(tiny_model("qwen3_moe"))(tiny_model("qwen3_moe").config)
    with pytest.raises(UnsupportedModel, match=r"0\.mlp\.experts\.\w+: has no values"):
        collect_in_memory(model, find_experts(model), None, config("weights"))


def test_one_weight_without_values_is_named() -> None:
    """PyTorch may multiply by weights that are not there without an error; reading them needs no run."""
    model = tiny_model("qwen3_moe")
    model.model.layers[1].self_attn.o_proj.to("meta")
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.self_attn\.o_proj\.weight: has no values"):
        run(model, "frobenius")
    found = collect_in_memory(model, find_experts(model), None, config("weights"))
    assert set(found.similarities) == {"weights"}
