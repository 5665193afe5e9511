"""What the front end reads of a model before it is built: each layer's experts, and who wrote its config."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sere.bench.target import random_table
from sere.errors import TableMismatch
from sere.integrations.vllm.start import tables
from sere.integrations.vllm.start.model_config import experts_by_layer
from sere.table import SimilarityTable
from tests.support.tiny import uneven_model

BLOCKS = [{"block_type": "attention"}, {"block_type": "moe", "n_routed_experts": 12}, {"block_type": "mamba"}]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"num_hidden_layers": 3, "num_experts": 16}, {0: 16, 1: 16, 2: 16}),
        ({"num_hidden_layers": 2, "num_experts": [16, 12]}, {0: 16, 1: 12}),
        ({"num_hidden_layers": 3, "moe_num_experts": [64, 32]}, {}),
        ({"num_hidden_layers": 3, "n_routed_experts": 8, "block_configs": BLOCKS}, {1: 12}),
        ({"num_hidden_layers": 1, "block_configs": [SimpleNamespace(num_experts=4)]}, {0: 4}),
        ({"num_hidden_layers": 3}, {}),
        ({"num_experts": 16}, {}),
    ],
    ids=["one number", "by layer", "by group", "blocks", "objects", "dense", "no layers"],
)
def test_experts_by_layer(config: dict[str, Any], found: dict[int, int]) -> None:
    """One number, one per layer, or a description of each layer are read; a number per group is not."""
    assert experts_by_layer(SimpleNamespace(**config)) == found


def model_config(table: SimilarityTable, folder: Path, **values: Any) -> Any:
    """What vLLM says of the model that a table was made for."""
    known = table.identity.architecture
    sizes = {"hidden_size": known["hidden_size"], "num_hidden_layers": known["layers"]}
    names = {"model_type": known["model_type"], "moe_intermediate_size": known["expert_width"]}
    return SimpleNamespace(model=str(folder), hf_text_config=SimpleNamespace(**(sizes | names | values)))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"num_experts": [16, 12], "moe_topk": [2, 4]}, None),
        ({"num_experts": 16}, None),
        ({"num_experts": [12, 12]}, None),
        ({"num_experts": [12, 16]}, "experts of layer 0: the table has 16, the model 12; experts of layer 1"),
        ({"num_experts": 8}, "experts of layer 0: the table has 16, the model 8; experts of layer 1"),
    ],
    ids=["each its own", "the most", "the least", "other order", "other"],
)
def test_layers_of_different_sizes(tmp_path: Path, values: dict[str, Any], text: str | None) -> None:
    """Each layer of 16 or 12 experts is compared with its own number before any worker starts; K never is."""
    table = random_table(uneven_model())
    table.save(tmp_path / "similarity.sere")
    config = model_config(table, tmp_path, **values)
    if text is None:
        tables.load_table(tmp_path / "similarity.sere", config)
    else:
        with pytest.raises(TableMismatch, match=text):
            tables.load_table(tmp_path / "similarity.sere", config)


@pytest.mark.parametrize(
    ("files", "values", "text"),
    [
        (["params.json", "consolidated.safetensors"], {"model_type": "deepseek_v3"}, None),
        (
            ["params.json", "consolidated.safetensors"],
            {"hidden_size": 7},
            "hidden_size: .*--config-format hf",
        ),
        (["params.json"], {"model_type": "deepseek_v3"}, r"model_type: the table has .* own table$"),
        ([], {"model_type": "deepseek_v3"}, r"model_type: the table has .* own table$"),
    ],
    ids=["other type", "other size", "other weights", "other config"],
)
def test_mistral_s_own_format(
    any_table: SimilarityTable, tmp_path: Path, files: list[str], values: dict[str, Any], text: str | None
) -> None:
    """In a folder of Mistral's format the type's name may differ, sizes may not; the text names the flag."""
    for name in files:
        (tmp_path / name).touch()
    any_table.save(tmp_path / "similarity.sere")
    config = model_config(any_table, tmp_path, **values)
    if text is None:
        tables.load_table(tmp_path / "similarity.sere", config)
    else:
        with pytest.raises(TableMismatch, match=text):
            tables.load_table(tmp_path / "similarity.sere", config)
