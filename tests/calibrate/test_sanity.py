"""No table is made of nothing: values that mean nothing are named with their layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.calibrate.collect import LayerCollector
from sere.calibrate.in_memory import collect_in_memory
from sere.calibrate.layerwise.by_layers import collect_layerwise
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.calibrate.layerwise.work_folder import WorkFolder
from sere.errors import DataError, InputError
from sere.structure import find_experts
from tests.support.calibration import ALL_METRICS, config, first_experts, routing, some_tokens
from tests.support.tiny import tiny_model

NAME = r"model\.layers\.1\.mlp\.experts"


def overflowing(model: Any) -> Any:
    """Let expert 3 of layer 1 overflow float16."""
    model.half()
    model.model.layers[1].mlp.experts.down_proj.data[3] *= 1e4
    return model


def broken_expert(model: Any) -> Any:
    """Give expert 3 of layer 1 weights that are no numbers."""
    model.model.layers[1].mlp.experts.down_proj.data[3] = torch.nan
    return model


def broken_attention(model: Any) -> Any:
    """Let all hidden states that reach the experts of layer 1 be infinite."""
    model.model.layers[1].self_attn.o_proj.weight.data[0] = torch.inf
    return model


def broken_router(model: Any) -> Any:
    """Let the gate weights of layer 1 be no numbers."""
    gate = model.model.layers[1].mlp.gate
    gate.register_forward_hook(lambda *call: (call[-1][0], call[-1][1] * torch.nan, call[-1][2]))
    return model


@pytest.mark.parametrize("metric", ["frobenius", "projection"])
@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (
            overflowing,
            r"the outputs of 1 of its 16 experts \[3\] are NaN or infinite; load the model in bfloat16",
        ),
        (broken_expert, r"the outputs of 1 of its 16 experts \[3\] are NaN or infinite"),
        (broken_attention, "48 of 48 tokens reach it with NaN or infinite hidden states"),
        (broken_router, "48 of 48 tokens reach it with NaN or infinite gate weights"),
    ],
)
def test_values_that_are_no_numbers_are_named(spoil: Callable[[Any], Any], text: str, metric: str) -> None:
    """Float16 overflow, broken weights, hidden states or gates: layer, what is broken, and what to do."""
    model = spoil(tiny_model("qwen3_moe"))
    with pytest.raises(InputError, match=f"{NAME}: {text}"):
        collect_in_memory(model, find_experts(model), some_tokens(), config(metric))


def test_values_that_are_no_numbers_are_named_layer_by_layer(tmp_path: Path) -> None:
    """The same in a run that reads a layer at a time."""
    broken_expert(tiny_model("qwen3_moe")).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=rf"{NAME}: the outputs of 1 of its 16 experts \[3\]"):
        collect_layerwise(
            Skeleton(tmp_path / "model"), some_tokens(), config("cosine"),
            WorkFolder(tmp_path / "work", {}), states_in_memory=True,
        )  # fmt: skip


def test_weights_that_are_no_numbers_are_named() -> None:
    """The metric of the weights names the layer and the experts."""
    model = broken_expert(tiny_model("qwen3_moe"))
    with pytest.raises(InputError, match=rf"{NAME}: .* NaN or infinity from experts \[3\]"):
        collect_in_memory(model, find_experts(model), None, config("weights"))


def test_a_layer_that_no_token_reaches_is_named() -> None:
    """Calls without rows are no data: the layer and the number of its calls are named."""
    layer = first_experts("qwen3_moe")
    collector = LayerCollector(layer, config("frobenius"))
    for _ in range(2):
        collector.add(*(tensor[:0] for tensor in routing(layer, 3)))
    with pytest.raises(DataError, match=r"0\.mlp\.experts: no calibration token reached it in 2 calls"):
        collector.finish()
    collector.add(*routing(layer, 3))
    assert set(collector.finish()) == {"frobenius"}


@pytest.mark.parametrize("metric", ALL_METRICS)
def test_experts_that_are_all_alike_are_a_line_in_the_log(
    metric: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer of copies of one expert: every similarity is the same, which tells no expert apart."""
    model = tiny_model("qwen3_moe")
    for parameter in model.model.layers[1].mlp.experts.parameters():
        parameter.data.copy_(parameter.data[:1].expand_as(parameter))
    collect_in_memory(model, find_experts(model), some_tokens(), config(metric))
    (line,) = caplog.messages
    assert f"layers.1.mlp.experts: all similarities of its 16 experts are 1 by the metric '{metric}'" in line


def test_experts_with_nothing_in_common_are_refused_at_once() -> None:
    """Similarities that are all 0 would make no table: the layer is named when it is done, not at the end."""
    model = tiny_model("qwen3_moe")
    experts = model.model.layers[0].mlp.experts
    for parameter in experts.parameters():
        rows = parameter.data.zero_().view(16, -1)
        rows[range(16), range(16)] = 1.0
    with pytest.raises(InputError, match=r"0\.mlp\.experts: all similarities of its 16 experts are 0"):
        collect_in_memory(model, find_experts(model), None, config("weights"))
