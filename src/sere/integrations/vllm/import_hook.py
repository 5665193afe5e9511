"""Act on a module once it is imported, without importing it."""

from __future__ import annotations

import functools
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def after_import(name: str, act: Callable[[ModuleType], None]) -> None:
    """Call ``act`` with a module: now if it has been imported, else right after its import.

    vLLM loads its plug-ins at moments of its own, and so may a program before any engine's modules are
    there. Importing them then would cost seconds, in processes that need none of them, and could close a
    cycle.

    Args:
        name: The module's full name.
        act: May be called more than once.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.waiting[name] = act
    module = sys.modules.get(name)
    if module is None:
        return
    if getattr(module.__spec__, "_initializing", False):
        # It is being imported right now, by whoever asked for the plug-ins; its loader has been chosen.
        _act_when_done(module.__spec__, act)
        return
    act(module)


def _act_when_done(spec: Any, act: Callable[[ModuleType], None]) -> None:
    """Act when a module's import ends: its spec is then told that it is no longer being imported."""

    class Watched(type(spec)):  # type: ignore[misc]
        def __setattr__(self, key: str, value: Any) -> None:
            super().__setattr__(key, value)
            if key == "_initializing" and not value and self.name in sys.modules:
                act(sys.modules[self.name])

    spec.__class__ = Watched


class _Finder(importlib.abc.MetaPathFinder):
    """Finds no module itself; it lets the others find those that are waited for, and follows their import."""

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        act = self.waiting.get(fullname)
        if act is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if finder is self or find is None else find(fullname, path, target)
            if spec is not None:
                _follow(spec, act)
                return spec
        return None


def _follow(spec: ModuleSpec, act: Callable[[ModuleType], None]) -> None:
    """Let a module's loader act after it has executed the module."""
    loader: Any = spec.loader
    execute = getattr(loader, "exec_module", None)
    if execute is None:
        return

    @functools.wraps(execute)
    def exec_module(module: ModuleType) -> None:
        execute(module)
        if module.__name__ == spec.name:
            act(module)

    loader.exec_module = exec_module


_FINDER = _Finder()
