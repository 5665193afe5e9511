"""What a model's config says without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sere.outlook import look_at
from sere.outlook import model as looking
from sere.outlook.engines import ask_vllm
from sere.step_time import StepWeights
from tests.support.tiny import tiny_model

ALIEN = {
    "architectures": ["AlienMoeForCausalLM"], "model_type": "alien_moe", "num_hidden_layers": 4,
    "first_k_dense_replace": 1, "n_routed_experts": 64, "num_experts_per_tok": 8,
}  # fmt: skip


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    """A folder with the config of a tiny model and nothing else."""
    tiny_model("qwen3_moe").config.save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_config_alone_is_enough(config_only: Path) -> None:
    """Layers, sizes and identity are those of the model that the config describes."""
    model = tiny_model("qwen3_moe")
    found = look_at(config_only)
    assert found.transformers is None
    assert [(one.num_experts, one.top_k) for one in found.shapes] == [(16, 4)] * 2
    assert found.weights == StepWeights.of(model)
    assert (found.num_bytes, found.exact) == (sum(p.numel() for p in model.parameters()) * 4, False)
    assert (found.dtype, found.quantization) == ("float32", None)
    assert found.layer_bytes == found.weights.expert_bytes * 16
    assert found.attention_heads == model.config.num_attention_heads


def test_the_size_of_files_and_of_their_index_counts(config_only: Path) -> None:
    """An index, which comes with a hub model's config, says the size of weights that are not there."""
    index = {"metadata": {"total_size": 12345}, "weight_map": {"a": "model-1.safetensors"}}
    (config_only / "model.safetensors.index.json").write_text(json.dumps(index))
    found = look_at(config_only)
    assert (found.num_bytes, found.exact) == (12345, True)


def test_quantized_experts_have_their_own_bytes(config_only: Path) -> None:
    """Of four bits with their scales if the config says so; of what an index leaves them if there is one."""
    plain = look_at(config_only)
    assert plain.weights is not None
    assert plain.num_bytes is not None
    change(config_only, quantization_config={"quant_method": "mxfp4"})
    found = look_at(config_only)
    assert found.quantization == "mxfp4"
    assert found.weights is not None
    assert found.weights.expert_bytes == plain.weights.expert_params * 4.25 / 8
    assert found.weights.rest_bytes == plain.weights.rest_bytes
    others = plain.num_bytes - 32 * plain.weights.expert_bytes
    index = {"metadata": {"total_size": others + 32 * 100}, "weight_map": {"a": "model-1.safetensors"}}
    (config_only / "model.safetensors.index.json").write_text(json.dumps(index))
    again = look_at(config_only).weights
    assert again is not None
    assert again.expert_bytes == 100


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        ({"quant_method": "fp8"}, 8.0),
        ({"quant_method": "awq", "bits": 4}, 4.0),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            4.25,
        ),
        ({"quant_algo": "NVFP4"}, 4.25),
    ],
    ids=["fp8", "awq", "compressed", "nvfp4"],
)
def test_bits_are_read_from_the_config(config: dict[str, Any], bits: float) -> None:
    """As each of the common formats writes them."""
    assert looking.bits_of({"quantization_config": config}) == bits


def test_a_model_that_transformers_lacks_has_its_config_alone(tmp_path: Path) -> None:
    """E and K of each layer, dense first layers left out; sizes are not known, and the reason is kept."""
    (tmp_path / "config.json").write_text(json.dumps(ALIEN))
    found = look_at(tmp_path)
    assert "does not know the model type 'alien_moe'" in str(found.transformers)
    assert [(one.index, one.num_experts, one.top_k) for one in found.shapes] == [
        (i, 64, 8) for i in (1, 2, 3)
    ]
    assert found.weights is found.num_bytes is found.identity is None
    assert found.has_experts


def test_a_dense_model_has_no_experts(tmp_path: Path) -> None:
    """Whether Transformers knows it or not."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "alien", "num_hidden_layers": 2}))
    assert not look_at(tmp_path).has_experts


def test_vllm_is_asked_by_its_list_of_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The list is read as text; an architecture that is not in it is named, and a version that is unknown."""
    registry = tmp_path / "vllm" / "model_executor" / "models" / "registry.py"
    registry.parent.mkdir(parents=True)
    registry.write_text('_MODELS = {\n    "AlienMoeForCausalLM": ("alien", "AlienMoeForCausalLM"),\n}\n')
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sere.outlook.engines.find_spec", lambda _: _Spec(tmp_path / "vllm" / "__init__.py"))
    monkeypatch.setattr("sere.outlook.engines.engine_version", lambda: "0.32.0")
    monkeypatch.setattr("sere.outlook.engines.engine_device", lambda: "cpu")
    known, detail = ask_vllm(["AlienMoeForCausalLM"])
    assert known
    assert detail.startswith("0.32.0 has AlienMoeForCausalLM")
    known, detail = ask_vllm(["Other"])
    assert known is False
    assert "does not have the architecture (config.json names Other)" in detail
    monkeypatch.setattr("sere.outlook.engines.engine_version", lambda: "0.5.0")
    assert ask_vllm(["AlienMoeForCausalLM"])[0] is False
    monkeypatch.setattr("sere.outlook.engines.engine_version", lambda: None)
    assert ask_vllm(["AlienMoeForCausalLM"])[0] is None


class _Spec:
    def __init__(self, origin: Path) -> None:
        self.origin = str(origin)


@pytest.mark.vllm
def test_the_installed_vllm_has_known_models() -> None:
    """Its list has the form that is looked for."""
    pytest.importorskip("vllm")
    assert ask_vllm(["Qwen3MoeForCausalLM"])[0]
    assert ask_vllm(["NoSuchForCausalLM"])[0] is False
