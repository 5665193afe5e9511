"""Slots that are given up: only in steps in which that saves time, unless the user asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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
        return self.given_up

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
    """τ of the settings themselves holds in each step."""
    running = Recorded(table, CPUUnquantizedExperts(), min_gain=0.05, active_experts=8)
    before = running.alone()
    assert min(before) > 0
    assert running.beside() == before
