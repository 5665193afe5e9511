"""``sere list``: every routing rule with its options, and every metric."""

from __future__ import annotations

import pytest

from sere.policies.spec import POLICIES, parse_spec
from sere.similarity import METRICS
from tests.support.commands import run_json, run_text


@pytest.mark.parametrize("name", POLICIES)
def test_every_rule_is_listed_with_its_options(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Name, what it does, and each option that ``--setting`` takes; required ones are marked."""
    (found,) = [one for one in run_json(capsys, "list", "policies")["policies"] if one["name"] == name]
    given = parse_spec(f"{name}:{POLICIES[name].example}".rstrip(":")).options
    assert {option["name"] for option in found["options"] if option["required"]} <= set(given)
    assert set(given) <= {option["name"] for option in found["options"]}
    assert found["summary"].endswith(".")


def test_the_list_is_for_people_too(capsys: pytest.CaptureFixture[str]) -> None:
    """One paragraph per rule on stdout."""
    out, err = run_text(capsys, "list", "policies")
    assert [part.splitlines()[0] for part in out.split("\n\n")] == list(POLICIES)
    assert "    select_top_k=N (required)" in out
    assert err == ""


def test_every_metric_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with a summary, as JSON and for people."""
    found = run_json(capsys, "list", "metrics")["metrics"]
    assert [metric["name"] for metric in found] == list(METRICS)
    assert all(metric["summary"] for metric in found)
    out, _ = run_text(capsys, "list", "metrics")
    assert [line.split()[0] for line in out.splitlines()[2:]] == list(METRICS)
