"""Look inside wrappers of a model or its experts: adapters, parallelism, offloading, other modules."""

from __future__ import annotations

import inspect
from itertools import takewhile

import torch
from torch import nn

from sere.errors import UnsupportedModel

MERGE = "merge the adapter first (model = model.merge_and_unload())"


# What adapters and torch.compile call the module that they wrap.
_INNER = ("base_layer", "original_module", "_orig_mod")


def inner_model(model: nn.Module) -> nn.Module:
    """Return the Transformers model inside wrappers.

    Args:
        model: The model, or a module that holds one: a PEFT model, ``DataParallel``, the user's own module.

    Returns:
        The model inside; ``model`` itself if it is one, or holds none or several.
    """
    if _is_library_model(model):
        return model
    found: list[nn.Module] = []
    waiting = list(model.children())
    while waiting:
        module = waiting.pop()
        if _is_library_model(module):
            found.append(module)
        else:
            waiting.extend(module.children())
    return found[0] if len(found) == 1 else model


def plain_name(name: str) -> str:
    """Return a module's name as it is without an adapter or a compiler around the module: ``….experts``.

    Args:
        name: Such as ``….experts.base_layer.base_layer``.
    """
    parts = name.split(".")
    while parts[-1] in _INNER:
        parts.pop()
    return ".".join(parts)


def wraps(module: nn.Module) -> bool:
    """Whether a module is an adapter's or a compiler's, around one that is called with the same arguments."""
    return any(isinstance(module._modules.get(name), nn.Module) for name in _INNER)


def adapts(module: nn.Module) -> bool:
    """Whether a module is an adapter's, which changes what the module within computes."""
    return wraps(module) and "_orig_mod" not in module._modules


def refuse_copies(name: str, module: nn.Module) -> None:
    """Refuse experts if an adapter holds a second, trained copy of them.

    Raises:
        UnsupportedModel: The text says to merge the adapter.
    """
    if ".modules_to_save." in f".{name}.":
        raise UnsupportedModel(
            f"{name} ({type(module).__name__}): an adapter holds trained copies of the experts beside the "
            f"model's own, so that one layer has two; {MERGE}"
        )


def callers(model: nn.Module, names: list[str]) -> list[nn.Module]:
    """Return the modules around all layers that are called with tokens or embeddings, the outermost first.

    The innermost of them is the decoder, which is called in every step, whoever calls the model.

    Args:
        model: The model.
        names: Names of the layers' experts modules.

    Returns:
        At least one module: the model itself if none takes tokens by a known name.
    """
    # The last part is the experts module itself.
    paths = [name.split(".")[:-1] for name in names]
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    around = [model.get_submodule(".".join(shared[:depth])) for depth in range(len(shared) + 1)]
    return [module for module in around if _takes_tokens(type(module))] or [model]


def execution_device(module: nn.Module) -> torch.device:
    """Return where a module computes: its weights' device, or the one to which accelerate moves them."""
    parameter = next(module.parameters(), None)
    for part in module.modules():
        if (device := getattr(getattr(part, "_hf_hook", None), "execution_device", None)) is not None:
            return torch.device(device)
    return torch.device("cpu") if parameter is None or parameter.is_meta else parameter.device


def _takes_tokens(kind: type[nn.Module]) -> bool:
    try:
        parameters = inspect.signature(kind.forward).parameters
    except (TypeError, ValueError):
        return False
    return "input_ids" in parameters or "inputs_embeds" in parameters


def _is_library_model(module: nn.Module) -> bool:
    """Whether a module is a Transformers model and not a wrapper, by its class."""
    return hasattr(type(module), "base_model_prefix") and hasattr(type(module), "from_pretrained")
