"""The budgets that the layers read are those of the last announced step."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sere.integrations.vllm.tiers import PROTECTED
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.reroute import reroute
from sere.reroute.constants import PADDING_BUDGET


@given(st.lists(st.lists(st.sampled_from([1, 2, PROTECTED]), max_size=8), max_size=6))
def test_budgets_are_those_of_the_last_step(steps: list[list[int]]) -> None:
    """The device holds the last step's budgets and padding behind them; exact steps are all padding.

    Beside them is the number of rows that are not padding.
    Layers need not look at an exact step, nor compiled code, but at a dummy one, after which graphs may be
    captured.
    """
    budgets = RowBudgets(10, torch.device("cpu"), counted=True)
    assert budgets.real is not None
    assert not budgets.skip
    addresses = budgets.tensor.data_ptr(), budgets.skips.data_ptr()
    for rows in steps:
        active = budgets.announce(np.array(rows, dtype=np.int32))
        assert active == any(row != PROTECTED for row in rows)
        assert budgets.tensor.tolist() == (rows if active else []) + [PADDING_BUDGET] * (
            10 - len(rows) * active
        )
        assert budgets.skip == (not active)
        assert budgets.skips.tolist() == [not active]
        assert budgets.real.tolist() == [len(rows) * active]
    budgets.exact(dummy=True)
    assert not budgets.skip
    assert budgets.skips.tolist() == [False]
    assert budgets.tensor.tolist() == [PADDING_BUDGET] * 10
    assert (budgets.tensor.data_ptr(), budgets.skips.data_ptr()) == addresses
    assert budgets.real.tolist() == [0]


def test_the_same_budgets_after_another_step() -> None:
    """Budgets that come again are written again if a step in between was exact."""
    budgets = RowBudgets(4, torch.device("cpu"))
    rows = np.array([1, 2], dtype=np.int32)
    for _ in range(2):
        assert budgets.announce(rows)
        assert budgets.announce(rows)
        assert (budgets.tensor.tolist()[:2], budgets.skip, budgets.largest) == ([1, 2], False, 2)
        budgets.exact()
        assert (budgets.tensor.tolist()[:2], budgets.skip) == ([PADDING_BUDGET] * 2, True)


def test_padding_everywhere_changes_nothing() -> None:
    """A step whose rows are all padding leaves ids and weights as they were, bit for bit."""
    budgets = RowBudgets(6, torch.device("cpu"))
    ids, weights = torch.randint(0, 8, (6, 2)), torch.rand(6, 2)
    result = reroute(
        ids, weights, torch.rand(8, 8).fill_diagonal_(1.0), select_top_k=1, row_budgets=budgets.at(6)
    )
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


def test_the_number_of_rows_is_of_the_first_share() -> None:
    """Where ranks share the rows of a step, only the first one's begin at row 0; a CPU needs no number."""
    assert RowBudgets(4, torch.device("cpu")).real is None
    budgets = RowBudgets(4, torch.device("cpu"), counted=True)
    assert budgets.real_of(0) is budgets.real
    assert budgets.real_of(1) is None
