"""Change the settings of all workers of an engine, or of none: ask, compare, write.

It is a generator, so that callers who wait and callers who await follow the same steps: it yields what to ask
all workers and is sent their answers.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from sere.errors import ConcurrentChange, ConfigError, EngineError
from sere.integrations.vllm.engine_stats import disagreement
from sere.integrations.vllm.methods import COMMIT, PROPOSE, STOP, WITHDRAW

Answers = Sequence[Mapping[str, Any]]
Call = tuple[str, Any]
_UNCHANGED = "nothing has changed on any rank"


def agree(changes: Mapping[str, Any]) -> Generator[Call, Answers, dict[str, Any]]:
    """Change settings in all workers.

    Args:
        changes: As for `configure`.

    Yields:
        The arguments of the next call of all workers.

    Returns:
        The new settings.

    Raises:
        ConfigError: The change is refused; nothing has changed.
        ConcurrentChange: Another change came in between; that one holds.
        EngineError: A worker failed or disagrees. Nothing has changed, or, where a worker failed while it
            wrote, re-routing is off in all of them.
    """
    proposed = yield PROPOSE, dict(changes)
    try:
        common = _common(proposed)
    except (ConfigError, EngineError):
        yield WITHDRAW, None
        raise
    written = yield COMMIT, common
    if all("stale" in answer for answer in written):
        raise ConcurrentChange(f"another change came in between: {_UNCHANGED} by this one; send it again")
    wrong = [answer for answer in written if {"stale", "error", "failure"} & set(answer)]
    if wrong:
        yield STOP, None
        raise EngineError(
            f"{_failure(wrong) or 'one rank had nothing to write'} while the change was written: "
            f"{len(written) - len(wrong)} of {len(written)} ranks have the new settings, so re-routing is "
            "now off in all of them; restart the engine"
        )
    return dict(written[0])


def _common(answers: Answers) -> str:
    """Return the fingerprint that all ranks have in common.

    Raises:
        ConfigError: The change was refused.
        EngineError: A worker failed, or the ranks would hold different settings.
    """
    for answer in answers:
        if "error" in answer:
            raise ConfigError(answer["error"])
    if (failure := _failure(answers)) is not None:
        raise EngineError(f"{failure} while the change was prepared; {_UNCHANGED}")
    if (difference := disagreement([answer["fingerprint"] for answer in answers])) is not None:
        raise EngineError(f"{difference}; {_UNCHANGED}; restart the engine, with one sere on every machine")
    return str(answers[0]["fingerprint"]["common"])


def _failure(answers: Answers) -> str | None:
    return next((found for answer in answers for found in _texts(answer)), None)


def _texts(answer: Mapping[str, Any]) -> list[str]:
    return [str(answer[kind]) for kind in ("failure", "error") if kind in answer]
