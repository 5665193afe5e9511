"""What our model classes take in lm-eval's own command beside lm-eval's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sere.defaults import required_table
from sere.errors import ConfigError, InputError
from sere.eval.harness.scored import PHASES
from sere.policies.spec import PolicySpec, parse_spec
from sere.table import locate_table


def check_phases(phases: str) -> None:
    """Refuse a place that log-likelihoods cannot be taken in.

    Raises:
        ConfigError: It is none of `PHASES`.
    """
    if phases not in PHASES:
        raise ConfigError(f"phases: expected one of {', '.join(PHASES)}, got {phases!r}")


def rows_of(batch_size: object) -> int:
    """Return the rows of a decode step that lm-eval's ``batch_size`` asks for.

    Raises:
        InputError: It is not a number of at least 1.
    """
    text = str(batch_size)
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"batch_size: expected a number of rows, got {batch_size!r}; what re-routing changes depends on "
            "it, so it has no automatic value"
        )
    return int(text)


def setting_of(given: Mapping[str, Any] | PolicySpec | str | None) -> tuple[PolicySpec, str | None]:
    """Return the setting that an argument names, and the table in it.

    Args:
        given: Settings by name, a routing rule as on the command line, or None for all defaults.

    Raises:
        ConfigError: It is of another kind, or a value is refused.
    """
    if given is None or isinstance(given, PolicySpec):
        return given or PolicySpec("sere", {}), None
    if isinstance(given, str):
        return parse_spec(given), None
    if not isinstance(given, Mapping):
        raise ConfigError(
            f'sere: expected settings by name, as in {{"active_experts": 24}}, or a routing rule such as '
            f'"topk:select_top_k=4", got {given!r}'
        )
    options = {name: value for name, value in given.items() if name != "table"}
    spec = PolicySpec("sere", options)
    spec.policy_class.check_options(options)
    return spec, given.get("table")


def table_file(what: str, given: str | None, model: str | None) -> Path:
    """Return the file of the table that was given, else of the model's own.

    Args:
        what: What needs it, for the error.
        given: Its path, its name on the hub, or None.
        model: The model's folder or name on the hub.

    Raises:
        ConfigError: None was given, and the model has none.
        TableError: The folder that was given holds none.
        HubError: A repository is out of reach.
    """
    return locate_table(given or required_table(what, model))
