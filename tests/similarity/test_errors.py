"""What is refused, with which words; and what an update may not allocate."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sere.errors import ConfigError, DataError, InputError
from sere.similarity import METRICS, accumulator, make_accumulator, resolve_parameters, weights_similarity


def refuses(error: type[Exception], text: str) -> Any:
    """Expect exactly this text within the error."""
    return pytest.raises(error, match=re.escape(text))


@pytest.mark.parametrize(
    ("metric", "parameters", "text"),
    [
        ("frobenus", {}, "unknown metric 'frobenus'; did you mean 'frobenius'?"),
        ("cka", {"kernal": "rbf"}, "cka: unknown parameter 'kernal'; did you mean 'kernel'?"),
        ("cka", {"kernel": "rfb"}, "cka: kernel: expected one of linear, rbf, polynomial, got 'rfb'"),
        ("cka", {"bandwidth": 1.0}, "cka: unknown parameter 'bandwidth'"),
        (
            "cka_rbf",
            {"kernel": "linear"},
            "cka_rbf: kernel: expected one of rbf, got 'linear'",
        ),
        ("cka_rbf", {"bandwidth": 0}, "cka_rbf: bandwidth: expected a finite number above 0, got 0"),
        ("cka", {"window": 1}, "cka: window: expected an integer of at least 2, got 1"),
        ("cka_polynomial", {"degree": 1.5}, "degree: expected an integer of at least 1, got 1.5"),
        ("cka_polynomial", {"offset": -1}, "offset: expected a finite number of at least 0, got -1"),
        ("cosine", {"window": 5}, "cosine: unknown parameter 'window'; it has none"),
        ("weights", {}, "weights: is computed from the experts' weights, not from outputs; use METRICS"),
    ],
)
def test_unknown_metrics_and_parameters_are_named(metric: str, parameters: dict[str, Any], text: str) -> None:
    """A wrong name or value is refused with the nearest valid one."""
    with refuses(ConfigError, text):
        make_accumulator(metric, 4, **parameters)


def test_parameters_are_given_back_whole() -> None:
    """A table records what was used, defaults included."""
    assert resolve_parameters("cka", {"kernel": "rbf"}) == {"kernel": "rbf", "window": 128, "bandwidth": 1.0}
    assert resolve_parameters("cka_linear", {}) == {"kernel": "linear", "window": 128}
    assert make_accumulator("cka_polynomial", 3, degree=2).parameters == {
        "kernel": "polynomial",
        "window": 128,
        "degree": 2,
        "offset": 1.0,
    }


def test_metrics_say_what_they_need() -> None:
    """Calibration asks the registry, not the names."""
    assert {name for name, metric in METRICS.items() if metric.needs_routing} == {"projection"}
    assert {name for name, metric in METRICS.items() if metric.accumulator is None} == {"weights"}
    assert {name for name, metric in METRICS.items() if not metric.symmetric} == {"projection"}


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"weights"}))
def test_no_token_is_an_error_of_its_own(metric: str) -> None:
    """Without a token there is no similarity; an identity would be worse than an error."""
    empty = make_accumulator(metric, 4)
    empty.update(torch.empty(4, 0, 8), torch.empty(0, 2, dtype=torch.long), torch.empty(0, 2))
    with refuses(DataError, "expected at least one token, got none; call update first"):
        empty.finalize()


def test_cka_refuses_a_single_token() -> None:
    """One token has no kernel to center."""
    single = make_accumulator("cka", 3)
    single.update(torch.randn(3, 1, 4))
    with refuses(
        DataError, "cka: expected at least 2 tokens, because one token has no others to compare with; got 1"
    ):
        single.finalize()


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (torch.randn(3, 5, 8), "outputs: expected shape [E, t, H] with E = 4 experts, got [3, 5, 8]"),
        (torch.randn(4, 8), "outputs: expected shape [E, t, H] with E = 4 experts, got [4, 8]"),
        (torch.ones(4, 5, 8, dtype=torch.int32), "expected a floating-point dtype, got torch.int32"),
        (torch.randn(4, 5, 9), "outputs: expected H = 8 as before, got H = 9"),
    ],
)
def test_outputs_of_a_wrong_shape_are_refused(outputs: Tensor, text: str) -> None:
    """The text gives what was expected and what came."""
    frobenius = make_accumulator("frobenius", 4)
    frobenius.update(torch.randn(4, 2, 8))
    with refuses(InputError, text):
        frobenius.update(outputs)


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"weights"}))
def test_outputs_that_are_not_finite_name_their_expert(metric: str) -> None:
    """An expert that overflowed is named; nothing is stored as if it were a number."""
    Y = torch.randn(4, 128, 8)
    Y[2, 1, 3] = torch.inf
    with refuses(InputError, "outputs: expected finite values"):
        make_accumulator(metric, 4).update(Y, torch.full((128, 1), 2), torch.ones(128, 1))


def test_the_expert_that_overflowed_is_named() -> None:
    """In an unfinished window too, which is looked at when the result is asked for."""
    Y = torch.randn(4, 20, 8)
    Y[2, 1, 3] = torch.nan
    cka = make_accumulator("cka", 4)
    cka.update(Y)
    with refuses(InputError, "values whose squares overflow torch.float32 from experts [2]; run"):
        cka.finalize()


def test_projection_needs_the_routers_choice() -> None:
    """Routing that is missing, of another shape or negative is refused."""
    projection, Y = make_accumulator("projection", 4), torch.randn(4, 5, 8)
    ids, weights = torch.zeros(5, 2, dtype=torch.long), torch.ones(5, 2)
    with refuses(InputError, "projection: needs the router's ids and weights for these tokens, got none"):
        projection.update(Y)
    with refuses(InputError, "expected the same shape [t, K] with t = 5, got [5, 2] and [5, 1]"):
        projection.update(Y, ids, weights[:, :1])
    with refuses(InputError, "expected integers and floating-point numbers, got torch.float32"):
        projection.update(Y, weights, weights)
    with refuses(InputError, "weights: expected finite gate weights of at least 0"):
        projection.update(Y, ids, -weights)


def test_merging_strangers_is_refused() -> None:
    """Only accumulators of one metric, E, H and parameters can be merged."""
    a, b = make_accumulator("cka", 4, window=16), make_accumulator("cka", 4, window=32)
    with refuses(InputError, "merge: expected an accumulator of ('cka', 4, "):
        a.merge(b)
    with refuses(
        InputError, "merge: expected an accumulator of ('cosine', 4, {}), got one of ('frobenius', 4"
    ):
        make_accumulator("cosine", 4).merge(make_accumulator("frobenius", 4))
    wide, narrow = make_accumulator("cosine", 4), make_accumulator("cosine", 4)
    wide.update(torch.randn(4, 2, 8))
    narrow.update(torch.randn(4, 2, 4))
    with refuses(InputError, "merge: expected outputs of H = 8, got H = 4"):
        wide.merge(narrow)


def test_a_strangers_state_is_refused() -> None:
    """State of another metric, E or a longer window is not read as this one's."""
    cosine = make_accumulator("cosine", 4)
    with refuses(InputError, "state: expected the entries [cosine.cosine, tokens], got"):
        cosine.load_state(make_accumulator("frobenius", 4).state())
    with refuses(InputError, "state cosine.cosine: expected shape [4, 4], got [5, 5]"):
        cosine.load_state(make_accumulator("cosine", 5).state())
    long = make_accumulator("cka", 4, window=32)
    long.update(torch.randn(4, 20, 8))
    with refuses(InputError, "state cka.waiting: expected shape [4, fewer than 16, H], got [4, 20, 8]"):
        make_accumulator("cka", 4, window=16).load_state(long.state())


