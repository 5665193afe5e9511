"""The options of a rule, read from the dataclass of its settings: names, types, and which are needed."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sere.config import ActiveExperts
from sere.config.active_experts import active_experts_of_text, text_of_active_experts
from sere.policies.base import Policy

_Form = tuple[Callable[[str], Any], str, str, Callable[[Any], str]]


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a rule.

    Attributes:
        name: Its name, the field's.
        read: Reads a value from text; raises ValueError.
        expects: What a value must be, for errors: ``"an integer"``.
        form: What to write for a value in help: ``N``, ``X``, ``true|false`` or the choices.
        write: Returns a value as it would be typed; ``read`` reads it back.
        required: Whether the rule cannot do without it.
    """

    name: str
    read: Callable[[str], Any]
    expects: str
    form: str
    write: Callable[[Any], str]
    required: bool


@cache
def options_of(kind: type[Policy]) -> Mapping[str, Option]:
    """Return the options of a rule by name, in the order of its fields.

    Fields of a type that has no short text form, and those that the rule leaves to others
    (``Policy.given_elsewhere``), are not options.

    Args:
        kind: The class of the rule.
    """
    settings = kind.settings_type()
    hints = get_type_hints(settings)
    options = {}
    for one in fields(settings):
        form = None if one.name in kind.given_elsewhere else _form(hints[one.name])
        if form is not None:
            needed = one.default is MISSING and one.default_factory is MISSING
            options[one.name] = Option(one.name, *form, required=needed)
    return MappingProxyType(options)


def text_of(value: Any) -> str:
    """Return a value as it would be typed; it reads back as the same value."""
    if isinstance(value, float):
        # Fewer digits only where they read back as the same number: labels tell settings apart.
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _form(kind: Any) -> _Form | None:
    """Return how values of a type are read, what to call them, their form in help, and how to write one."""
    if kind == ActiveExperts:
        return (
            active_experts_of_text,
            "a number, a share such as 0.25, auto, or points such as 8-24/32-36",
            "N|X|auto|ROWS-N/ROWS-N",
            text_of_active_experts,
        )
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        choices = "|".join(map(str, get_args(kind)))
        return str, f"one of {choices.replace('|', ', ')}", choices, text_of
    return _FORMS.get(kind)


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError


_FORMS: Mapping[Any, _Form] = {
    int: (int, "an integer", "N", text_of),
    float: (float, "a number", "X", text_of),
    bool: (_boolean, "true or false", "true|false", text_of),
    str: (str, "a word", "WORD", text_of),
}
