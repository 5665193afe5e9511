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
from tests.support.architectures.configs import OWN, TEXT, TOWER, E

MODELS = Path(transformers.__file__).parent / "models"
_EXPERTS = re.compile(r"^class \w*Experts\(", re.MULTILINE)
_TOWERS = re.compile("vision|audio|encoder|sam_|code2wav|code_predictor")


def folders() -> list[str]:
    """Name the folders of ``transformers.models`` whose modeling code defines experts; imports nothing."""
    files = sorted(MODELS.glob("*/modeling_*.py"))
    found = {path.parent.name for path in files if _EXPERTS.search(path.read_text(encoding="utf-8"))}
    return sorted(found)


@cache
def architectures(folder: str) -> Mapping[str, type[PreTrainedModel]]:
    """Return the classes of a folder that generate text with experts, by the model type of their configs.

    Where a folder has none, those with a head of another kind; a class without a model type is a part of
    another model.
    """
    found: dict[str, type[PreTrainedModel]] = {}
    for path in sorted((MODELS / folder).glob("modeling_*.py")):
        module = importlib.import_module(f"transformers.models.{folder}.{path.stem}")
        models = [kind for kind in classes(module, PreTrainedModel) if _has_experts(kind.config_class)]
        generating = [kind for kind in models if issubclass(kind, GenerationMixin)]
        for kind in generating or [kind for kind in models if re.search(r"For[A-Z]", kind.__name__)]:
            if kind.config_class.model_type:
                found.setdefault(kind.config_class.model_type, kind)
    return found


def classes(module: Any, base: type) -> Iterator[Any]:
    """Yield the classes that a module defines and that derive from ``base``."""
    for kind in vars(module).values():
        if inspect.isclass(kind) and issubclass(kind, base) and kind.__module__ == module.__name__:
            yield kind


def tiny(folder: str, name: str, **overrides: Any) -> PreTrainedModel:
    """Build a tiny random model, float32, on the CPU, in eval mode; the same weights at every call.

    Args:
        folder: Of `folders`.
        name: Of ``architectures(folder)``.
        **overrides: Values of the config to set differently.
    """
    kind = architectures(folder)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = kind.config_class(**_values(kind.config_class, OWN.get(name, {}) | overrides))
        model = kind._from_config(config, dtype=torch.float32)
        _fill(model)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
    return model.eval()


def _has_experts(config: Any) -> bool:
    """Whether a config, or one within it, names a number of experts; a dense part of a model does not."""
    if config is transformers.AutoConfig:
        return True  # not known before it is built
    if not dataclasses.is_dataclass(config):
        return False
    names = {field.name for field in dataclasses.fields(config)}
    sub_configs: Mapping[str, Any] = getattr(config, "sub_configs", {})
    within = [kind for name, kind in sub_configs.items() if not _TOWERS.search(name)]
    return any("experts" in name for name in names) or any(map(_has_experts, within))


def _values(kind: type[PreTrainedConfig], own: Mapping[str, Any], *, tower: bool = False) -> dict[str, Any]:
    """Return small values for a config, and mappings for those within it."""
    declared = {field.name for field in dataclasses.fields(kind)}
    values = {name: value for name, value in (TOWER if tower else TEXT).items() if name in declared}
    for name, inner in kind.sub_configs.items():
        values[name] = _inner(inner, own.get(name, {}), tower or _TOWERS.search(name) is not None)
    return values | {name: value for name, value in own.items() if name not in kind.sub_configs}


def _inner(kind: type[PreTrainedConfig], own: Mapping[str, Any], tower: bool) -> Any:
    """Make a config within another one: a mapping where its class is fixed, else the config itself."""
    if "model_type" not in own:
        named = {"model_type": kind.model_type} if kind.model_type else {}
        return _values(kind, own, tower=tower) | named
    kind = type(transformers.AutoConfig.for_model(own["model_type"]))
    return kind(**_values(kind, {key: own[key] for key in own if key != "model_type"}, tower=tower))


def _fill(model: PreTrainedModel) -> None:
    """Give random values to what only a checkpoint fills."""
    for module in model.modules():
        if takes_routing(type(module)):  # the experts of a talker are left as the memory was
            for weight in module.parameters():
                nn.init.normal_(weight, std=0.3)
    for name, value in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith("e_score_correction_bias"):  # so that orders of selection and of weights differ
            value.data.copy_(torch.linspace(-0.2, 0.2, value.numel()).roll(5).view_as(value))
        elif name.endswith("tid2eid"):  # the experts of a token, where its id alone decides
            value.data.copy_(torch.rand(len(value), E).topk(value.shape[1]).indices)
