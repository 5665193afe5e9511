"""Slots that are given up: only in steps in which that saves time, unless the user asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.flatten import Costs
from sere.flatten.costs import ROWS
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker.flat_experts import Kind
from sere.integrations.vllm.worker.start_log import log_measured
from sere.table import SimilarityTable, Tier
from tests.support.vllm.standins import CPUUnquantizedExperts, SmallEngine, change, new, prepared, step

NAMES = [f"r{i}" for i in range(6)]
COMPUTED = dict.fromkeys(NAMES, 3)


@pytest.fixture
def table(factors_table: SimilarityTable) -> SimilarityTable:
    return factors_table.with_tiers(
        {
            "balanced": Tier("balanced", 8, min_gain=0.05),
            "fast": Tier("fast", 8, {1: {"min_gain": 0.05}}),
        }
    )


class MarlinExperts:
    """An expert kernel that skips slots of id -1, by its name."""


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version that was read, whatever is installed."""
    monkeypatch.setattr(versions, "engine_version", lambda: "0.32.0")


class Recorded(SmallEngine):
    """Remembers how many slots of the first six rows each layer gave up in the last step."""

    def __init__(self, table: Any, kernel: object, **settings: Any) -> None:
        super().__init__(prepared(table, {}, torch.nn.Module, kernel=kernel, **settings))
        self.given_up: list[int] = []
        for layer in self.state.layers.values():
            layer.route = self._recording(layer.route)  # type: ignore[method-assign]
        self.prompts(*NAMES)

    def _recording(self, route: Any) -> Any:
        def recorded(ids: torch.Tensor, weights: torch.Tensor, *rest: Any) -> Any:
            found = route(ids, weights, *rest)
            self.given_up.append(0 if found is None else int((found.weights[:6] == 0).sum()))
            return found

        return recorded

    def alone(self) -> list[int]:
        """Decode six requests; return what each layer gave up."""
        self.given_up.clear()
        self.decode(*NAMES)
        return list(self.given_up)

    def beside(self, sere: Any = None, *, tokens: int = 2) -> list[int]:
        """Decode them beside the prompt of another request."""
        self.given_up.clear()
        counts = dict.fromkeys(NAMES, 1) | {"late": tokens}
        self._run(step(cached=COMPUTED, news=(new("late", 3, sere),)), counts)
        return self.given_up[: len(self.state.layers)]


def test_a_tier_gives_up_nothing_beside_a_prompt(table: SimilarityTable) -> None:
    """The prompt's rows keep their experts, so that all slots are computed in any case."""
    running = Recorded(table, CPUUnquantizedExperts())
    before = running.alone()
    assert min(before) > 0
    assert running.beside() == [0, 0]
    assert running.alone() == before


def test_a_tier_with_gains_of_its_layers(table: SimilarityTable) -> None:
    """The same where only one layer has a τ, also after a change while serving."""
    running = Recorded(table, CPUUnquantizedExperts())
    change(running.state, {"tier": "fast"})
    first, second = running.alone()
    assert (first, second > 0) == (0, True)
    assert running.beside() == [0, 0]


def test_what_the_user_asked_for_stays(table: SimilarityTable) -> None:
    """τ of the settings themselves holds in each step; the prompt's experts make some slots exact."""
    running = Recorded(table, CPUUnquantizedExperts(), min_gain=0.05, active_experts=8)
    assert min(running.alone()) > 0
    assert min(running.beside()) > 0
    fit(running, Costs((0.0,) * len(ROWS)))
    assert min(running.alone()) > 0


@pytest.mark.parametrize(
    ("ranks", "shares", "given_up"),
    [
        (1, {}, False),
        (1, {64: 0.5}, False),
        # Between 4 and 8 rows the smaller share holds.
        (1, {4: 0.5}, False),
        (1, {4: 0.5, 8: 0.5}, True),
        # Ranks that compute a layer together would have limits of their own.
        (2, {}, True),
    ],
)
def test_a_tier_gives_up_nothing_where_pairs_never_run(
    table: SimilarityTable, ranks: int, shares: dict[int, float], given_up: bool
) -> None:
    """Where no number of pairs was faster at a step's number of rows, it computes all slots."""
    running = Recorded(table, CPUUnquantizedExperts(), parallel={"tensor_parallel_size": ranks})
    before = running.alone()
    assert min(before) > 0
    fit(running, Costs(tuple(shares.get(rows, 0.0) for rows in ROWS)))
    assert running.alone() == (before if given_up else [0, 0])


def test_a_tier_gives_up_nothing_below_the_rows_where_slots_are_skipped(factors_table: Any) -> None:
    """Where the expert kernel skips slots in large steps only, small ones compute all."""
    table = factors_table.with_tiers({"balanced": Tier("balanced", 4, min_gain=0.05)})
    running = Recorded(table, MarlinExperts(), cap=True, moe={"ep_size": 2, "dp_size": 1})
    assert running.state.skips_from == 9
    assert running.alone() == [0, 0]
    others = [f"more{i}" for i in range(3)]
    running.prompts(*others)
    running.given_up.clear()
    running.decode(*NAMES, *others)
    assert min(running.given_up) > 0


def test_the_log_says_where_a_tier_gives_up_nothing(
    table: SimilarityTable, factors_table: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """By the rows of steps, once what pairs cost is measured; nothing where the tiers have no τ."""
    caplog.set_level("INFO", logger="vllm.sere")
    for one, lines in ((table, 1), (factors_table.with_tiers({"fast": Tier("fast", 8)}), 0)):
        running = Recorded(one, CPUUnquantizedExperts())
        fit(running, Costs((0.0, 0.0, 0.0, 0.5, 0.5, 0.5)))
        caplog.clear()
        log_measured(running.state)
        assert caplog.messages == lines * [
            "sere: least gains of the table's tiers are left out of steps of 1, 4, 8 rows: pairs are never "
            "faster there, so that all slots are computed"
        ]


def test_all_kinds_of_layers_must_agree(table: SimilarityTable) -> None:
    """While one kind computes pairs, slots are given up for its sake."""
    running = Recorded(table, CPUUnquantizedExperts())
    before = running.alone()
    fit(running, Costs((0.0,) * len(ROWS)))
    assert running.alone() == [0, 0]
    fit(running, Costs((0.5,) * len(ROWS)), hidden_size=16)
    assert running.alone() == before


def fit(running: SmallEngine, costs: Costs, hidden_size: int = 8) -> None:
    """Let a kind of layer have been measured."""
    kind = Kind("CPUUnquantizedExperts", 16, 4, torch.float32, hidden_size, (1,), torch.float32)
    running.state.flat.add(kind, costs)
