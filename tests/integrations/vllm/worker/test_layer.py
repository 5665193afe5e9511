"""One MoE layer of an engine: which decoder layer it is, and what its rule is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.worker.layer import layer_index
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.reroute import StepDtypes, TokenBatch
from tests.support.vllm.standins import prepared


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.experts", "language_model.model.layers.3.block.experts"]
)
def test_layer_index(name: str) -> None:
    """The index is read from the layer's name; a name without one is refused."""
    assert layer_index(name) == 3
    with pytest.raises(UnsupportedEngine, match="expected a decoder-layer index"):
        layer_index("experts")


@pytest.mark.parametrize("rows", [0, 3, 5], ids=["exact", "some", "all"])
def test_the_kernel_is_told_how_many_rows_are_real(any_table: Any, rows: int) -> None:
    """What a kernel reads says where the rows of requests end, and changes neither ids nor weights."""
    layer = prepared(any_table, {}, torch.nn.Module).layers[0]
    seen: list[TokenBatch] = []
    route: Any = layer.router
    layer.router = lambda batch: seen.append(batch) or route(batch)  # type: ignore[assignment, func-returns-value]
    ids = torch.arange(20, dtype=torch.int32).reshape(5, 4) % 16
    weights, found = torch.rand(5, 4), []
    for counted in (True, False):
        layer.budgets = RowBudgets(8, torch.device("cpu"), counted=counted)
        layer.budgets.announce(np.ones(rows, dtype=np.int32))
        layer.budgets.skip = False
        found.append(layer.route(ids, weights, torch.zeros(5, 16)))
    assert [batch.num_tokens for batch in seen] == [torch.tensor([rows]), None]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (None, [torch.int32]),
        (torch.uint32, [torch.int32]),
        (torch.int64, [torch.int32, torch.int64]),
    ],
)
def test_backends_are_tried_with_the_ids_of_the_kernel(
    any_table: Any, wanted: torch.dtype | None, ids: list[torch.dtype]
) -> None:
    """Some routers give int64 ids where the expert kernel wants them; the backend compiles for both then."""
    layer = prepared(any_table, {}, torch.nn.Module).layers[0]
    layer.runner.quant_method.topk_indices_dtype = wanted
    layer.prepare(layer.budgets, layer.counters, count_experts=False)  # type: ignore[arg-type]
    assert list(layer.shape.dtypes) == [StepDtypes(one, torch.float32) for one in ids]
    seen: list[StepDtypes] = []

    class Watched:
        counters = layer.counters

        def __call__(self, batch: TokenBatch) -> None:
            seen.append(StepDtypes(batch.topk_ids.dtype, batch.topk_weights.dtype))

    layer.router = Watched()  # type: ignore[assignment]
    layer.warm_up()
    assert seen == list(layer.shape.dtypes)
