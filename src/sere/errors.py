"""The errors that sere raises: each says what was expected, what was found and what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from functools import cache
from importlib import import_module

MOST_NAMED = 10
"""How many items of a list an error or warning names."""


class SereError(Exception):
    """Base of every error that sere raises on purpose."""


class InputError(SereError, ValueError):
    """An argument has a wrong shape, dtype, device or value."""


class ConfigError(InputError):
    """A setting is unknown or out of range."""


class BackendUnavailable(SereError, RuntimeError):
    """A backend was named and cannot run here; the text says why."""


class TableError(SereError):
    """A similarity table is missing, damaged or invalid."""


class TableMismatch(TableError):
    """A similarity table was made for a different model."""


class HubError(SereError):
    """A repository on the hub is missing, private or out of reach, or lacks the file that was wanted."""


class UnsupportedModel(SereError):
    """The model has no experts modules that can be calibrated or re-routed; the text says why."""


class UnsupportedEngine(SereError):
    """The serving engine, its version or a feature in use cannot be combined with re-routing."""


class EngineError(SereError, RuntimeError):
    """Workers of an engine failed or hold different settings, or a replay met other steps than it has."""


class ConcurrentChange(SereError, RuntimeError):
    """Two changes of a serving engine's settings met, and this one was not made."""


class EngineFailure(SereError, RuntimeError):
    """An engine that sere started did not start, or ended; the text has the engine's own last error."""


class ServerError(SereError, RuntimeError):
    """A server that sere started exited or did not answer; the text ends with its log."""


class DataError(SereError):
    """Calibration or evaluation texts are missing, unreadable or too few."""


class OutputError(SereError, OSError):
    """A file cannot be written where it was asked for; the text names the path as it was given."""


class AlreadyApplied(SereError, RuntimeError):
    """Re-routing is already active on this model."""


class ConcurrentCalls(SereError, RuntimeError):
    """A re-routed model was called in two threads at once."""


class MissingDependency(SereError, ImportError):
    """An optional package is needed for what was asked; the text says how to install it."""


def name_some(names: Collection[object], most: int = MOST_NAMED, *, separator: str = ", ") -> str:
    """Return names for an error text: all, or the first ones and how many more there are.

    Args:
        names: In the order in which they are to be named.
        most: How many are named.
        separator: Text between two names.
    """
    first = separator.join(str(name) for _, name in zip(range(most), names, strict=False))
    return f"{first} and {len(names) - most} more" if len(names) > most else first


def how_to_install(extra: str) -> str:
    """Return what installs an optional part of sere, for an error text. sere is on no package index.

    Args:
        extra: One of the extras in ``pyproject.toml``.
    """
    return f"in a clone of sere's repository, run: pip install '.[{extra}]'"


@cache
def why_missing(package: str, install: str) -> str | None:
    """Return why an optional package cannot be used, or None if it can be imported, which is tried once.

    Args:
        package: Its name, also one with dots.
        install: What installs it.
    """
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and (package == error.name or package.startswith(f"{error.name}.")):
            return f"the package {package} is not installed; {install}"
        reason: Exception = error
    except Exception as error:  # what a broken installation raises is anything
        reason = error
    else:
        return None
    text = " ".join(str(reason).split())
    return f"the package {package} cannot be imported ({type(reason).__name__}: {text}); {install}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` followed by the valid names, for the end of an error text.

    Args:
        name: What was given.
        valid: The names that would have been accepted.
    """
    names = sorted(valid)
    by_small = {valid.lower(): valid for valid in names}
    close = get_close_matches(name.lower(), by_small, n=1, cutoff=0.5)
    hint = f"; did you mean {by_small[close[0]]!r}?" if close else ""
    return f"{hint} (valid: {name_some(names)})"
