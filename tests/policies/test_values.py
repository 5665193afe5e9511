"""Values of settings that a rule refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sere.errors import ConfigError
from sere.policies import Lynx, Oea, Policy, RandomReroute, TopK, XShare


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TopK(0), "select_top_k: expected an integer of at least 1, got 0"),
        (lambda: Oea(True), "select_top_k: expected an integer of at least 1, got True"),
        (lambda: XShare(1.5), "budget: expected an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: Lynx(1.0), "drop_share: expected a number of at least 0 and below 1, got 1.0"),
        (lambda: RandomReroute(1, min_active=-1), "min_active: expected an integer of at least 0, got -1"),
        (lambda: RandomReroute(1, seed="a"), "seed: expected an integer, got 'a'"),  # type: ignore[arg-type]
    ],
    ids=["zero", "bool", "float", "share", "floor", "seed"],
)
def test_wrong_values_are_refused(make: Callable[[], Policy], text: str) -> None:
    """Each text gives the setting, what was expected and what came."""
    with pytest.raises(ConfigError, match=text):
        make()
