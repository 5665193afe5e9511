"""What was recorded is given to the same calls, and to no others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from sere.bench.replay import Recording, Way, given, kept
from sere.errors import EngineError
from sere.policies.spec import parse_spec
from sere.reroute import Routing
from sere.reroute.batch import TokenBatch

K = 4


def step(T: int) -> tuple[Tensor, Tensor]:
    """Ids and weights of T rows."""
    return torch.arange(T * K).view(T, K), torch.ones(T, K)


def record(*rows: int) -> Recording:
    """Record a routing of each number of rows, given a batch, and a search for pairs, given ids."""
    found = Recording()
    route = kept(lambda batch: Routing(*batch[:2]), found.routings)
    find = kept(lambda ids, _: (ids.view(-1)[:1],), found.pairs)
    for T in rows:
        route(TokenBatch(*step(T)))
        find(*step(T))
    return found


def run(recording: Recording, rows: Sequence[int]) -> None:
    """Replay steps of such numbers of rows."""
    with given(recording) as (route, find):
        for T in rows:
            route(TokenBatch(*step(T)))
            find(*step(T))


def test_the_same_calls_get_what_was_recorded() -> None:
    """As often as it is replayed, whatever becomes of the results, and without the function."""
    recording = record(6, 3)
    assert recording.describe() == {"routings": 2, "pairs": 2}
    for _ in range(2):
        with given(recording) as (route, find):
            for T in (6, 3):
                routing = route(TokenBatch(*step(T)))
                assert isinstance(routing, Routing)
                assert torch.equal(routing.ids, step(T)[0])
                assert find(*step(T))[0].tolist() == [0]
                routing.ids.fill_(-1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            (6, 4),
            r"call 2 of 2 of the routing: expected ids of the recorded shape \(3, 4\), got \(4, 4\); repl",
        ),
        ((6, 3, 3), "expected the 2 calls of the routing that were recorded, got one more; replay the steps"),
        ((6,), "expected the 2 calls of the routing that were recorded, got 1; replay the steps"),
    ],
    ids=["other rows", "one more", "one fewer"],
)
def test_other_calls_are_refused(rows: tuple[int, ...], said: str) -> None:
    """They would be given the experts of another step, and be timed as if right."""
    with pytest.raises(EngineError, match=said):
        run(record(6, 3), rows)


def test_a_search_that_did_not_happen_is_missed() -> None:
    """Also where all routings were asked for."""
    with pytest.raises(EngineError, match="1 calls of the search for pairs"), given(record(6)) as (route, _):
        route(TokenBatch(*step(6)))


def test_what_fails_in_a_replay_is_what_is_said() -> None:
    """Not that it took fewer steps."""
    with pytest.raises(ZeroDivisionError), given(record(6)):
        raise ZeroDivisionError


def test_a_replay_is_named_after_its_setting() -> None:
    """And knows it."""
    setting, recording = parse_spec("sere"), record(6)
    way = Way("sere", nullcontext, setting)
    assert way.replayed(nullcontext, recording) == Way("replay sere", nullcontext, setting, recording)
