"""Which rows of a step are decoded, and with which budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sere.integrations.vllm.tiers import PROTECTED
from sere.integrations.vllm.worker.request_book import RequestBook
from sere.reroute.constants import LAYER_BUDGET
from tests.support.vllm.standins import ALL, new, step


def budgets(book: RequestBook, output: Any, counts: dict[str, int], **options: Any) -> list[int]:
    rows = book.budgets(output, list(counts), np.array(list(counts.values())), **options)
    return rows.budgets.tolist()


@pytest.fixture
def book() -> RequestBook:
    known = RequestBook(ALL)
    known.update(step(news=(new("a", 5), new("b", 8, "off"), new("c", 3, {"select_top_k": 1}), new("d", 4))))
    return known


def test_decoding_and_prompts(book: RequestBook) -> None:
    """In the batch's order: decoding requests get their S or the layer's; prompts and "off" are protected."""
    output = step(news=(new("e", 2),), cached={"a": 5, "b": 9, "c": 3, "d": 2})
    book.update(output)
    counts = {"c": 1, "a": 1, "d": 2, "b": 1, "e": 2}
    assert budgets(book, output, counts) == [1, LAYER_BUDGET, *[PROTECTED] * 5]


def test_last_token_of_a_prompt_is_prompt(book: RequestBook) -> None:
    """A piece of a prompt of one token, as after a hit of the prefix cache, is not a decoded row."""
    assert budgets(book, step(cached={"a": 4}), {"a": 1}) == [PROTECTED]


def test_drafted_tokens_are_decoded(book: RequestBook) -> None:
    """Rows that verify drafted tokens are decoded; more rows than drafted tokens and one are not."""
    output = step(cached={"a": 6, "d": 4}, drafts={"a": [1, 2]})
    assert budgets(book, output, {"a": 3, "d": 3}) == [*[LAYER_BUDGET] * 3, *[PROTECTED] * 3]


def test_preempted_request_is_computed_again_exactly(book: RequestBook) -> None:
    """After a preemption a request's rows are protected until it decodes again."""
    assert budgets(book, step(cached={"a": 0}), {"a": 7}) == [PROTECTED] * 7
    assert budgets(book, step(cached={"a": 7}), {"a": 1}) == [LAYER_BUDGET]


def test_all_phases(book: RequestBook) -> None:
    """With ``phases="all"`` rows of prompts are re-routed too, but for requests that said "off"."""
    output = step(news=(new("e", 2),), cached={"b": 2})
    book.update(output)
    assert budgets(book, output, {"e": 2, "b": 2}, all_phases=True) == [*[LAYER_BUDGET] * 2, *[PROTECTED] * 2]


def test_book_forgets_finished_requests(book: RequestBook) -> None:
    """Finished and aborted requests leave nothing behind; an unknown one is protected."""
    book.update(step(finished=("a", "b", "c", "d", "never seen")))
    assert len(book) == 0
    assert budgets(book, step(cached={"a": 9}), {"a": 1}) == [PROTECTED]


class Strange(dict[str, Any]):
    """A mapping that cannot be read."""

    def __iter__(self) -> Any:
        raise RuntimeError("unreadable")


@pytest.mark.parametrize(
    "value", ["of", "[" * 100_000, Strange(select_top_k=1)], ids=["bad", "deep", "error"]
)
def test_any_fault_in_the_worker_protects(value: Any) -> None:
    """Whatever goes wrong with a request's tier in the worker protects that request; the engine goes on."""
    book = RequestBook(ALL)
    book.update(step(news=(new("a", 3, value), new("b", 3))))
    found = book.budgets(step(cached={"a": 3, "b": 3}), ["a", "b"], np.array([1, 1]))
    assert found.budgets.tolist() == [PROTECTED, LAYER_BUDGET]
