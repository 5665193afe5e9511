"""Experts modules are found by structure in every MoE model class of the installed Transformers."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from sere.errors import UnsupportedModel
from sere.structure import find_experts, identify, takes_routing
from tests.support.tiny import ARCHITECTURES, tiny_model

MODELS = Path(transformers.__file__).parent / "models"

# Default configs that build no model, or one without experts, and what they lack.
LACKING: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 1e4}, "ffn_config": {"moe_num_experts": 8}},
    "deepseek_ocr2": {
        "text_config": {
            "num_hidden_layers": 2,
            "mlp_layer_types": ["dense", "sparse"],
            "num_experts_per_tok": 6,
        }
    },
    "deepseek_v2": {"num_experts_per_tok": 6},
    "diffusion_gemma": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma4": {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 64},
    "qwen4_exp": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
}
# What cannot be re-routed, by the words of its reason.
REFUSED = {
    "llama4": "computes every expert",
    "jetmoe": "routes internally",
    "nllb_moe": "encoder-decoder",
    "switch_transformers": "encoder-decoder",
}


def modeling_paths() -> Iterator[Any]:
    """Modeling modules of Transformers with a class that takes ids and weights, or that is refused."""
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        name = path.parent.name
        if name in REFUSED or re.search(
            r"top_k_index: torch|top_k_index, top_k_weights\)|router_indices", path.read_text()
        ):
            yield pytest.param(path, id=name)


def classes(module: Any, base: type) -> list[type]:
    found = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base)]
    return [c for c in found if c.__module__ == module.__name__]


def language_model(module: Any) -> type[PreTrainedModel] | None:
    """The class to build: a causal model, else one for conditional generation, else a bare one."""
    models = [c for c in classes(module, PreTrainedModel) if getattr(c, "config_class", None) is not None]
    for ending in ("ForCausalLM", "ForConditionalGeneration", "Model"):
        for kind in models:
            if kind.__name__.endswith(ending) and "PreTrained" not in kind.__name__:
                return kind
    return None


def build_on_meta(name: str, kind: type[PreTrainedModel]) -> PreTrainedModel:
    config = kind.config_class(**LACKING.get(name, {}))
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize("path", list(modeling_paths()))
def test_every_moe_model_class_is_found_or_refused_by_name(path: Path) -> None:
    """Each experts module outside the vision towers is found, with its E; the others have a reason."""
    name = path.parent.name
    module = importlib.import_module(f"transformers.models.{name}.{path.stem}")
    kind = language_model(module)
    assert kind is not None
    model = build_on_meta(name, kind)
    if name in REFUSED:
        with pytest.raises(UnsupportedModel, match=REFUSED[name]):
            find_experts(model)
        return
    takes = [c for c in classes(module, nn.Module) if takes_routing(c)]
    assert takes, "no class of this module takes routing: it does not belong here"
    expected = {n for n, m in model.named_modules() if type(m) in takes and "vision" not in n}
    layers = find_experts(model)
    assert {layer.name for layer in layers} == expected
    assert [layer.index for layer in layers] == sorted(layer.index for layer in layers)
    for layer in layers:
        named = getattr(layer.module, "num_experts", None) or layer.module.num_routed_experts
        assert named == layer.num_experts
        assert 1 <= layer.top_k <= layer.num_experts


def test_the_walk_covers_the_classes_that_take_routing() -> None:
    """At least the 57 modules with the three-argument contract of Transformers 5.23 are walked."""
    assert len(list(modeling_paths())) >= 57 + len(REFUSED)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_k_is_the_number_of_columns_that_the_experts_are_called_with(name: str) -> None:
    """E and K agree with a real call, whatever the config calls them."""
    model = tiny_model(name)
    columns: dict[int, int] = {}
    for layer in find_experts(model):
        assert layer.num_experts == 16
        layer.module.register_forward_pre_hook(
            lambda _, args, index=layer.index: columns.__setitem__(index, args[1].shape[1])
        )
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5]]))
    assert columns == {layer.index: layer.top_k for layer in find_experts(model)}


def test_a_model_without_experts_is_refused() -> None:
    """A dense model has nothing to re-route, and the text says so."""
    with pytest.raises(
        UnsupportedModel, match=r"Sequential: no experts module found.*A dense model has none"
    ):
        find_experts(nn.Sequential(nn.Linear(4, 4)))


def test_an_expert_parallel_model_is_refused() -> None:
    """Ranks that see local ids only cannot agree on one primary set."""
    model = tiny_model("qwen3_moe")
    find_experts(model)[0].module._is_expert_parallel = True
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.mlp\.experts: the model is expert-parallel"):
        find_experts(model)


class Mxfp4Experts(nn.Module):
    """The signature of the MXFP4 experts of GPT-OSS."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(4, 2, 2))

    def forward(self, hidden_states: Any, routing_data: Any, gather_idx: Any, scatter_idx: Any) -> None:
        """Never called."""


