"""Which class a config asks for: what ``architectures`` names where that fits, else by the model type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from sere.checkpoints import empty_model, load_config, load_model
from sere.checkpoints.classes import choose_class
from sere.errors import InputError, UnsupportedModel
from tests.support.composite import tiny_composite
from tests.support.damage import change_json
from tests.support.tiny import tiny_config, tiny_model


def written(folder: Path, **values: Any) -> Path:
    """A folder with a tiny Qwen3-MoE config, some of whose values are set differently."""
    tiny_config("qwen3_moe", architectures=["Qwen3MoeForCausalLM"]).save_pretrained(folder)
    return change_json(folder / "config.json", **values)


@pytest.mark.parametrize(
    "architectures",
    [
        None,
        [],
        ["Qwen3MoEForCausalLM"],
        ["Qwen3MoeModel"],
        ["AutoTokenizer"],
        ["MixtralForCausalLM"],
        ["pipeline"],
    ],
)
def test_architectures_that_do_not_help_leave_it_to_the_model_type(
    tmp_path: Path, architectures: list[str] | None
) -> None:
    """Absent, empty, unknown, without a head, not a model, of another config: the model type decides."""
    path = written(tmp_path, architectures=architectures)
    assert type(empty_model(path)).__name__ == "Qwen3MoeForCausalLM"


def test_the_class_that_architectures_names_comes_before_the_model_types(tmp_path: Path) -> None:
    """A model with a vision tower is loaded with it where its config says so, else as its text model."""
    model = tiny_composite("qwen3_5_moe")
    model.save_pretrained(tmp_path)
    assert type(load_model(tmp_path)) is type(model)
    text = load_model(change_json(tmp_path / "config.json", architectures=None))
    assert type(text).__name__ == "Qwen3_5MoeForCausalLM"
    whole = model.state_dict()
    for name, weight in text.state_dict().items():
        assert torch.equal(weight, whole[name.replace("model.", "model.language_model.", 1)])


def test_a_class_of_the_text_config_takes_the_text_config() -> None:
    """The text config goes to the text model, with the quantization that the whole config names."""
    config = tiny_composite("qwen3_5_moe").config
    config.architectures, config.quantization_config = ["Qwen3_5MoeForCausalLM"], {"quant_method": "fp8"}
    found, own = choose_class(config)
    assert found.__name__ == "Qwen3_5MoeForCausalLM"
    assert own is config.text_config
    assert own.quantization_config == {"quant_method": "fp8"}


@pytest.mark.parametrize("name", ["siglip_vision_model", "qwen3_vl_moe_text"])
def test_a_model_type_without_a_class_that_generates_is_refused(name: str) -> None:
    """A config of a vision tower, or of a classifier alone, gives an error with what was looked for."""
    with pytest.raises(UnsupportedModel, match=f"no class that generates text for model type '{name}'"):
        choose_class(AutoConfig.for_model(name))


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"model_type": None}, InputError, "expected a model_type"),
        ({"model_type": "qwen9_moe"}, UnsupportedModel, "does not know the model type 'qwen9_moe'; a newer"),
        ({"hidden_size": "wide"}, InputError, "does not describe a qwen3_moe model"),
        (
            {"num_attention_heads": 0},
            InputError,
            "no model can be built from its config.json: ZeroDivisionError",
        ),
    ],
)
def test_a_config_that_describes_no_model_is_refused(
    tmp_path: Path, values: dict[str, Any], error: type[Exception], text: str
) -> None:
    """No model type, an unknown one, values of a wrong kind or size: each is an error of ours."""
    with pytest.raises(error, match=text):
        empty_model(written(tmp_path, head_dim=None, **values))


@pytest.mark.parametrize("content", ["{", "[]", "\x80"])
def test_a_config_that_is_not_a_json_object_is_refused(tmp_path: Path, content: str) -> None:
    """Cut short, a list, not text: the error names the file."""
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"config\.json(: expected a JSON object, got list| is not JSON)"):
        load_config(tmp_path)


def test_a_model_is_named_by_its_hub_name_or_its_folder(tmp_path: Path) -> None:
    """A folder in the hub's cache goes by the hub name, not by the commit."""
    cached = tmp_path / "models--mill--moe-16" / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    assert load_config(written(cached))._name_or_path == "mill/moe-16"
    assert load_config(written(tmp_path / "own"))._name_or_path == str(tmp_path / "own")
    tiny_model("qwen3_moe").save_pretrained(cached)
    assert load_model(cached).config._name_or_path == "mill/moe-16"


def test_a_config_class_of_foreign_code_does_not_count_as_transformers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that ran before and registered its model type is still asked for by name."""
    from transformers import CONFIG_MAPPING

    foreign = type(
        "MillConfig", (PreTrainedConfig,), {"model_type": "mill", "__module__": "transformers_modules.x"}
    )
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "mill", foreign)
    path = written(tmp_path, model_type="mill", auto_map={"AutoConfig": "code.MillConfig"})
    assert json.loads((path / "config.json").read_text())["model_type"] == "mill"
    with pytest.raises(UnsupportedModel, match="--trust-remote-code"):
        load_config(path)
