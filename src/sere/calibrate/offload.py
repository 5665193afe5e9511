"""Weights that accelerate keeps on disk or in host memory and loads for each call of a module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

from sere.errors import MissingDependency, UnsupportedModel
from sere.structure import ExpertsLayer


def is_offloaded(module: nn.Module) -> bool:
    """Whether some weights of a module have no values at present."""
    return any(parameter.is_meta for parameter in module.parameters())


def refuse_without_weights(model: nn.Module, layers: Sequence[ExpertsLayer], *, runs: bool) -> None:
    """Refuse a model with weights that have no values and that nothing will load.

    Some operations of PyTorch raise no error for such weights and return arbitrary numbers.

    Args:
        model: The model.
        layers: Its experts modules.
        runs: Whether the model is to run; else the experts' own weights are enough.

    Raises:
        UnsupportedModel: There is such a weight, as in a model on the meta device; the text names it.
    """
    experts = {id(parameter) for layer in layers for parameter in layer.module.parameters()}
    parts = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if (
            parameter.is_meta
            and (runs or id(parameter) in experts)
            and not any(_brings_weights(parts[owner]) for owner in _owners(name))
        ):
            raise _no_weights(name)


@contextmanager
def materialized(layer: ExpertsLayer) -> Iterator[None]:
    """Give a layer's offloaded experts their values while the block runs.

    Raises:
        UnsupportedModel: A weight stays without values; the text names it.
        MissingDependency: accelerate is not installed.
    """
    with ExitStack() as stack:
        if is_offloaded(layer.module):
            try:
                from accelerate.utils import align_module_device
            except ImportError as error:
                raise MissingDependency(
                    "offloaded weights need accelerate: pip install accelerate"
                ) from error
            for part in layer.module.modules():
                stack.enter_context(align_module_device(part))
        for name, parameter in layer.module.named_parameters():
            if parameter.is_meta:
                raise _no_weights(f"{layer.name}.{name}")
        yield


def _brings_weights(module: nn.Module) -> bool:
    """Whether a hook of accelerate gives the module, or modules within it, their weights for each call."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    return any(getattr(one, "offload", False) for one in hooks)


def _owners(name: str) -> Iterator[str]:
    """Yield the names of the modules around a parameter, innermost first; the model's own is empty."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _no_weights(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{name}: has no values (meta device), and nothing will load them; load the model's weights, or give "
        "the checkpoint's path instead of the model, with low_memory=True if it does not fit into memory"
    )
