"""Every accumulator computes what its definition says, in any pieces and any merge order."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sere.similarity import METRICS, make_accumulator
from tests.support.metrics import OF_OUTPUTS, defined, experts, routing


def _silence(Y: Tensor, value: float) -> None:
    """Let the last expert give the same for all tokens, in place: nothing, or something."""
    Y[-1] = value


@pytest.mark.parametrize("case", OF_OUTPUTS)
@settings(max_examples=15)
@given(data=st.data())
def test_any_chunks_and_any_merge_order_give_the_definition(case: str, data: st.DataObject) -> None:
    """In float64, tokens cut anywhere and accumulators merged in any order give the definition's result.

    For cka, parts begin at window boundaries, as merging joins streams there; their chunks are cut anywhere.
    """
    E, H = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    T = data.draw(st.integers(2 if OF_OUTPUTS[case][0].startswith("cka") else 1, 40))
    Y, (ids, weights) = experts(E, T, H).double(), routing(E, T, 2)
    if data.draw(st.booleans()):
        _silence(Y, data.draw(st.sampled_from([0.0, 0.3])))
    step = OF_OUTPUTS[case][1].get("window", 1)
    parts = sorted(
        {0, T, *(step * cut for cut in data.draw(st.lists(st.integers(0, T // step), max_size=3)))}
    )
    accumulators = []
    for begin, end in itertools.pairwise(parts):
        name, parameters = OF_OUTPUTS[case]
        accumulators.append(make_accumulator(name, E, dtype=torch.float64, **parameters))
        cuts = sorted({begin, end, *data.draw(st.lists(st.integers(begin, end), max_size=4))})
        for a, b in itertools.pairwise(cuts):
            accumulators[-1].update(Y[:, a:b], ids[a:b], weights[a:b])
    first, *others = data.draw(st.permutations(accumulators))
    for other in others:
        first.merge(other)

    result = first.finalize()

    similarity, scale = defined(case, Y, ids, weights)
    # The result is stored in float32: one rounding of a value of at most 1; for frobenius, a root of a sum
    # that cancels leaves 1e-8 of the largest distance.
    torch.testing.assert_close(result.similarity.double(), similarity, atol=1e-7, rtol=0, equal_nan=True)
    assert first.tokens == T
    if scale is not None:
        assert result.scale is not None
        torch.testing.assert_close(result.scale.double(), scale, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", OF_OUTPUTS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_products_are_float32_whatever_the_outputs_dtype(case: str, dtype: torch.dtype) -> None:
    """16-bit outputs lose nothing more: the result is the definition's for the very same values."""
    Y, (ids, weights) = experts(6, 50, 32).to(dtype), routing(6, 50, 3)
    name, parameters = OF_OUTPUTS[case]
    accumulator = make_accumulator(name, 6, **parameters)
    for part in (slice(0, 17), slice(17, 50)):
        accumulator.update(Y[:, part], ids[part], weights[part])

    similarity, _ = defined(case, Y, ids, weights)

    # Float32 products; measured at most 2e-6. 16-bit products would be off by 1e-3.
    torch.testing.assert_close(accumulator.finalize().similarity.double(), similarity, atol=5e-6, rtol=0)


@pytest.mark.parametrize("case", OF_OUTPUTS)
def test_a_resumed_accumulator_goes_on_exactly(case: str) -> None:
    """State taken in the middle and loaded elsewhere gives, to the bit, what going on would have."""
    Y, (ids, weights) = experts(4, 30, 8), routing(4, 30, 2)
    name, parameters = OF_OUTPUTS[case]
    straight, resumed = (make_accumulator(name, 4, **parameters) for _ in range(2))
    straight.update(Y[:, :13], ids[:13], weights[:13])
    resumed.load_state(straight.state())
    for accumulator in (straight, resumed):
        accumulator.update(Y[:, 13:], ids[13:], weights[13:])
    assert resumed.tokens == 30
    assert torch.equal(resumed.finalize().similarity, straight.finalize().similarity)


@pytest.mark.parametrize("case", OF_OUTPUTS)
def test_finalize_and_merge_leave_their_source_as_it_was(case: str) -> None:
    """A result can be read at any time; reading, or merging into another, changes nothing."""
    Y, (ids, weights) = experts(4, 21, 8), routing(4, 21, 2)
    name, parameters = OF_OUTPUTS[case]
    read, unread, other = (make_accumulator(name, 4, **parameters) for _ in range(3))
    for accumulator in (read, unread):
        accumulator.update(Y[:, :11], ids[:11], weights[:11])
    read.finalize()
    other.merge(read)
    for accumulator in (read, unread):
        accumulator.update(Y[:, 11:], ids[11:], weights[11:])
    assert torch.equal(read.finalize().similarity, unread.finalize().similarity)
    assert other.tokens == 11


def test_merging_unfinished_cka_streams_counts_each_rest_as_a_window() -> None:
    """Streams of 11 and 13 tokens, merged either way round, are windows of 8+3 and 8+5 tokens."""
    a, b = experts(3, 11, 4, seed=1).double(), experts(3, 13, 4, seed=2).double()
    first, second = (make_accumulator("cka", 3, dtype=torch.float64, window=8) for _ in range(2))
    first.update(a)
    second.update(b)
    swapped = make_accumulator("cka", 3, dtype=torch.float64, window=8)
    swapped.merge(second)
    swapped.merge(first)
    first.merge(second)

    # With zero rows up to a full window, a linear kernel would differ: so the parts are summed by hand.
    hsic = torch.zeros(3, 3, dtype=torch.float64)
    for window in (a[:, :8], a[:, 8:], b[:, :8], b[:, 8:]):
        centered = window - window.mean(dim=1, keepdim=True)
        kernels = (centered @ centered.transpose(1, 2)).flatten(1)
        hsic += kernels @ kernels.T
    norms = hsic.diagonal().sqrt()
    expected = hsic / norms[:, None] / norms
    torch.testing.assert_close(first.finalize().similarity.double(), expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(swapped.finalize().similarity.double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if metric.of_weights])
def test_a_metric_of_weights_is_its_definition(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It equals its definition, also across several blocks of columns, and for weights of any shape."""
    found = METRICS[metric]
    assert found.of_weights is not None
    monkeypatch.setattr("sere.similarity.weights.SLICE_ELEMENTS", 500)
    stacked = experts(5, 1, 700)[:, 0]
    result = found.of_weights(list(stacked)).similarity
    torch.testing.assert_close(result.double(), found.definition(stacked), atol=1e-6, rtol=0)
    assert torch.equal(found.of_weights(list(stacked.reshape(5, 7, 100))).similarity, result)
