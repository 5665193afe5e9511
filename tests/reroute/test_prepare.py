"""A prepared layer: what it keeps, and how other settings are written over it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import ConfigError, InputError
from sere.reroute import COUNTERS, PreparedLayer, TokenBatch, prepare_layer, reroute
from sere.reroute.constants import LIMITS
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import BACKENDS, Case, batch, device_of, name_of, similarity_matrix

pytestmark = pytest.mark.usefixtures("shim_backend")
backends = pytest.mark.parametrize("backend", BACKENDS)
LAYER = LayerSimilarity(similarity_matrix(16, 0))
IDS, WEIGHTS = batch(6, 4, 16, seed=1)
# What each backend reads of a layer without factors.
TENSORS = {
    "reference": {"similarity", "threshold", "limits", "keep", "sensitivity"},
    "torch": {"position", "limits", "keep", "sensitivity"},
    "cpu": {"order", "counts", "limits", "keep", "sensitivity"},
    "shim": {"lists", "limits", "keep", "sensitivity"},
    "cuda": {"lists", "limits", "keep", "sensitivity"},
    "interpreted": {"position", "limits", "keep", "sensitivity"},
    "triton": {"position", "limits", "keep", "sensitivity"},
}


def prepared(
    backend: str,
    *,
    layer: LayerSimilarity = LAYER,
    index: int | None = None,
    keep: tuple[int, ...] = (),
    scale: Tensor | None = None,
    **settings: Any,
) -> PreparedLayer:
    """A layer at S = 1, M = 0 and ρ = 0.4, unless ``settings`` say otherwise."""
    values = {"active_experts": 0, "threshold": 0.4, "backend": name_of(backend)} | settings
    config = RerouteConfig.from_mapping(values)
    return prepare_layer(
        layer, config, index=index, top_k=4, keep=keep, scale=scale, device=device_of(backend)
    )


def step(backend: str) -> TokenBatch:
    """One batch where the backend runs."""
    return TokenBatch(IDS.to(device_of(backend)), WEIGHTS.to(device_of(backend)))


@pytest.mark.parametrize("scaled", [False, True])
@backends
def test_a_layer_keeps_what_its_backend_reads(backend: str, scaled: bool) -> None:
    """No backend holds another one's tensors; what is known of pairs is there only with a scale."""
    scale = torch.ones(16, 16) if scaled else None
    tensors = prepared(backend, scale=scale).tensors()
    assert set(tensors) == TENSORS[backend] | ({"substitutes"} if scaled else set())
    assert {tensor.device.type for tensor in tensors.values()} == {device_of(backend).type}


@backends
def test_counters_add_up(backend: str) -> None:
    """Each call adds to the counters; a call without a primary expert adds nothing."""
    layer, one = prepared(backend), step(backend)
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device_of(backend))
    layer.route(one, counters)
    once = counters.clone()
    layer.route(one._replace(num_tokens=0), counters)
    assert torch.equal(counters, once)
    layer.route(one, counters)
    assert torch.equal(counters, 2 * once)


@pytest.mark.parametrize("index", [None, 0, 1])
@backends
def test_a_layer_has_its_own_settings(backend: str, index: int | None) -> None:
    """Layer 1 has what ``layers`` names and all else of the others; without an index nothing is special."""
    own = {"select_top_k": 2, "active_experts": 7}
    found = prepared(backend, layers={1: own}, index=index)
    expected = prepared(backend, **own if index == 1 else {})
    assert all(torch.equal(tensor, expected.tensors()[name]) for name, tensor in found.tensors().items())
    assert torch.equal(found.route(step(backend)).ids, expected.route(step(backend)).ids)


CHANGES = [
    pytest.param({"threshold": 0.8}, id="a higher threshold"),
    pytest.param({"threshold": 0.0}, id="a lower threshold"),
    pytest.param({"select_top_k": 2}, id="another S"),
    pytest.param({"active_experts": 5}, id="another M"),
    pytest.param({"active_experts": ((1, 2), (6, 7))}, id="M by the rows"),
    pytest.param({"layers": {1: {"active_experts": 6, "threshold": 0.7}}, "index": 1}, id="one layer's own"),
    pytest.param({"keep": (2, 5)}, id="experts to keep"),
    pytest.param({"threshold": 1.5, "scale": torch.full((16, 16), 0.25)}, id="another scale"),
    pytest.param({"min_gain": 0.2, "scale": torch.full((16, 16), 0.25)}, id="another least gain"),
]


