"""What ``sere lm-eval`` prints for people."""

from __future__ import annotations

from sere.cli.lm_eval_tables import render
from tests.support.records import lm_eval


def test_a_difference_has_a_unit_and_a_direction() -> None:
    """Where lm-eval's value is a perplexity, of which more is worse, and the difference is not."""
    lines = render(lm_eval()).splitlines()
    (row,) = (line for line in lines if "8.6000" in line)
    assert "-0.0400" in row
    assert lines[-1] == "word_perplexity, vs off: log-likelihood per word; below 0 is worse"
    assert not any(line.startswith("exact_match") for line in lines)


def test_without_a_difference_nothing_is_said_of_it() -> None:
    """Off alone, or a setting that re-routed nothing."""
    record = lm_eval()
    record["cases"] = record["cases"][:1]
    assert "log-likelihood" not in render(record)


def test_scoring_in_decode_steps_says_that_experts_count_further_rows() -> None:
    """Those that are fed once more to fill steps; there are none where nothing is scored so."""
    record = lm_eval()
    note = "experts also counts rows without a score, which keep the last steps full"
    assert note in render(record)
    record["plan"]["phases"] = "prefill"
    assert note not in render(record)
