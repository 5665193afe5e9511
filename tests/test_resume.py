"""How one run's record differs from another's, in words."""

from __future__ import annotations

from typing import Any

import pytest

from sere.resume import differences


@pytest.mark.parametrize(
    ("before", "now", "phrases"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2, "b": True}, ["a was 1, now 2", "b was not given, now True"]),
        ({"versions": {"torch": "2.13"}}, {"versions": {"torch": "2.15"}}, ["torch was 2.13, now 2.15"]),
        ({"cka": {"window": 4}}, {"cka": {}}, ["cka.window was 4, now not given"]),
        ({"sizes": [1, 8]}, {"sizes": []}, ["sizes was 1 8, now empty"]),
        ({"table": None}, {"table": {"metric": "cka"}}, ["metric was not given, now cka"]),
        ({"plan": {"digest": "f" * 64}}, {"plan": {"digest": "e" * 64}}, ["the texts differ"]),
    ],
)
def test_differences_are_named(before: dict[str, Any], now: dict[str, Any], phrases: list[str]) -> None:
    """Each value that differs with both values; digests, which tell a reader nothing, by words alone."""
    assert differences(before, now, {"plan.digest": "the texts differ"}) == phrases
