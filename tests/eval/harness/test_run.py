"""Why a whole run of lm-eval re-routed nothing."""

from __future__ import annotations

from typing import Any

from sere.eval.harness.run import why_nothing


def record(*cases: tuple[str, list[str | None]]) -> dict[str, Any]:
    """A record of cases: each a setting, and the reasons of its kinds of requests."""
    return {
        "cases": [
            {
                "setting": setting,
                "requests": {str(kind): {"nothing_changed": one} for kind, one in enumerate(reasons)},
            }
            for setting, reasons in cases
        ]
    }


def test_every_reason_is_named_once() -> None:
    """Settings, sizes and kinds of requests may differ in why; off has no say."""
    few, alone = "14 is not below what these batches read", "steps had one row"
    found = why_nothing(record(("off", [None]), ("sere", [few]), ("topk", [alone, few]), ("sere", [few])))
    assert found == f"{few}; {alone}"


def test_one_that_re_routed_is_enough() -> None:
    """And without settings beside off there is nothing to say."""
    assert why_nothing(record(("off", [None]), ("sere", ["why"]), ("topk", [None]))) is None
    assert why_nothing(record(("off", ["why"]))) is None
