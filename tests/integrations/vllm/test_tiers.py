"""What one request may ask for: what is accepted and refused."""

from __future__ import annotations

from typing import Any

import pytest

from sere.errors import ConfigError
from sere.integrations.vllm.tiers import NOTHING, OFF, PROTECTED, Allowed, Asked, parse_request

ALL = Allowed(frozenset({"safe", "balanced", "fast", OFF}))


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
    assert parse_request({"sere": value, "other": 1}, ALL) == asked


@pytest.mark.parametrize("value", ["of", "", 0, -1, True, 1.5, [1], {}, {"select_top_k": "1"}, "[1]", "null"])
def test_wrong_requests(value: Any) -> None:
    """What a request cannot be is refused with what it can be."""
    with pytest.raises(ConfigError, match=r'sere: expected "off", a tier, or \{"select_top_k": S\}'):
        parse_request({"sere": value}, ALL)


@pytest.mark.parametrize("name", ["saef", 3, ["safe"], None, {}], ids=str)
def test_unknown_tiers(name: Any) -> None:
    """A tier that the table does not have is refused with those that it has."""
    with pytest.raises(ConfigError, match=r'unknown tier .*"off" or one of balanced, fast, safe'):
        parse_request({"sere": {"tier": name}}, ALL)
    with pytest.raises(ConfigError, match='can ask for "off" here, because the table has no tiers'):
        parse_request({"sere": {"tier": name}}, Allowed(frozenset({OFF})))


def test_off_with_slots() -> None:
    """A request that keeps its experts has no S."""
    with pytest.raises(ConfigError, match='a request that is "off" has no select_top_k'):
        parse_request({"sere": {"tier": "off", "select_top_k": 2}}, ALL)


def test_wrong_key_of_a_request() -> None:
    """A request cannot set anything but tier and S; the nearest name is given."""
    with pytest.raises(ConfigError, match=r"a request cannot set 'select_topk'; did you mean 'select_top_k'"):
        parse_request({"sere": {"select_topk": 2}}, ALL)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "value",
    [DEEP, "9" * 5000, -(10**5000), "x" * 10_000, {"select_top_k": "9" * 5000}, {"tier": "x" * 10_000}],
    ids=["deep", "digits", "integer", "text", "nested", "tier"],
)
def test_hostile_requests(value: Any) -> None:
    """A value too deep, too long or with too many digits is refused like any other, in a short text."""
    with pytest.raises(ConfigError, match="sere: ") as refused:
        parse_request({"sere": value}, ALL)
    assert len(str(refused.value)) < 500


SAFE = Allowed.of(["safe"], ())


@pytest.mark.parametrize(
    ("allowed", "value"),
    [
        (SAFE, "safe"),
        (Allowed.of(["safe"], (2, 4)), 2),
        (Allowed.of(["safe"], (2, 4)), {"tier": "safe", "select_top_k": 4}),
        (Allowed.of([], (1, 1)), "1"),
        (Allowed.of([OFF], ()), "off"),
    ],
    ids=["tier", "smallest", "largest", "text", "off"],
)
def test_what_is_allowed_passes(allowed: Allowed, value: Any) -> None:
    """Within what the operator allows, a request has what it asks for."""
    assert parse_request({"sere": value}, allowed) != NOTHING


@pytest.mark.parametrize(
    ("allowed", "value", "choices"),
    [
        (SAFE, "off", "a request can ask for one of safe here"),
        (SAFE, {"tier": "off"}, "a request can ask for one of safe here"),
        (SAFE, 10**6, "a request can ask for one of safe here"),
        (SAFE, {"tier": "safe", "select_top_k": 8}, "a request can ask for one of safe here"),
        (Allowed.of(["safe"], (2, 4)), 1, "one of safe or a select_top_k from 2 to 4"),
        (Allowed.of(["safe"], (2, 4)), 5, "one of safe or a select_top_k from 2 to 4"),
        (Allowed.of([], (2, 4)), "off", "a request can ask for a select_top_k from 2 to 4 here"),
        (Allowed.of([], ()), "off", "this engine lets no request set anything for itself; leave it out"),
        (Allowed.of([], ()), 1, "this engine lets no request set anything for itself; leave it out"),
    ],
    ids=["off", "off as a tier", "large S", "S beside a tier", "too small", "too large", "S only", "nothing",
         "nothing, S"],
)  # fmt: skip
def test_what_is_not_allowed_is_refused(allowed: Allowed, value: Any, choices: str) -> None:
    """What the operator does not allow is refused with what is; a large S does not stand in for "off"."""
    with pytest.raises(ConfigError, match=choices):
        parse_request({"sere": value}, allowed)


@pytest.mark.parametrize(
    ("allowed", "form"),
    [
        (ALL, '"vllm_xargs": {"sere": "off"}'),
        (SAFE, '"vllm_xargs": {"sere": "safe"}'),
        (Allowed.of([], (2, 4)), '"vllm_xargs": {"sere": 2}'),
    ],
    ids=["off", "tier", "S"],
)
def test_the_form_that_http_takes(allowed: Allowed, form: str) -> None:
    """Whoever asks over HTTP reads how such a value is sent there, with one that is allowed."""
    with pytest.raises(ConfigError) as refused:
        parse_request({"sere": "nonsense"}, allowed)
    assert str(refused.value).endswith(f"over HTTP this is {form}")
