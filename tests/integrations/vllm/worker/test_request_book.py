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


DECODE = {"a": 1, "c": 1}


def decode(book: RequestBook, computed: dict[str, int], counts: dict[str, int] | None = None) -> Any:
    given = DECODE if counts is None else counts
    return book.budgets(step(cached=computed), list(given), np.array(list(given.values())))


def test_a_batch_that_goes_on_decoding_costs_nothing(book: RequestBook) -> None:
    """If each request of a batch goes on by one token, the step's rows are those of the step before."""
    first = decode(book, {"a": 5, "c": 3})
    assert first.budgets.tolist() == [LAYER_BUDGET, 1]
    assert decode(book, {"a": 6, "c": 4}) is first
    assert decode(book, {"a": 7, "c": 5}) is first
    assert decode(book, {"c": 6, "a": 8}, {"c": 1, "a": 1}).budgets.tolist() == [1, LAYER_BUDGET]


@pytest.mark.parametrize(
    ("computed", "counts", "expected"),
    [
        ({"a": 4, "c": 4}, DECODE, [PROTECTED, 1]),
        ({"a": 0, "c": 4}, {"a": 5, "c": 1}, [*[PROTECTED] * 5, 1]),
        ({"a": 6, "c": 4}, {"a": 2, "c": 1}, [PROTECTED, PROTECTED, 1]),
        ({"a": 6}, {"a": 1}, [LAYER_BUDGET]),
    ],
    ids=["set back to its last prompt token", "set back to its start", "two tokens", "one is gone"],
)
def test_a_batch_that_does_not_go_on(
    book: RequestBook, computed: dict[str, int], counts: dict[str, int], expected: list[int]
) -> None:
    """A request that was set back, as when its cache could not be loaded, is seen in the very next step."""
    decode(book, {"a": 5, "c": 3})
    assert decode(book, computed, counts).budgets.tolist() == expected


def test_other_steps_in_between(book: RequestBook) -> None:
    """Drafted tokens and ``phases="all"`` are looked at anew, and so is the step after them."""
    first = decode(book, {"a": 5, "c": 3})
    drafted = step(cached={"a": 6, "c": 4}, drafts={"a": [1]})
    assert budgets(book, drafted, {"a": 2, "c": 1}) == [LAYER_BUDGET, LAYER_BUDGET, 1]
    assert decode(book, {"a": 8, "c": 5}) is not first
    assert budgets(book, step(cached={"a": 2, "c": 1}), DECODE, all_phases=True) == [LAYER_BUDGET, 1]
