"""Checkpoints with weights missing, misshapen or of other names: what is refused, and what is not."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from sere.calibrate import calibrate
from sere.checkpoints import load_model
from sere.checkpoints.completeness import refuse_incomplete
from sere.cli.loading import engine_checkpoint
from sere.errors import InputError
from tests.support.damage import Tensors, change_json, change_weights, drop
from tests.support.tiny import tiny_model


def saved(folder: Path, name: str = "qwen3_moe", **overrides: object) -> Path:
    tiny_model(name, **overrides).save_pretrained(folder / name)
    return folder / name


def reshape(part: str) -> Callable[[Tensors], Tensors]:
    """Cut the last row off the tensors with ``part`` in their names."""
    return lambda tensors: {n: t[:-1].contiguous() if part in n else t for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (
            "layers.1.mlp.experts.",
            r"2 weights of the model are not in it: .*layers\.1\.mlp\.experts\.down_proj, ",
        ),
        (
            "layers.1.mlp.experts.3.",
            r"the wrong shape: .*layers\.1\.mlp\.experts\.down_proj \(15×32×16 instead of 16×",
        ),
        (
            "layers.1.mlp.experts.3.up",
            r"cannot be put together .*: model\.layers\.1\.mlp\.experts\.gate_up_proj",
        ),
        ("layers.0.mlp.gate.", r"1 weight of the model is not in it: model\.layers\.0\.mlp\.gate\.weight"),
        ("lm_head", r"1 weight of the model is not in it: lm_head\.weight"),
        ("embed_tokens", r"1 weight of the model is not in it: model\.embed_tokens\.weight"),
    ],
)
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_missing_tensor_is_named(tmp_path: Path, part: str, text: str, low_memory: bool) -> None:
    """A layer's experts, one expert, one matrix, a router, the head, the embeddings: none is made up."""
    path = drop(saved(tmp_path), part)
    with pytest.raises(InputError, match=text):
        calibrate(path, low_memory=True, metric="weights") if low_memory else load_model(path)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (
            "norm.weight",
            r"9 weights have the wrong shape: .*layers\.0\.self_attn\.k_norm\.weight \(7 instead of 8\)",
        ),
        (
            "experts.3.up",
            r"2 weights cannot be put together .*: model\.layers\.0\.mlp\.experts\.gate_up_proj, ",
        ),
        (
            "experts.3.down",
            r"2 weights cannot be put together .*: model\.layers\.0\.mlp\.experts\.down_proj, ",
        ),
        (
            ".mlp.gate.",
            r"2 weights have the wrong shape: .*layers\.0\.mlp\.gate\.weight \(15×32 instead of 16×32\)",
        ),
    ],
)
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_tensor_of_another_shape_is_named(tmp_path: Path, part: str, text: str, low_memory: bool) -> None:
    """Norms, a matrix of one expert, routers: name and both shapes, where Transformers says nothing."""
    path = change_weights(saved(tmp_path), reshape(part))
    with pytest.raises(InputError, match=text):
        calibrate(path, low_memory=True, metric="weights") if low_memory else load_model(path)


def test_a_config_of_more_experts_than_there_are_is_refused(tmp_path: Path) -> None:
    """16 experts in the files and 32 in the config: the shapes tell."""
    path = change_json(saved(tmp_path) / "config.json", num_local_experts=32, num_experts=32)
    with pytest.raises(InputError, match=r"\(16×32×16 instead of 32×32×16\)"):
        load_model(path)


def test_a_missing_selection_bias_is_refused(tmp_path: Path) -> None:
    """A router's bias is a buffer, which would be zero without a word."""
    path = drop(saved(tmp_path, "deepseek_v3"), "e_score_correction_bias")
    with pytest.raises(InputError, match=r"not in it: .*e_score_correction_bias"):
        load_model(path)


def test_tensors_of_other_names_are_mentioned(tmp_path: Path) -> None:
    """Experts under a name that this architecture does not have: both names are in the error."""
    path = change_weights(
        saved(tmp_path),
        lambda tensors: {n.replace("mlp.experts", "ffn.expert"): t for n, t in tensors.items()},
    )
    with pytest.raises(
        InputError, match=r"4 weights .*mlp\.experts.*; it holds 96 tensors that .*ffn\.expert\.0\.down"
    ):
        load_model(path)