@pytest.mark.parametrize("changes", CHANGES)
@backends
def test_an_update_is_as_if_prepared_with_it(backend: str, changes: dict[str, Any]) -> None:
    """Every tensor takes the new values at its old address, and steps come out as with the other layer."""
    scale = torch.full((16, 16), 2.0) if "scale" in changes else None
    mine, other = prepared(backend, scale=scale), prepared(backend, **changes)
    addresses = {name: tensor.data_ptr() for name, tensor in mine.tensors().items()}
    expected = other.route(step(backend))
    mine.update(other)
    assert {name: tensor.data_ptr() for name, tensor in mine.tensors().items()} == addresses
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in mine.tensors().items())
    found = mine.route(step(backend))
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.weights, expected.weights)
    assert mine.config == other.config


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0.9},
        {"select_top_k": 2},
        {"active_experts": 6},
        {"active_experts": ((2, 3), (6, 7))},
        {"min_gain": 0.05},
    ],
    ids=["threshold", "S", "M", "M by the rows", "least gain"],
)
@backends
def test_compiled_code_reads_an_update(backend: str, changes: dict[str, Any]) -> None:
    """What was compiled before an update gives the new result after it, without being compiled again."""
    torch.compiler.reset()
    start: dict[str, Any] = {"threshold": 0.0, "scale": torch.ones(16, 16)}
    mine, other = prepared(backend, **start), prepared(backend, **start | changes)
    frames: list[Any] = []

    def count(graph: torch.fx.GraphModule, _: object) -> Any:
        frames.append(graph)
        return graph.forward

    # Ids and weights in one tensor.
    compiled = torch.compile(lambda one: sum(mine.route(one)), fullgraph=True, backend=count)
    before = compiled(step(backend))
    expected = sum(other.route(step(backend)))
    assert not torch.equal(before, expected)
    mine.update(other)
    assert torch.equal(compiled(step(backend)), expected)
    assert len(frames) == 1


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@backends
def test_limits_of_the_caller_are_read_at_each_step(backend: str, compiled: bool) -> None:
    """What the caller writes there between two steps counts in the next one, in compiled code, too."""
    torch.compiler.reset()
    mine, other = prepared(backend), prepared(backend, select_top_k=2, active_experts=7)
    # One row of a tensor for many layers.
    limits = torch.zeros(2, LIMITS, dtype=torch.int32, device=device_of(backend))[1]
    mine.read_limits_from(limits)
    assert mine.tensors()["limits"].data_ptr() == limits.data_ptr()
    assert torch.equal(limits, prepared(backend).tensors()["limits"])
    route = torch.compile(mine.route, fullgraph=True, backend="eager") if compiled else mine.route
    assert torch.equal(route(step(backend)).ids, prepared(backend).route(step(backend)).ids)
    limits.copy_(other.tensors()["limits"])
    found, expected = route(step(backend)).ids, other.route(step(backend)).ids
    assert torch.equal(found, expected)
    assert not torch.equal(found, prepared(backend).route(step(backend)).ids)


@pytest.mark.parametrize(
    "limits",
    [torch.zeros(LIMITS), torch.zeros(5, dtype=torch.int32), torch.zeros(2 * LIMITS, dtype=torch.int32)[::2]],
    ids=["floating point", "too few", "with gaps"],
)
def test_limits_of_another_kind_are_refused(limits: Tensor) -> None:
    """A kernel reads them by address; the layer keeps its own."""
    layer = prepared("cpu")
    mine = layer.tensors()["limits"]
    with pytest.raises(InputError, match=r"limits: expected a contiguous tensor torch.int32 \[258\] on cpu"):
        layer.read_limits_from(limits)
    assert layer.tensors()["limits"] is mine


@backends
def test_a_layer_prepared_in_inference_mode_can_be_updated_outside_it(backend: str) -> None:
    """An engine may load its model in that mode and change its settings later."""
    with torch.inference_mode():
        mine = prepared(backend)
    other = prepared(backend, threshold=0.9)
    mine.update(other)
    with torch.inference_mode():
        found = mine.route(step(backend))
    assert torch.equal(found.ids, other.route(step(backend)).ids)


