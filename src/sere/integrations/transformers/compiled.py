"""Refuse a model with compiled code around its experts: such code does not see hooks that come later."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

from sere.errors import InputError


def refuse_compiled(model: nn.Module, experts: list[nn.Module]) -> None:
    """Refuse a model if a module around its experts, or the experts module itself, is compiled.

    Args:
        model: The model as the user holds it, wrappers included.
        experts: Its experts modules.

    Raises:
        InputError: The text names the module and what to do.
    """
    for name, module in _around(model, experts):
        undo = _compiled_how(module, is_experts=any(module is one for one in experts))
        if undo is not None:
            path = f"model.{name}" if name else "model"
            raise InputError(
                f"model: it is already compiled ({path}, a {type(module).__name__}), and compiled code does "
                "not call hooks that are set later; apply re-routing before compiling and switch it with "
                f"handle.enabled, or first call torch._dynamo.reset() and {undo.format(path=path)}"
            )


def _around(model: nn.Module, experts: list[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The modules with experts inside, and the experts modules, each with its name."""
    wanted = {id(one) for one in experts}
    for name, module in model.named_modules():
        if id(module) in wanted or any(id(inside) in wanted for inside in module.modules()):
            yield name, module


def _compiled_how(module: nn.Module, *, is_experts: bool) -> str | None:
    """How to undo a module's compilation, or None if it is not compiled."""
    if "_orig_mod" in module._modules:
        return "use {path}._orig_mod in its place"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "set {path}._compiled_call_impl = None"
    if "_compiled_call" in vars(module):
        # `generate` does so with a static cache on a GPU.
        return "delete {path}._compiled_call"
    # The hook before the experts runs outside their forward.
    if not is_experts:
        for name in ("forward", "_old_forward"):
            if is_compiled(vars(module).get(name)):
                return f"delete {{path}}.{name}"
        if is_compiled(type(module).forward):
            return f"take torch.compile off {type(module).__name__}.forward"
    return None


def is_compiled(function: Any) -> bool:
    """Whether a function is, or wraps, what ``torch.compile`` returned."""
    for _ in range(8):
        if getattr(function, "_torchdynamo_disable", False):
            return False
        if hasattr(function, "_torchdynamo_orig_callable"):
            return True
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__func__"):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return False
    return False
