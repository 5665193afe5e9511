"""Build tiny random models of every Mixture-of-Experts architecture that the installed Transformers has."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from sere.structure import takes_routing
from tests.architectures.configs import E, OWN, TEXT, TOWER

_TOWERS = re.compile("vision|audio|encoder|sam_|code2wav|code_predictor")
MODELS = Path(transformers.__file__).parent / "models"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One class of Transformers that generates text through routed experts.

    Attributes:
        name: The model type of its config, which is unique.
        folder: Its folder within ``transformers.models``.
        kind: The class.
    """

    name: str
    folder: str
    kind: type[PreTrainedModel]


@cache
def architectures() -> Mapping[str, Architecture]:
    """Find every architecture by structure: its module has experts whose forward takes ids and weights."""
    found: dict[str, Architecture] = {}
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        if "Experts" not in path.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        if not any(_is_experts(kind) for kind in classes(module, nn.Module)):
            continue
        for kind in _whole_models(module):
            name = kind.config_class.model_type or kind.__name__
            found.setdefault(name, Architecture(name, path.parent.name, kind))
    return found


def _is_experts(kind: type[nn.Module]) -> bool:
    return takes_routing(kind) or kind.__name__.endswith("Experts")


def _whole_models(module: Any) -> list[type[PreTrainedModel]]:
    """The classes that generate text; where a module has none, those with a head of another kind."""
    models = [kind for kind in classes(module, PreTrainedModel) if _has_experts(kind.config_class)]
    generating = [kind for kind in models if issubclass(kind, GenerationMixin)]
    return generating or [kind for kind in models if re.search(r"For[A-Z]", kind.__name__)]


def _has_experts(config: type[PreTrainedConfig] | None) -> bool:
    """Whether a config, or one within it, names a number of experts; a dense part of a model does not."""
    if config is None or not dataclasses.is_dataclass(config):
        return False
    names = {field.name for field in dataclasses.fields(config)}
    return any("experts" in name for name in names) or any(map(_has_experts, config.sub_configs.values()))


def classes(module: Any, base: type) -> Iterator[Any]:
    """Yield the classes that a module defines and that derive from ``base``."""
    for kind in vars(module).values():
        if inspect.isclass(kind) and issubclass(kind, base) and kind.__module__ == module.__name__:
            yield kind


def tiny_config(kind: type[PreTrainedConfig], own: Mapping[str, Any], *, tower: bool = False) -> Any:
    """Make a config of small values, and those of the configs within it.

    Args:
        kind: The config's class.
        own: Values that differ; a mapping for a config within.
        tower: Whether it is that of a vision or audio tower.
    """
    declared = {field.name for field in dataclasses.fields(kind)}
    values = {name: value for name, value in (TOWER if tower else TEXT).items() if name in declared}
    for name, inner in kind.sub_configs.items():
        values[name] = _inner(inner, own.get(name, {}), name, tower)
    values |= {name: value for name, value in own.items() if name not in kind.sub_configs}
    return kind(**values)


def _inner(kind: type[PreTrainedConfig], own: Mapping[str, Any], name: str, tower: bool) -> Any:
    if "model_type" in own:
        kind = type(transformers.AutoConfig.for_model(own["model_type"]))
        own = {key: value for key, value in own.items() if key != "model_type"}
    return tiny_config(kind, own, tower=tower or _TOWERS.search(name) is not None)


def tiny(name: str, **overrides: Any) -> PreTrainedModel:
    """Build a tiny random model, float32, on the CPU, in eval mode; the same weights at every call.

    Args:
        name: Of `architectures`.
        **overrides: Values of the config to set differently.
    """
    architecture = architectures()[name]
    config = tiny_config(architecture.kind.config_class, OWN.get(name, {}) | overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = architecture.kind._from_config(config, dtype=torch.float32)
        _fill(model)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
    return model.eval()


def _fill(model: PreTrainedModel) -> None:
    """Give random values to what only a checkpoint fills."""
    for module in model.modules():
        if takes_routing(type(module)):  # the experts of a talker are left as the memory was
            for weight in module.parameters():
                weight.data.normal_(std=0.3)
    for name, value in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith("e_score_correction_bias"):  # so that orders of selection and of weights differ
            value.data.copy_(torch.linspace(-0.2, 0.2, value.numel()).roll(5).view_as(value))
        elif name.endswith("tid2eid"):  # the experts of a token, where its id alone decides
            value.data.copy_(torch.rand(len(value), E).topk(value.shape[1]).indices)