@pytest.mark.parametrize(
    ("other", "error", "text"),
    [
        (
            {"active_experts": 3, "cap": True},
            ConfigError,
            "cap: cannot change in a prepared layer, only select_top_k, .* prepare another layer",
        ),
        ({"targets": "active"}, ConfigError, "active_targets: cannot change"),
        ({"merge": "sentinel", "sentinel": -1}, ConfigError, "merge, sentinel: cannot change"),
        ({"scale": torch.ones(16, 16)}, InputError, "expected a prepared layer with .*, got .*'substitutes'"),
        (
            {"layer": LayerSimilarity(similarity_matrix(12, 0))},
            InputError,
            r"expected a prepared layer with .*\[16\].*, got .*\[12\].*; prepare the same layer",
        ),
    ],
    ids=["cap", "targets", "merge", "a scale where there was none", "another number of experts"],
)
@backends
def test_an_update_that_cannot_be_is_refused(
    backend: str, other: dict[str, Any], error: type[Exception], text: str
) -> None:
    """What compiled code holds as a constant cannot change; nothing at all is written then."""
    mine = prepared(backend)
    before = {name: tensor.clone() for name, tensor in mine.tensors().items()}
    with pytest.raises(error, match=text):
        mine.update(prepared(backend, **{"threshold": 0.9} | other))
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.tensors().items())
    assert mine.config.threshold == 0.4


@backends
def test_a_least_number_of_active_experts(backend: str) -> None:
    """M is never below what the caller needs, and never above E."""
    config = RerouteConfig(active_experts=2, backend=name_of(backend))  # type: ignore[arg-type]
    for least, most in ((0, 2), (5, 5), (99, 16)):
        layer = prepare_layer(LAYER, config, least_active=least, device=device_of(backend))
        assert set(layer.tensors()["limits"].tolist()[1:-1]) == {most}


def test_an_update_by_another_backend_is_refused() -> None:
    """Its tensors are others."""
    with pytest.raises(ConfigError, match="backend: cannot change in a prepared layer"):
        prepared("cpu").update(prepared("torch"))


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (torch.ones(3, 3), r"scale: expected shape \[8, 8\] like the similarity, got \[3, 3\]"),
        (torch.ones(64), r"scale: expected shape \[8, 8\] like the similarity, got \[64\]"),
        (torch.ones(8, 8, dtype=torch.float64), "scale: expected float32, got torch.float64"),
        (torch.full((8, 8), torch.nan), "scale: expected finite values, got NaN or infinity"),
    ],
    ids=["too small", "flat", "float64", "NaN"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_scale_is_refused(backend: str, scale: Tensor, text: str) -> None:
    """No backend reads beyond a scale that is too small, or takes one that is no number."""
    ids, weights = batch(4, 2, 8, seed=6)
    with pytest.raises(InputError, match=text):
        Case(ids, weights, similarity_matrix(8, 6), {"select_top_k": 1, "scale": scale}).run(backend)
    layer, config = LayerSimilarity(similarity_matrix(8, 6)), RerouteConfig(active_experts=0)
    with pytest.raises(InputError, match=text):
        prepare_layer(layer, config, scale=scale.to(device_of(backend)), device=device_of(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scale_is_copied(backend: str) -> None:
    """The next call uses the new factors; a layer prepared before keeps the old ones."""
    ids, weights = (tensor.to(device_of(backend)) for tensor in batch(8, 4, 16, seed=7))
    layer = LayerSimilarity(similarity_matrix(16, 7))
    scale = torch.full((16, 16), 2.0, device=device_of(backend))
    config = RerouteConfig.from_mapping({"active_experts": 0, "backend": name_of(backend)})
    prepared = prepare_layer(layer, config, scale=scale, device=device_of(backend))
    options = {"active_experts": 0, "backend": name_of(backend)}
    before = reroute(ids, weights, layer, scale=scale, **options)  # type: ignore[arg-type]
    scale.mul_(2)
    after = reroute(ids, weights, layer, scale=scale, **options)  # type: ignore[arg-type]
    assert torch.equal(prepared.route(TokenBatch(ids, weights)).weights, before.weights)
    rerouted = before.ids != ids
    assert rerouted.any()
    assert torch.equal(after.weights[rerouted], 2 * before.weights[rerouted])


def test_ids_on_another_device_than_the_layer() -> None:
    """A prepared layer runs where it was prepared: its addresses mean nothing elsewhere."""
    config = RerouteConfig(active_experts=0, backend="torch")
    prepared = prepare_layer(LayerSimilarity(similarity_matrix(16, 0)), config)
    text = "expected ids on cpu, where the layer was prepared, got meta; prepare the layer for each device"
    with pytest.raises(InputError, match=text):
        prepared.route(TokenBatch(IDS.to("meta"), WEIGHTS.to("meta")))