def test_ten_are_named_and_all_are_counted(tmp_path: Path) -> None:
    """Of many missing weights the first ten are named."""
    path = drop(saved(tmp_path, num_hidden_layers=6), "mlp.experts.")
    with pytest.raises(InputError, match="12 weights of the model are not in it") as caught:
        load_model(path)
    assert len(re.findall(r"mlp\.experts\.\w+", str(caught.value))) == 10
    assert " and 2 more" in str(caught.value)


def test_pytorch_bin_files_are_loaded_and_checked_too(tmp_path: Path) -> None:
    """Such files can only be loaded whole; what is missing or misshapen in them is refused as well."""
    path = saved(tmp_path)
    expected = load_model(path).state_dict()
    tensors: Tensors = {}
    change_weights(path, lambda found: tensors.update(found) or found)
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin")
    assert all(torch.equal(value, expected[name]) for name, value in load_model(path).state_dict().items())
    with pytest.raises(
        InputError, match=r"only safetensors files can be read layer by layer, got pytorch_model\.bin"
    ):
        calibrate(path, low_memory=True, metric="weights")
    head = tensors.pop("lm_head.weight")
    torch.save(tensors, path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"1 weight of the model is not in it: lm_head\.weight"):
        load_model(path)
    torch.save(tensors | {"lm_head.weight": head[:-1]}, path / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"1 weight has the wrong shape: lm_head\.weight \(95×32 instead of 96×32\)"
    ):
        load_model(path)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tied_embeddings_may_be_saved_under_either_name(tmp_path: Path, name: str) -> None:
    """Where the config ties the head to the embeddings, one of the two is enough."""
    path = saved(tmp_path, tie_word_embeddings=True)
    expected = tiny_model("qwen3_moe", tie_word_embeddings=True).state_dict()
    change_weights(path, lambda tensors: _renamed_embeddings(tensors, name))
    assert all(torch.equal(value, expected[key]) for key, value in load_model(path).state_dict().items())
    with pytest.raises(InputError, match="weights of the model are not in it: "):
        load_model(drop(path, name))


def _renamed_embeddings(tensors: Tensors, name: str) -> Tensors:
    return {
        name if "embed_tokens" in key or "lm_head" in key else key: value for key, value in tensors.items()
    }


def test_further_tensors_do_no_harm(tmp_path: Path) -> None:
    """A layer that predicts further tokens, old rotary buffers: a whole model may come with more."""
    more = {
        "model.layers.2.mlp.experts.0.up_proj.weight": torch.ones(16, 32),
        "model.rotary_emb.inv_freq": torch.ones(4),
    }
    path = change_weights(saved(tmp_path), lambda tensors: tensors | more)
    assert len(load_model(path).model.layers) == 2


def test_what_a_class_may_lack_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that Transformers' class says to be absent at times are not asked for."""
    path = drop(saved(tmp_path), "lm_head")
    monkeypatch.setattr(PreTrainedModel, "_keys_to_ignore_on_load_missing", [r"lm_head\."])
    assert load_model(path).lm_head.weight.shape == (96, 32)


def test_what_an_engine_loads_by_itself_is_checked_before(tmp_path: Path) -> None:
    """VLLM is not started on a checkpoint with weights missing; a model that it alone knows is left to it."""
    path = saved(tmp_path)
    args = Namespace(model=str(path), trust_remote_code=False)
    assert engine_checkpoint(args) == path
    drop(path, "layers.1.mlp.experts.3.up")
    with pytest.raises(InputError, match="1 weight cannot be put together"):
        engine_checkpoint(args)
    change_json(path / "config.json", model_type="of_the_engine")
    assert engine_checkpoint(args) == path


def test_nothing_wrong_is_no_error() -> None:
    """Tensors that the model does not have are no fault by themselves."""
    refuse_incomplete(Path("model"), unexpected={"model.mtp.weight"})
