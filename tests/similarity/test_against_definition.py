"""Every accumulator computes what its definition says, in any pieces and any merge order."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sere.similarity import definitions, make_accumulator

WINDOW = 8

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "frobenius": ("frobenius", {}),
    "cosine": ("cosine", {}),
    "linear": ("cka", {"window": WINDOW}),
    "rbf": ("cka", {"kernel": "rbf", "window": WINDOW, "bandwidth": 0.7}),
    "polynomial": ("cka", {"kernel": "polynomial", "window": WINDOW, "degree": 2, "offset": 0.5}),
    "rbf defaults": ("cka_rbf", {"window": WINDOW}),
    "projection": ("projection", {}),
}
KERNELS: dict[str, definitions.Kernel] = {
    "linear": definitions.linear_kernel,
    "rbf": partial(definitions.rbf_kernel, bandwidth=0.7),
    "polynomial": partial(definitions.polynomial_kernel, degree=2, offset=0.5),
    "rbf defaults": partial(definitions.rbf_kernel, bandwidth=1.0),
}


def experts(E: int, T: int, H: int, seed: int = 0) -> Tensor:
    """Outputs with a common part and some pairs alike, as trained experts have."""
    generator = torch.Generator().manual_seed(seed)
    own, base = torch.randn(E, T, H, generator=generator), torch.randn(T, H, generator=generator)
    alike = torch.rand(E, 1, 1, generator=generator)
    return 3 * base * alike + own * (1 - alike)


def routing(E: int, T: int, K: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The router's choice, with ids that are no experts and weights of 0 among it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, E + 1, (T, K), generator=generator)
    weights = torch.rand(T, K, generator=generator)
    return ids, weights * (torch.rand(T, K, generator=generator) > 0.2)


def _silence(Y: Tensor, value: float) -> None:
    """Let the last expert give the same for all tokens, in place: nothing, or something."""
    Y[-1] = value


def defined(case: str, Y: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Similarity and scale by the definition."""
    if case == "frobenius":
        return definitions.frobenius(Y), None
    if case == "cosine":
        return definitions.cosine(Y), None
    if case == "projection":
        return definitions.projection(Y, ids, weights)
    return definitions.cka(Y, window=WINDOW, kernel=KERNELS[case]), None


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_any_chunks_and_any_merge_order_give_the_definition(case: str, data: st.DataObject) -> None:
    """In float64, tokens cut anywhere and accumulators merged in any order give the definition's result.

    For cka, parts begin at window boundaries, as merging joins streams there; their chunks are cut anywhere.
    """
    E, H = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 6))
    T = data.draw(st.integers(2, 40))
    Y, (ids, weights) = experts(E, T, H).double(), routing(E, T, 2)
    if data.draw(st.booleans()):
        _silence(Y, data.draw(st.sampled_from([0.0, 0.3])))
    step = WINDOW if case in KERNELS else 1
    parts = sorted(
        {0, T, *(step * cut for cut in data.draw(st.lists(st.integers(0, T // step), max_size=3)))}
    )
    accumulators = []
    for begin, end in itertools.pairwise(parts):
        name, parameters = CASES[case]
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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_products_are_float32_whatever_the_outputs_dtype(case: str, dtype: torch.dtype) -> None:
    """16-bit outputs lose nothing more: the result is the definition's for the very same values."""
    Y, (ids, weights) = experts(6, 50, 32).to(dtype), routing(6, 50, 3)
    name, parameters = CASES[case]
    accumulator = make_accumulator(name, 6, **parameters)
    for part in (slice(0, 17), slice(17, 50)):
        accumulator.update(Y[:, part], ids[part], weights[part])

    similarity, _ = defined(case, Y, ids, weights)

    # Float32 products; measured at most 2e-6. 16-bit products would be off by 1e-3.
    torch.testing.assert_close(accumulator.finalize().similarity.double(), similarity, atol=5e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_accumulator_goes_on_exactly(case: str) -> None:
    """State taken in the middle and loaded elsewhere gives, to the bit, what going on would have."""
    Y, (ids, weights) = experts(4, 30, 8), routing(4, 30, 2)
    name, parameters = CASES[case]
    straight, resumed = (make_accumulator(name, 4, **parameters) for _ in range(2))
    straight.update(Y[:, :13], ids[:13], weights[:13])
    resumed.load_state(straight.state())
    for accumulator in (straight, resumed):
        accumulator.update(Y[:, 13:], ids[13:], weights[13:])
    assert resumed.tokens == 30
    assert torch.equal(resumed.finalize().similarity, straight.finalize().similarity)


@pytest.mark.parametrize("case", CASES)
def test_finalize_and_merge_leave_their_source_as_it_was(case: str) -> None:
    """A result can be read at any time; reading, or merging into another, changes nothing."""
    Y, (ids, weights) = experts(4, 21, 8), routing(4, 21, 2)
    name, parameters = CASES[case]
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


def test_weights_similarity_is_the_cosine_of_flat_weights() -> None:
    """The metric of the weights equals its definition, across several blocks of columns."""
    from sere.similarity import cosine, weights_similarity

    stacked = experts(5, 1, 700)[:, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosine, "SLICE_ELEMENTS", 500)
        result = weights_similarity(list(stacked)).similarity
    torch.testing.assert_close(result.double(), definitions.weights(stacked), atol=1e-6, rtol=0)
    assert torch.equal(weights_similarity(stacked.reshape(5, 7, 100)).similarity.diagonal(), torch.ones(5))
