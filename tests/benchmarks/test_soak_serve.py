"""How a soak of ``vllm serve`` is judged; the soak itself is run by hand."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from load_requests import Load
from soak_serve import (
    ASKED,
    HAMMER,
    KINDS,
    LEAST_RATIO,
    NOBODY,
    SCRAPER,
    _judged,
    ask_as,
    growth,
    interval,
    neighbors,
)


def stretches(with_scraper: list[float]) -> list[tuple[str, float]]:
    """Return stretches as a soak has them, with these rates beside 100 requests a second without readers."""
    found, rates = [], iter(with_scraper)
    for kind in KINDS * (len(with_scraper) // 2):
        found.append((kind, {NOBODY: 100.0, HAMMER: 50.0}.get(kind) or next(rates)))
    return found


def test_each_stretch_with_the_scraper_has_a_neighbor_without() -> None:
    """No stretch is in two pairs, and that with the tight loop is in none."""
    pairs = neighbors(stretches([90.0, 91.0, 92.0, 93.0]))
    assert [kind for pair in pairs for kind, _ in pair] == [NOBODY, SCRAPER] * 4
    assert [scraper[1] for _, scraper in pairs] == [90.0, 91.0, 92.0, 93.0]


@pytest.mark.parametrize(
    ("rates", "shown", "wrong"),
    [([99.5, 100.5] * 4, True, 0), ([90.0, 108.0] * 4, False, 0), ([95.0, 97.0] * 4, False, 1)],
    ids=["as fast", "cannot tell", "slower"],
)
def test_the_scraper_is_judged_by_an_interval(rates: list[float], shown: bool, wrong: int) -> None:
    """Only what is surely below 98 % is wrong, and only what is surely above it is shown."""
    load = Load(None, None, reroutes=True)  # type: ignore[arg-type]
    record = _judged(load, stretches(rates))
    assert (record["scraper"]["shown"], len(record["wrong"])) == (shown, wrong)
    assert (record["scraper"]["pairs"], record["requests_per_s"][HAMMER]) == (8, 50.0)
    least, most = record["scraper"]["interval"]
    assert least <= record["scraper"]["ratio"] <= most
    assert shown == (least >= LEAST_RATIO)


@pytest.mark.parametrize("ratios", [[], [1.0], [1.0] * 5], ids=["none", "one", "five"])
def test_nothing_is_shown_without_pairs(ratios: list[float]) -> None:
    """A soak that is too short for six pairs says nothing of the scraper."""
    least, most = interval(ratios)
    assert least < LEAST_RATIO < most


@pytest.mark.parametrize(("last", "wrong"), [(1019, 0), (1021, 1)])
def test_memory_of_the_last_quarter(last: int, wrong: int) -> None:
    """It is compared with the second quarter, after the first in which memory may still settle."""
    assert len(growth([500, 600, 1000, 1000, 1000, 1000, last, last])) == wrong
    assert growth([1, 2, 3]) == []


@pytest.mark.parametrize(("tokens", "wrong"), [(16, 0), (15, 1)])
@pytest.mark.parametrize("asked", ASKED)
def test_requests_ask_for_everything(asked: str, tokens: int, wrong: int) -> None:
    """Tiers, an S and "off" are asked for, and an answer that is cut short is wrong."""
    sent: list[Any] = []

    async def create(**given: Any) -> Any:
        sent.append(given["extra_body"].get("vllm_xargs"))
        return SimpleNamespace(
            usage=SimpleNamespace(completion_tokens=tokens), choices=[SimpleNamespace(text="12")]
        )

    client = SimpleNamespace(completions=SimpleNamespace(create=create))
    load = Load(None, client, reroutes=True)  # type: ignore[arg-type]
    asyncio.run(ask_as(load, asked, "add 5 7 = "))
    assert sent == [ASKED[asked].get("vllm_xargs")]
    assert (load.outcomes[asked], len(load.wrong)) == (1 - wrong, wrong)
