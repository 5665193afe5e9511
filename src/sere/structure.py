"""Find a model's experts modules, and identify the model, by structure: no list of class names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sere.errors import UnsupportedModel, name_some
from sere.identity import ModelIdentity, architecture_of, first_of
from sere.wrappers import plain_name, refuse_copies, wraps

_EXPERTS_NAMES = (
    "num_experts",
    "num_local_experts",
    "num_routed_experts",
    "n_routed_experts",
    "moe_num_experts",
)
TOP_K_SETTINGS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)
"""What configs call K; ``top_k`` there is a setting of sampling."""
_TOP_K_NAMES = ("top_k", *TOP_K_SETTINGS)
_OTHER_TOWERS = re.compile(r"vision|visual|image|audio|speech|code2wav", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ExpertsLayer:
    """One experts module: called with hidden states, expert ids and gate weights.

    Attributes:
        index: Decoder-layer index, parsed from the module's name.
        name: The module's name within the model, e.g. ``model.layers.3.mlp.experts``.
        module: The experts module itself.
        num_experts: Number of routed experts; ids from there on are zero experts or sentinels.
        top_k: Routed slots per token.
    """

    index: int
    name: str
    module: nn.Module
    num_experts: int
    top_k: int


def find_experts(model: nn.Module) -> list[ExpertsLayer]:
    """Find the experts module of each MoE layer, in layer order.

    An experts module is one whose class's ``forward`` takes hidden states, expert ids and gate weights,
    in this order, and which holds one set of weights per expert. Shared experts, dense MLPs and the
    vision and audio towers of a model do not match.

    Args:
        model: A causal language model, or a model that contains one.

    Returns:
        One entry per MoE layer, ascending by index.

    Raises:
        UnsupportedModel: There is no such module, or one that cannot be re-routed; the text names the
            module and the reason.

    Source: docs/method.md section 4 for what is passed on; docs/adding-an-architecture.md for the forms.
    """
    _refuse_encoder_decoder(model)
    parents = dict(model.named_modules())
    layers: list[ExpertsLayer] = []
    for name, module in parents.items():
        if is_of_other_tower(name):
            continue
        if takes_routing(type(module)) and holds_experts(module):
            refuse_copies(name, module)
            name = plain_name(name)
            parent = parents[name.rpartition(".")[0]]
            layers.append(_describe(name, module, parent, text_config(model)))
        elif not wraps(module) and (reason := _why_not(name, module)) is not None:
            raise UnsupportedModel(f"{name} ({type(module).__name__}): {reason}")
    if not layers:
        raise UnsupportedModel(
            f"{type(model).__name__}: no experts module found; expected modules whose forward takes "
            "(hidden_states, top_k_index, top_k_weights), as in the Mixture-of-Experts models of "
            "Transformers v5. A dense model has none and nothing to re-route"
        )
    return _in_order(layers, model)


def is_of_other_tower(name: str) -> bool:
    """Whether a module's name says that it works on images or sound, and not on the tokens of a text."""
    return _OTHER_TOWERS.search(name) is not None


def is_rerouted(layers: Iterable[ExpertsLayer]) -> bool:
    """Whether re-routing is active on any of the layers: one of its experts' hooks is ours."""
    hooks = (hook for layer in layers for hook in layer.module._forward_pre_hooks.values())
    return any(hasattr(hook, "sere_layer") for hook in hooks)


def identify(model: nn.Module) -> ModelIdentity:
    """Return which model this is, from its experts modules and a fixed list of config values.

    Args:
        model: As for `find_experts`. It may be on the meta device.

    Returns:
        The identity that a table carries; equal for quantized copies and other library releases.

    Raises:
        UnsupportedModel: As `find_experts`.
    """
    return identity_of(model, find_experts(model))


def identity_of(model: nn.Module, layers: list[ExpertsLayer]) -> ModelIdentity:
    """Return which model this is, from experts layers that were found already; see `identify`."""
    return ModelIdentity(
        name=model_name(getattr(model, "config", None)) or type(model).__name__,
        architecture=architecture_of(text_config(model)),
        layer_names={layer.index: layer.name for layer in layers},
        experts={layer.index: layer.num_experts for layer in layers},
        slots={layer.index: layer.top_k for layer in layers},
    )


def text_config(model: object) -> object:
    """Return the config of the language model within ``model``, or None if it has no config."""
    config = getattr(model, "config", None)
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def takes_routing(kind: type) -> bool:
    """Whether a module class's ``forward`` takes (hidden_states, expert ids, gate weights)."""
    names = _parameters(kind)
    return (
        len(names) == 3
        and names[0].startswith("hidden")
        and re.search(r"ind(ex|ices)|experts|ids", names[1]) is not None
        and re.search(r"weight|prob|score", names[2]) is not None
    )


def holds_experts(module: nn.Module) -> bool:
    """Whether a module holds one set of weights per expert, stacked or as a list."""
    return _count_experts(module) is not None