class OtherExperts(Mxfp4Experts):
    """Experts with a signature that nobody knows."""

    def forward(self, hidden_states: Any, tokens_per_expert: Any) -> None:  # type: ignore[override]
        """Never called."""


class SharedExperts(OtherExperts):
    """Shared experts see every token: nothing is routed to them."""


@pytest.mark.parametrize(
    ("experts", "reason"),
    [
        (Mxfp4Experts, r"dequantize=True.*--engine vllm"),
        (OtherExperts, r"takes \(hidden_states, tokens_per_expert\)"),
    ],
)
def test_experts_of_another_form_are_refused_with_the_reason(experts: type[nn.Module], reason: str) -> None:
    """A layer that would be left out silently is an error instead."""
    model = tiny_model("qwen3_moe")
    model.model.layers[1].mlp.experts = experts()
    with pytest.raises(
        UnsupportedModel, match=rf"model.layers.1.mlp.experts \({experts.__name__}\).*{reason}"
    ):
        find_experts(model)


def test_shared_experts_do_not_match() -> None:
    """A module of shared experts beside the routed ones changes nothing."""
    model = tiny_model("qwen3_moe")
    model.model.layers[1].mlp.shared_experts = SharedExperts()
    assert [layer.name for layer in find_experts(model)] == [
        "model.layers.0.mlp.experts",
        "model.layers.1.mlp.experts",
    ]


def test_two_language_models_in_one_are_refused() -> None:
    """Two experts modules with one layer index: the text says to pass one of the models."""
    model = nn.ModuleDict({"thinker": tiny_model("qwen3_moe"), "talker": tiny_model("qwen3_moe")})
    with pytest.raises(UnsupportedModel, match=r"both layer 0; pass the one language model.*model\.talker"):
        find_experts(model)


def test_identity_is_that_of_the_architecture() -> None:
    """Dtype, quantization and vocabulary do not change the digest."""
    base = identify(tiny_model("qwen3_moe"))
    same = tiny_model("qwen3_moe", vocab_size=128).to(torch.bfloat16)
    same.config.quantization_config = {"quant_method": "fp8"}
    assert identify(same).digest == base.digest
    assert (base.num_experts, base.top_k) == (16, 4)
    assert base.layer_names == {0: "model.layers.0.mlp.experts", 1: "model.layers.1.mlp.experts"}


@pytest.mark.parametrize(
    "other",
    [
        {"num_experts": 8},
        {"num_experts_per_tok": 2},
        {"moe_intermediate_size": 8},
        {"hidden_size": 16},
        {"num_hidden_layers": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_architecture_has_another_digest(other: dict[str, int]) -> None:
    """Each value that the similarities depend on changes it."""
    assert identify(tiny_model("qwen3_moe", **other)).digest != identify(tiny_model("qwen3_moe")).digest


def test_k_is_the_routers_where_the_block_names_another() -> None:
    """Mixtral's block keeps a copy of K that nothing reads; what the router picks is what counts."""
    model = tiny_model("mixtral")
    model.model.layers[1].mlp.gate.top_k = 2
    assert {layer.index: layer.top_k for layer in find_experts(model)} == {0: 4, 1: 2}
    assert identify(model).slots == {0: 4, 1: 2}
    assert identify(model).top_k == 4


def test_identity_holds_the_values_that_make_it() -> None:
    """Model type, hidden size, layers and expert width, and E and K of each layer."""
    found = identify(tiny_model("qwen3_moe"))
    assert found.architecture == {
        "model_type": "qwen3_moe",
        "hidden_size": 32,
        "layers": 2,
        "expert_width": 16,
    }
    assert (found.experts, found.slots) == ({0: 16, 1: 16}, {0: 4, 1: 4})
    other = identify(tiny_model("qwen3_moe", hidden_size=16, num_experts=8))
    assert found.differences(other) == [
        "hidden_size: the table has 32, the model 16",
        "experts of layer 0: the table has 16, the model 8",
        "experts of layer 1: the table has 16, the model 8",
    ]


def test_names_carry_no_path(tmp_path: Path) -> None:
    """A hub id stays; of a directory only the last part is kept; without either the class names the model."""
    model = tiny_model("qwen3_moe")
    assert identify(model).name == "Qwen3MoeForCausalLM"
    model.config._name_or_path = "Qwen/Qwen3-30B-A3B"
    assert identify(model).name == "Qwen/Qwen3-30B-A3B"
    model.config._name_or_path = str(tmp_path / "mine")
    assert identify(model).name == "mine"
