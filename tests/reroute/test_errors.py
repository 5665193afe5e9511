"""Wrong input is refused with what was expected, what came and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sere.errors import BackendUnavailable, ConfigError, InputError
from sere.reroute import COUNTERS, reroute, select
from sere.reroute.backends import registry
from tests.support.batches import BACKENDS, batch, device_of, name_of, similarity_matrix
from tests.support.packages import pretend_packages

IDS, WEIGHTS = batch(4, 2, 8, seed=0)
SIMILARITY = similarity_matrix(8, 0)

WRONG: list[Any] = [
    ({"topk_ids": IDS.tolist()}, "topk_ids: expected a torch.Tensor, got list; use torch.as_tensor"),
    ({"topk_weights": WEIGHTS.numpy()}, "topk_weights: expected a torch.Tensor, got ndarray"),
    ({"similarity": SIMILARITY.tolist()}, "similarity: expected a torch.Tensor, got list"),
    ({"scale": SIMILARITY.tolist()}, "scale: expected a torch.Tensor, got list"),
    ({"counters": [0] * len(COUNTERS)}, "counters: expected a torch.Tensor, got list"),
    ({"topk_ids": IDS[0]}, r"the same shape \[T, K\], got \[2\] and \[4, 2\]"),
    ({"topk_weights": WEIGHTS[:2]}, r"the same shape \[T, K\], got \[4, 2\] and \[2, 2\]"),
    ({"topk_ids": IDS.float()}, "topk_ids: expected int32 or int64, got torch.float32"),
    ({"topk_weights": WEIGHTS.int()}, "topk_weights: expected a floating-point dtype, got torch.int32"),
    ({"similarity": SIMILARITY[:4]}, r"square \[E, E\] matrix, got shape \[4, 8\]"),
    ({"similarity": SIMILARITY.bfloat16()}, "expected float32 .* got torch.bfloat16"),
    ({"similarity": SIMILARITY * torch.nan}, "expected a diagonal of 1, got NaN"),
    ({"similarity": SIMILARITY + torch.inf}, r"expected values in \[0, 1\], got inf to inf"),
    ({"similarity": SIMILARITY * 2}, r"expected values in \[0, 1\], got .* to 2"),
    ({"similarity": torch.zeros(8, 8)}, "expected a diagonal of 1, got one off by 1"),
    ({"topk_ids": IDS[:, :0], "topk_weights": WEIGHTS[:, :0]}, r"one slot per row, got shape \[4, 0\]"),
    (
        {"topk_ids": IDS[:1, :1].expand(2**22, 8), "topk_weights": WEIGHTS[:1, :1].expand(2**22, 8)},
        r"fewer than 2\^25 slots in a step \(T x K\), got \[4194304, 8\]; route the rows in several calls",
    ),
    ({"select_top_k": 0}, "select_top_k: expected an integer of at least 1, got 0"),
    ({"select_top_k": 1.5}, "select_top_k: expected an integer of at least 1, got 1.5"),
    ({"threshold": -0.1}, "threshold: expected a number of at least 0"),
    ({"threshold": float("nan")}, "threshold: expected a number of at least 0"),
    ({"active_experts": -1}, "active_experts: expected an integer of at least 0, got -1"),
    ({"keep": (8,)}, r"keep: expected expert ids in \[0, 8\), got 8"),
    ({"targets": "primry"}, "targets: got 'primry'; did you mean 'primary'"),
    ({"merge": "distnct"}, "merge: got 'distnct'; did you mean 'distinct'"),
    ({"merge": "sentinel"}, "merge='sentinel' needs the id for freed slots"),
    ({"merge": "sentinel", "sentinel": 2**40}, "sentinel: expected an id in the range of int32"),
    ({"merge": "sentinel", "sentinel": 0}, "sentinel: expected an id outside \\[0, 8\\), such as -1, got 0"),
    ({"merge": "sentinel", "sentinel": 7}, "got 7, which is one of the layer's 8 experts"),
    ({"sentinel": -1}, "sentinel: given .* but merge is 'none'"),
    ({"row_budgets": [1, 1]}, r"row_budgets: expected 4 integers .* got torch.int32 of shape \[2\]"),
    ({"row_budgets": torch.ones(4)}, "row_budgets: expected 4 integers .* got torch.float32"),
    ({"row_budgets": [1, 1.5, 1, 1]}, "row_budgets: expected one integer per row, got 1.5 \\(float\\)"),
    ({"row_budgets": [1, True, 1, 1]}, "row_budgets: expected one integer per row, got True \\(bool\\)"),
    ({"row_budgets": [[1, 1]] * 4}, "row_budgets: expected one integer per row, got \\[1, 1\\] \\(list\\)"),
    ({"row_budgets": 2}, "row_budgets: expected one integer per row, got 2 \\(int\\)"),
    ({"num_tokens": 2.5}, "num_tokens: expected an integer or a tensor with one, got 2.5"),
    ({"num_tokens": True}, "num_tokens: expected an integer or a tensor with one, got True"),
    ({"num_tokens": torch.tensor([[2]])}, r"of shape \[\] or \[1\]\), got torch.int64 of shape \[1, 1\]"),
    ({"num_tokens": 5}, r"num_tokens: expected 0 to 4 \(the number of rows\), got 5"),
    ({"num_tokens": torch.ones(2)}, "num_tokens: expected one integer .* got torch.float32"),
    ({"counters": torch.zeros(3)}, r"counters: expected int64 of shape \[8\], got torch.float32 of \[3\]"),
    ({"backend": "tritn"}, "backend: got 'tritn'"),
]


@pytest.mark.parametrize(("change", "text"), WRONG)
def test_wrong_input(change: dict[str, Any], text: str) -> None:
    """Each wrong argument has its own text."""
    arguments: dict[str, Any] = {
        "topk_ids": IDS, "topk_weights": WEIGHTS, "similarity": SIMILARITY, "select_top_k": 1
    }  # fmt: skip
    with pytest.raises(InputError, match=text):
        reroute(**arguments | change)


@pytest.mark.usefixtures("shim_backend")
@pytest.mark.parametrize("backend", BACKENDS)
def test_counters_with_gaps(backend: str) -> None:
    """Every backend refuses counters that are not contiguous, and writes nothing between them."""
    memory = torch.zeros(2 * len(COUNTERS), dtype=torch.int64, device=device_of(backend))
    ids, weights = IDS.to(memory.device), WEIGHTS.to(memory.device)
    text = r"counters: expected a contiguous tensor, got strides \[2\]; .* torch.zeros"
    with pytest.raises(InputError, match=text):
        reroute(ids, weights, SIMILARITY, select_top_k=1, counters=memory[::2], backend=name_of(backend))
    assert memory.tolist() == [0] * (2 * len(COUNTERS))


def test_counters_on_another_device() -> None:
    """Counters must be where the ids are: an address on another device would be written to."""
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device="meta")
    with pytest.raises(InputError, match="counters: expected cpu like the ids, got meta"):
        reroute(IDS, WEIGHTS, SIMILARITY, select_top_k=1, counters=counters)


def test_a_number_of_tokens_may_be_numpys() -> None:
    """An integer of numpy is an integer."""
    given, plain = (reroute(IDS, WEIGHTS, SIMILARITY, select_top_k=1, num_tokens=N) for N in (np.int64(2), 2))
    assert torch.equal(given.ids, plain.ids)


def test_a_named_backend_that_cannot_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cpu`` on another device, or without numba, is refused with the reason and the install line."""
    with pytest.raises(
        BackendUnavailable, match="'cpu' cannot run here: it needs cpu tensors, got cuda tensors"
    ):
        select("cpu", "cuda")
    pretend_packages(monkeypatch, missing=("numba",))
    with pytest.raises(BackendUnavailable, match=r"numba is not installed; .* pip install '\.\[cpu\]'"):
        select.__wrapped__("cpu", "cpu")


def test_automatic_choice_falls_back_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without numba the torch backend runs, with one log line; else it is the choice anyway."""
    registry.warn_once.forget()
    assert select("auto", "cpu") == "cpu"
    assert select("auto", "mps") == "torch"
    assert caplog.text == ""
    pretend_packages(monkeypatch, missing=("numba",))
    assert select.__wrapped__("auto", "cpu") == "torch"
    assert "numba is not installed" in caplog.text


def test_unknown_backend() -> None:
    """The nearest valid name is suggested."""
    with pytest.raises(ConfigError, match="got 'referense'; did you mean 'reference'"):
        select("referense", "cpu")
