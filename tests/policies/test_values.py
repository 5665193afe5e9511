"""Values of settings that a rule refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sere.errors import ConfigError
from sere.policies import Budget, Drop, Lynx, Oea, Policy, Pool, Prune, RandomReroute, TopK, TopP, XShare


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TopK(0), "select_top_k: expected an integer of at least 1, got 0"),
        (lambda: Oea(True), "select_top_k: expected an integer of at least 1, got True"),
        (lambda: XShare(1.5), "budget: expected an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: Lynx(1.0), "drop_share: expected a number of at least 0 and below 1, got 1.0"),
        (lambda: RandomReroute(1, -1), "active_experts: expected an integer of at least 0, got -1"),
        (lambda: Drop(renormalize=1), "renormalize: expected true or false, got 1"),  # type: ignore[arg-type]
        (lambda: TopP(0.0), "p: expected a number above 0 and at most 1, got 0.0"),
        (lambda: TopP(0.5, "no"), "renormalize: expected true or false, got 'no'"),  # type: ignore[arg-type]
        (lambda: Budget(0), "budget: expected an integer of at least 1, got 0"),
        (lambda: Budget(1, "truncat"), "mode: got 'truncat'; did you mean 'truncate'"),  # type: ignore[arg-type]
        (lambda: Pool(0), "size: expected an integer of at least 1, got 0"),
        (lambda: Prune(True), "size: expected an integer of at least 1, got True"),
        (lambda: RandomReroute(1, seed="a"), "seed: expected an integer, got 'a'"),  # type: ignore[arg-type]
    ],
    ids=[
        "zero",
        "bool",
        "float",
        "share",
        "active experts",
        "switch",
        "p",
        "switch of topp",
        "budget",
        "mode",
        "pool",
        "prune",
        "seed",
    ],
)
def test_wrong_values_are_refused(make: Callable[[], Policy], text: str) -> None:
    """Each text gives the setting, what was expected and what came."""
    with pytest.raises(ConfigError, match=text):
        make()
