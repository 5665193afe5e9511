"""Describe how an interrupted run differs from the one that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sere.errors import name_some

# Parts of a record whose names tell the reader of a message nothing.
_PARTS = ("plan", "versions", "model", "table", "chosen")
_ABSENT = object()


def differences(before: Mapping[str, Any], now: Mapping[str, Any], in_words: Mapping[str, str]) -> list[str]:
    """Return one phrase for each value that differs, with both values; empty if none does.

    Args:
        before: The record of the run that was interrupted; JSON-ready, nested by string keys.
        now: The record of the run that is asked for.
        in_words: Phrases for values that tell a reader nothing (digests), by their dotted path,
            e.g. ``"plan.questions_digest"``.
    """
    return list(dict.fromkeys(_phrases(before, now, in_words, ())))


def _phrases(
    before: Mapping[str, Any], now: Mapping[str, Any], in_words: Mapping[str, str], path: tuple[str, ...]
) -> Iterator[str]:
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
        here = (*path, name)
        dotted = ".".join(here)
        if old == new:
            continue
        if dotted in in_words:
            yield in_words[dotted]
        elif isinstance(old, Mapping) or isinstance(new, Mapping):
            yield from _phrases(_mapping(old), _mapping(new), in_words, here)
        else:
            shown = ".".join(here[1:] if len(here) > 1 and here[0] in _PARTS else here)
            yield f"{shown} was {_value(old)}, now {_value(new)}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _value(value: Any) -> str:
    if value is _ABSENT or value is None:
        return "not given"
    if isinstance(value, list):
        return name_some(value, separator=" ") or "empty"
    return str(value)
