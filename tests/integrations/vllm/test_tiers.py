"""What one request may ask for: what is accepted and refused."""

from __future__ import annotations

from typing import Any

import pytest

from sere.errors import ConfigError
from sere.integrations.vllm.tiers import NOTHING, PROTECTED, Asked, parse_request

TIERS = ("safe", "balanced", "fast")


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (None, NOTHING), ("off", Asked(PROTECTED)), (3, Asked(3)), ({"select_top_k": 8}, Asked(8)),
        ('{"select_top_k": 8}', Asked(8)), ("4", Asked(4)), (10**12, Asked(PROTECTED)),
        ("safe", Asked(tier="safe")), ({"tier": "fast"}, Asked(tier="fast")),
        ('{"tier": "fast"}', Asked(tier="fast")), ({"tier": "off"}, Asked(PROTECTED)),
        ({"tier": "safe", "select_top_k": 2}, Asked(2, "safe")),
    ],
)  # fmt: skip
def test_requests(value: Any, asked: Asked) -> None:
    """A request asks for "off", a tier, S, or a mapping with both, which may be JSON text."""
    assert parse_request({"sere": value, "other": 1}, TIERS) == asked


@pytest.mark.parametrize("value", ["of", "", 0, -1, True, 1.5, [1], {}, {"select_top_k": "1"}, "[1]", "null"])
def test_wrong_requests(value: Any) -> None:
    """What a request cannot be is refused with what it can be."""
    with pytest.raises(ConfigError, match=r'sere: expected "off", a tier, or \{"select_top_k": S\}'):
        parse_request({"sere": value}, TIERS)


@pytest.mark.parametrize("name", ["saef", 3, ["safe"], None, {}], ids=str)
def test_unknown_tiers(name: Any) -> None:
    """A tier that the table does not have is refused with those that it has."""
    with pytest.raises(ConfigError, match=r'unknown tier .*"off" or one of balanced, fast, safe'):
        parse_request({"sere": {"tier": name}}, TIERS)
    with pytest.raises(ConfigError, match='can ask for "off" here, because the table has no tiers'):
        parse_request({"sere": {"tier": name}}, ())


def test_off_with_slots() -> None:
    """A request that keeps its experts has no S."""
    with pytest.raises(ConfigError, match='a request that is "off" has no select_top_k'):
        parse_request({"sere": {"tier": "off", "select_top_k": 2}}, TIERS)


def test_wrong_key_of_a_request() -> None:
    """A request cannot set anything but tier and S; the nearest name is given."""
    with pytest.raises(ConfigError, match=r"a request cannot set 'select_topk'; did you mean 'select_top_k'"):
        parse_request({"sere": {"select_topk": 2}}, TIERS)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "value",
    [DEEP, "9" * 5000, -(10**5000), "x" * 10_000, {"select_top_k": "9" * 5000}, {"tier": "x" * 10_000}],
    ids=["deep", "digits", "integer", "text", "nested", "tier"],
)
def test_hostile_requests(value: Any) -> None:
    """A value too deep, too long or with too many digits is refused like any other, in a short text."""
    with pytest.raises(ConfigError, match="sere: ") as refused:
        parse_request({"sere": value}, TIERS)
    assert len(str(refused.value)) < 500
