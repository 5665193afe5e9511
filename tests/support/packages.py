"""Optional packages that are there, or not, whatever is installed."""

from __future__ import annotations

from importlib import import_module

import pytest


def pretend_packages(monkeypatch: pytest.MonkeyPatch, *, missing: tuple[str, ...] = ()) -> None:
    """Let backends find every package that they need, but for those that are missing."""

    def why_missing(package: str, install: str) -> str | None:
        return f"the package {package} is not installed; {install}" if package in missing else None

    # By module object: the name sere.reroute is the function.
    monkeypatch.setattr(import_module("sere.reroute.backends.registry"), "why_missing", why_missing)
