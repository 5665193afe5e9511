"""Which releases of Transformers and PyTorch sere is tested with, and a warning about others."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from types import MappingProxyType

from sere.provenance import installed_version
from sere.warn_once import WarnOnce

warn_once = WarnOnce(logging.getLogger("sere"))

# Oldest and newest minor release that the tests ran with. `.ci/run` runs both ends of Transformers with
# PyTorch 2.13; PyTorch 2.9, 2.11 and 2.15 were run by hand.
TESTED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"transformers": ("5.17", "5.24"), "torch": ("2.9", "2.15")}
)
NAMES: Mapping[str, str] = MappingProxyType({"transformers": "Transformers", "torch": "PyTorch"})


def describe_range(package: str) -> str:
    """Return the tested releases of a package as text, such as ``"5.17 to 5.24"``.

    Args:
        package: A key of ``TESTED``.
    """
    oldest, newest = TESTED[package]
    return f"{oldest} to {newest}"


def why_outside(package: str, installed: str | None = None) -> str | None:
    """Return one sentence if a release is not in the tested range, or None if it is or is not installed.

    Args:
        package: A key of ``TESTED``.
        installed: The release; None for the installed one.
    """
    installed = installed_version(package) if installed is None else installed
    if installed is None:
        return None
    oldest, newest = map(_minor, TESTED[package])
    if oldest <= _minor(installed) <= newest:
        return None
    age = "older" if _minor(installed) < oldest else "newer"
    return (
        f"{NAMES[package]} {installed} is {age} than the releases that sere is tested with "
        f"({describe_range(package)}); check that with select_top_k equal to the model's top_k "
        "the output is the same as without sere"
    )


def warn_outside(package: str) -> None:
    """Log, once per process, that the installed release is not in the tested range.

    Args:
        package: A key of ``TESTED``.
    """
    reason = why_outside(package)
    if reason is not None:
        warn_once(package, "sere: %s", reason)


def warn_untested() -> None:
    """Log, once per process, each package whose installed release is not in the tested range."""
    for package in TESTED:
        warn_outside(package)


def _minor(release: str) -> tuple[int, int]:
    """The first two numbers of a release, whatever follows them (``2.13.0+cpu``, ``5.25.0.dev0``)."""
    found = re.match(r"(\d+)(?:\.(\d+))?", release)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)
