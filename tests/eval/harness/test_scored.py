"""Tasks on which no setting could show a loss are refused before anything is run."""

from __future__ import annotations

import pytest

from sere.errors import ConfigError
from sere.eval.harness.scored import check_kinds

GENERATING = {"gsm8k": "generate_until"}
SCORED = {"piqa": "multiple_choice"}


@pytest.mark.parametrize("kind", ["multiple_choice", "loglikelihood", "loglikelihood_rolling"])
def test_log_likelihoods_in_prefill_are_refused(kind: str) -> None:
    """The text names the tasks and offers decode steps."""
    with pytest.raises(ConfigError, match=r"--tasks piqa: .* prefill.* give --phases decode"):
        check_kinds(GENERATING | {"piqa": kind}, phases="prefill", changes=True)


def test_decode_steps_need_something_to_score() -> None:
    """Tasks that generate are decoded anyway."""
    with pytest.raises(ConfigError, match="gsm8k generates text, which is decoded anyway; leave it out"):
        check_kinds(GENERATING, phases="decode", changes=True)


@pytest.mark.parametrize(
    ("kinds", "phases", "changes"),
    [(GENERATING, "prefill", True), (SCORED, "decode", True), (GENERATING | SCORED, "decode", True),
     (SCORED, "prefill", False)],
)  # fmt: skip
def test_what_can_be_seen_is_run(kinds: dict[str, str], phases: str, changes: bool) -> None:
    """Off alone may be scored in prefill."""
    check_kinds(kinds, phases=phases, changes=changes)
