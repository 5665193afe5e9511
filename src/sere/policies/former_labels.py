"""Labels of older records in today's spelling, where what they name is still a rule."""

from __future__ import annotations

from sere.errors import ConfigError
from sere.policies.spec import parse_spec

# What older records call options: mostly the symbols of the method.
_NAMES = {"S": "select_top_k", "rho": "threshold", "scale": "use_scale", "drop": "drop_share"}
# Such records filled the primary set, if told to, by the sum of weights: a rule of its own, under this name.
_FILLED = "min_active"


def normalize_label(label: str) -> str:
    """Return a record's label in today's spelling: ``sere:S=1`` becomes ``sere:paper,select_top_k=1``.

    Records with the symbols of the method come from rules that filled no primary set and used factors only
    when told to. ``min_active`` keeps its name: today's ``active_experts`` chooses other experts.

    Args:
        label: A label; one that is not a setting is returned as it is.
    """
    name, _, text = label.partition(":")
    given = [part.partition("=") for part in text.split(",")]
    try:
        if not any(option in _NAMES for option, _, _ in given):
            return parse_spec(label).label
        return _former(name, {_NAMES.get(option, option): value for option, _, value in given})
    except ConfigError:
        return label


def _former(name: str, options: dict[str, str]) -> str:
    """Return the label of options that an older record has, with the defaults of that time."""
    filled = options.pop(_FILLED, "0")
    if filled != "0":
        written = _written(name, options)
        first, comma, rest = written.partition(",use_scale")
        return f"{first},{_FILLED}={filled}{comma}{rest}"
    if name == "random":
        return _written(name, options | {"active_experts": "0"})
    if name != "sere":
        return _written(name, options)
    if options.get("use_scale", "false") == "false" and options.get("targets", "primary") == "primary":
        # These two are what the preset says.
        open_ones = {key: value for key, value in options.items() if key not in ("use_scale", "targets")}
        return _written("sere", open_ones, "paper")
    if options.get("use_scale") == "true":
        # Its table had factors, which are used today unless one says no.
        del options["use_scale"]
    else:
        options["use_scale"] = "false"
    return _written("sere", {"active_experts": "0"} | options)


def _written(name: str, options: dict[str, str], *presets: str) -> str:
    parts = [*presets, *(f"{option}={value}" for option, value in options.items())]
    return parse_spec(f"{name}:{','.join(parts)}").label
