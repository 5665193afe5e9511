"""Models within a PEFT model, compiled in whole or in part, before they are calibrated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import sere
from sere.errors import UnsupportedModel
from sere.table import SimilarityTable
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

# PEFT warns of keys of its own that match no module, and uses a property that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
ON_EXPERTS = {
    "target_modules": [],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}


def calibrated(model: Any, metric: str = "frobenius") -> SimilarityTable:
    """Return a table of a few tokens, or of the weights."""
    if metric == "weights":
        return sere.calibrate(model, metric=metric, progress=False)
    return sere.calibrate(
        model, tiny_tokenizer(), TEXTS, metric=metric, max_tokens=71, seq_len=16, progress=False
    )


def adapted(**options: Any) -> Any:
    """Return a tiny model with a LoRA adapter whose weights are random."""
    torch.manual_seed(7)
    return get_peft_model(tiny_model("qwen3_moe"), LoraConfig(r=4, init_lora_weights=False, **options))


@pytest.mark.parametrize("options", [{"target_modules": ["q_proj", "v_proj"]}, ON_EXPERTS])
def test_calibrate_a_peft_model(options: dict[str, Any]) -> None:
    """The table is that of the merged model, under the model's own names."""
    table, merged = calibrated(adapted(**options)), calibrated(adapted(**options).merge_and_unload())
    assert table.identity == merged.identity
    for index, layer in table.layers.items():
        torch.testing.assert_close(layer.similarity, merged.layers[index].similarity, rtol=0, atol=1e-4)
    plain = calibrated(tiny_model("qwen3_moe"))
    assert not torch.allclose(table.layers[1].similarity, plain.layers[1].similarity, rtol=0, atol=1e-3)


def test_weights_that_an_adapter_changes_are_refused() -> None:
    """The metric of the weights cannot see what an adapter adds in each call; it can where that is merged."""
    with pytest.raises(UnsupportedModel, match=r"adapter changes the experts' weights.*merge_and_unload\(\)"):
        calibrated(adapted(**ON_EXPERTS), "weights")
    calibrated(adapted(**ON_EXPERTS).merge_and_unload(), "weights")
    calibrated(adapted(target_modules=["q_proj"]), "weights")


def compile_call(model: Any) -> Any:
    """Compile the model in place."""
    model.compile(backend="eager")
    return model


def compile_forward(model: Any) -> Any:
    """Replace the model's forward."""
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compile_experts(model: Any) -> Any:
    """Wrap each experts module."""
    for layer in model.model.layers:
        layer.mlp.experts = torch.compile(layer.mlp.experts, backend="eager")
    return model


@pytest.mark.parametrize(
    "compiled",
    [lambda model: torch.compile(model, backend="eager"), compile_call, compile_forward, compile_experts],
    ids=["torch.compile(model)", "model.compile()", "model.forward", "experts"],
)
@pytest.mark.parametrize("metric", ["frobenius", "weights"])
def test_calibrate_a_model_that_was_compiled_and_used(compiled: Callable[[Any], Any], metric: str) -> None:
    """Code compiled before calibration would not see it: the table is that of the model as it is written."""
    plain, model = tiny_model("qwen3_moe"), compiled(tiny_model("qwen3_moe"))
    with torch.no_grad():
        # As calibration calls it: these shapes and arguments are compiled already.
        for shape in ((4, 16), (1, 7)):
            model(input_ids=torch.full(shape, 5), use_cache=False, logits_to_keep=1)
    assert calibrated(model, metric).fingerprint == calibrated(plain, metric).fingerprint
