"""Act on a module once it is imported, without importing it.

vLLM may load its plug-ins before, while or after a module of its own is imported, so there are three ways:
a module that is there is acted on at once; one that comes later, right after its loader has executed it; and
one that is being imported at this moment, whose loader is running already, when the next import begins after
it. Python has no callback for the last case; of vLLM's releases from 0.20 to 0.33 none loads plug-ins while
it imports a module that this plug-in waits for, only other programs can.
"""

from __future__ import annotations

import functools
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Act = Callable[[ModuleType], None]


def after_import(name: str, act: Act) -> None:
    """Call ``act`` with a module: now if it has been imported, else after its import.

    Importing it here would cost seconds, in processes that need none of it, and could close a cycle.

    Args:
        name: The module's full name.
        act: May be called more than once.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.waiting[name] = act
    module = sys.modules.get(name)
    if module is not None and not _is_importing(module):
        act(module)
    elif module is not None:
        _FINDER.importing[name] = act


class _Finder(importlib.abc.MetaPathFinder):
    """Finds no module itself; it sees every import of a new module begin.

    Attributes:
        waiting: What to do after the import of a module.
        importing: The same for modules whose import was under way when it was asked for.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, Act] = {}
        self.importing: dict[str, Act] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        self._act_on_imported()
        act = self.waiting.get(fullname)
        if act is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if finder is self or find is None else find(fullname, path, target)
            if spec is not None:
                _act_after_loading(spec, act)
                return spec
        return None

    def _act_on_imported(self) -> None:
        for name in list(self.importing):
            module = sys.modules.get(name)
            if module is None:
                # Its import has failed; another one would be seen from its beginning.
                self.importing.pop(name, None)
            elif not _is_importing(module) and (act := self.importing.pop(name, None)) is not None:
                act(module)


def _is_importing(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


def _act_after_loading(spec: ModuleSpec, act: Act) -> None:
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