def _parameters(kind: type) -> list[str]:
    """Names of the positional parameters of a class's ``forward`` besides self; a ``*`` counts as one."""
    try:
        parameters = list(inspect.signature(kind.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        return []
    return [
        ("*" if p.kind is p.VAR_POSITIONAL else p.name) for p in parameters if p.kind is not p.KEYWORD_ONLY
    ]


def _count_experts(module: nn.Module) -> int | None:
    """Return E by the weights, not by the module's own number, which may include zero experts."""
    stacked = [p.shape[0] for p in module.parameters() if p.ndim == 3]
    if stacked:
        return int(min(stacked))
    lists = [len(child) for child in module.children() if isinstance(child, nn.ModuleList)]
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        lists.append(len(module))
    if lists and max(lists) > 1:
        return max(lists)
    # Weights of all experts in one flat matrix (DBRX), or packed by quantization.
    named = first_of(module, _EXPERTS_NAMES)
    return int(named) if isinstance(named, int) and next(module.parameters(), None) is not None else None


def _describe(name: str, module: nn.Module, parent: nn.Module, config: object) -> ExpertsLayer:
    if getattr(module, "_is_expert_parallel", False):
        raise UnsupportedModel(
            f"{name}: the model is expert-parallel, so this rank sees local expert ids only and the ranks "
            "cannot agree on one primary set; load it without expert parallelism"
        )
    index = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    if index is None:
        raise UnsupportedModel(f"{name}: expected a decoder-layer index in the module's name, found none")
    E, K = _count_experts(module), _routed_slots(module, parent, config, int(index.group(1)))
    if E is None or K is None:
        raise UnsupportedModel(
            f"{name}: the number of routed slots per token is not known; expected one of "
            f"{', '.join(_TOP_K_NAMES)} on the router, the MoE block or the config"
        )
    return ExpertsLayer(index=int(index.group(1)), name=name, module=module, num_experts=E, top_k=min(K, E))


def _routed_slots(module: nn.Module, parent: nn.Module, config: object, index: int) -> int | None:
    """Return K from where it is used: the router beside the experts, else the MoE block, else the config.

    If router and block both have a number, the block's is a copy that nothing reads.
    """
    siblings = [child for child in parent.children() if child is not module]
    for holder in (*siblings, parent, getattr(module, "config", None), config):
        found = first_of(holder, _TOP_K_NAMES)
        if isinstance(found, list | tuple) and index < len(found):
            found = found[index]
        if isinstance(found, int) and found > 0:
            return found
    return None


def _why_not(name: str, module: nn.Module) -> str | None:
    """Return why a module that looks like routed experts cannot be re-routed; None for other modules."""
    last = name.rpartition(".")[2]
    kind = type(module).__name__
    if not (last == "experts" or kind.endswith("Experts")) or re.search(
        "shared", f"{last} {kind}", re.IGNORECASE
    ):
        return None
    names = _parameters(type(module))
    if "routing_data" in names:
        return (
            "its MXFP4 kernel takes routing data that it has packed already; load the model with "
            "Mxfp4Config(dequantize=True), or calibrate it in vLLM (--engine vllm)"
        )
    if names == ["hidden_states"]:
        return "it computes every expert for every token, so fewer distinct experts save nothing"
    if "expert_size" in names:
        return "the block around it routes internally and passes group sizes, not ids and weights"
    if not names or next(module.parameters(), None) is None:
        return None
    return (
        f"its forward takes ({name_some(names)}); expected (hidden_states, top_k_index, top_k_weights), "
        "because re-routing changes these ids and weights"
    )


def _refuse_encoder_decoder(model: nn.Module) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{type(model).__name__}: an encoder-decoder model; expected a causal language model, because "
            "its one or two experts per token leave nothing to re-route and its layers come in two stacks"
        )


def _in_order(layers: list[ExpertsLayer], model: nn.Module) -> list[ExpertsLayer]:
    """Sort by index; refuse two experts modules with one index, as a model of two language models has."""
    by_index: dict[int, ExpertsLayer] = {}
    for layer in layers:
        other = by_index.setdefault(layer.index, layer)
        if other is not layer:
            raise UnsupportedModel(
                f"{type(model).__name__}: {other.name} and {layer.name} are both layer {layer.index}; "
                f"{_way_out(other.name, layer.name)}"
            )
    return [by_index[index] for index in sorted(by_index)]


def _way_out(one: str, other: str) -> str:
    """Return what to do about two experts modules with one layer index, by where their names differ."""
    pairs = list(zip(one.split("."), other.split("."), strict=False))
    common = next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))
    if any(a.isdecimal() for a, _ in pairs[:common]):
        return "expected one group of experts per decoder layer, because a table holds one per layer"
    parts = (".".join(name.split(".")[: common + 1]) for name in (one, other))
    return "pass the one language model that is to be re-routed: " + " or ".join(
        f"model.{part}" for part in parts
    )


def model_name(config: object) -> str:
    """Return a model's hub id as it is, and only the last part of a path: tables must not hold paths.

    Args:
        config: The model's config, or None.

    Returns:
        Empty if the config does not say.
    """
    named = str(getattr(config, "_name_or_path", "") or "")
    if named.count("/") > 1 or Path(named).is_absolute() or Path(named).exists():
        named = Path(named).name
    return named
