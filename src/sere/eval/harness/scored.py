"""Which of lm-eval's requests are decoded and which are prefill, and the words for the latter."""

from __future__ import annotations

from collections.abc import Mapping

from sere.errors import ConfigError, name_some

PREFILL, DECODE = "prefill", "decode"
PHASES = (PREFILL, DECODE)
"""Where log-likelihoods are taken."""

# lm-eval's kinds of tasks whose requests are log-likelihoods.
_SCORED = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")

NOTHING = "sere: %s: %s"
"""The warning at the end of requests in which nothing was re-routed: the setting, and why."""


def nothing_in_prefill(kind: str) -> str:
    """Return why requests of a kind re-routed nothing."""
    return (
        f"nothing was re-routed: {kind} requests are scored in prefill, which is always exact, so their "
        "results are those of the unmodified model and say nothing about re-routing; score them in decode "
        "steps (phases decode)"
    )


def check_kinds(kinds: Mapping[str, str], *, phases: str, changes: bool) -> None:
    """Refuse, before long work, tasks on which no setting could show a loss.

    Args:
        kinds: By task, lm-eval's ``output_type``.
        phases: One of `PHASES`.
        changes: Whether any setting changes the routing.

    Raises:
        ConfigError: There is such a task; the text says how to score it.
    """
    scored = [name for name, kind in kinds.items() if kind in _SCORED]
    if phases == DECODE and not scored:
        raise ConfigError(
            f"--phases decode: only for log-likelihood tasks, and {name_some(list(kinds))} "
            f"{'generates' if len(kinds) == 1 else 'generate'} text, which is decoded anyway; leave it out"
        )
    if scored and phases == PREFILL and changes:
        raise ConfigError(
            f"--tasks {name_some(scored, separator=' ')}: log-likelihood tasks are scored in prefill, where "
            "nothing is re-routed, so every setting would have the result of off and the difference would "
            "say nothing; give --phases decode to score them in decode steps, or choose tasks that generate "
            "text"
        )