def test_impossible_accumulators_are_refused() -> None:
    """E below 1 and 16-bit sums have no meaning."""
    with refuses(InputError, "num_experts: expected an integer of at least 1, got 0"):
        make_accumulator("cosine", 0)
    with refuses(InputError, "dtype: expected float32 or float64 (16-bit sums change choices), got torch.bf"):
        make_accumulator("cosine", 4, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([torch.ones(3), torch.ones(4)], "all of one size, got sizes [3, 4]"),
        ([], "all of one size, got sizes []"),
        (
            [torch.ones(3, dtype=torch.int8)] * 2,
            "expected floating-point tensors; dequantize the experts first",
        ),
        ([torch.ones(3), torch.tensor([1, torch.nan, 1])], "got NaN or infinity from experts [1]"),
    ],
)
def test_weights_that_cannot_be_compared_are_refused(weights: list[Tensor], text: str) -> None:
    """The text says what is wrong with them."""
    with refuses(InputError, text):
        weights_similarity(weights)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the size of the largest tensor that any operation allocates."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("metric", ["frobenius", "cosine", "projection"])
def test_an_update_never_copies_its_input_whole(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are worked through in slices; no tensor made on the way is larger than one."""
    monkeypatch.setattr(accumulator, "SLICE_ELEMENTS", 8 * 64 * 5)
    Y = torch.randn(8, 100, 64)
    with LargestTensor() as seen:
        make_accumulator(metric, 8).update(Y, torch.randint(0, 8, (100, 2)), torch.rand(100, 2))
    assert 8 * 8 <= seen.largest <= 8 * 64 * 5


def test_cka_holds_at_most_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor made on the way is larger than the window's outputs or its kernels."""
    Y = torch.randn(8, 100, 64)
    with LargestTensor() as seen:
        cka = make_accumulator("cka_rbf", 8, window=16)
        cka.update(Y[:, :50])
        cka.update(Y[:, 50:])
    assert seen.largest == 8 * 16 * 64
