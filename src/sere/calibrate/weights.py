"""The experts' own weights, for metrics that need no data."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sere.calibrate.offload import materialized
from sere.calibrate.sanity import check_tells_apart, naming_layer
from sere.errors import UnsupportedModel
from sere.similarity import LayerSimilarity, get_metric
from sere.structure import ExpertsLayer
from sere.wrappers import MERGE, adapts


def similarity_of_weights(layer: ExpertsLayer, metric: str) -> LayerSimilarity:
    """Return a layer's similarities by a metric of the experts' concatenated weights.

    Args:
        layer: The experts module.
        metric: Name of a metric that has ``of_weights``.

    Raises:
        InputError: Weights are NaN or infinite, or no two experts have anything in common.
        UnsupportedModel: No parameter of the module belongs to one expert each, or they are packed by
            quantization.

    Source: docs/method.md section 3.
    """
    parts: list[list[Tensor]] = [[] for _ in range(layer.num_experts)]
    with materialized(layer):
        for e, part in _parts(layer):
            parts[e].append(part.detach().reshape(-1))
        if not all(parts):
            raise UnsupportedModel(
                f"{layer.name}: found no weights that belong to one of the {layer.num_experts} experts each"
            )
        of_weights = get_metric(metric).of_weights
        assert of_weights is not None  # the caller chose by it
        with naming_layer(layer):
            found = of_weights([torch.cat(own) for own in parts])
    check_tells_apart(layer, metric, found)
    return found


def refuse_adapted(model: nn.Module, layer: ExpertsLayer, metric: str) -> None:
    """Refuse experts whose own weights are not those that they compute with, because of an adapter.

    Raises:
        UnsupportedModel: An adapter changes them in each call; the text says to merge it.
    """
    around = (module for module in model.modules() if adapts(module) and layer.module in module.modules())
    within = (module for module in layer.module.modules() if adapts(module))
    if any(not getattr(module, "merged", False) for module in (*around, *within)):
        raise UnsupportedModel(
            f"{layer.name}: an adapter changes the experts' weights in each call, so the metric {metric!r} "
            f"cannot read them; {MERGE}, or use a metric of outputs, such as 'projection'"
        )


def _parts(layer: ExpertsLayer) -> Iterator[tuple[int, Tensor]]:
    """Yield (expert, one of its parameters).

    Parameters may be stacked ``[E, ...]``, flat ``[E·n, ...]`` or in a list of modules; those that all
    experts share are left out.
    """
    for name, parameter in layer.module.named_parameters():
        if not parameter.is_floating_point():
            raise UnsupportedModel(
                f"{layer.name}.{name}: quantized to {parameter.dtype}; load the model without quantization"
            )
        own = re.search(r"(?:^|\.)(\d+)\.", name)
        if own is not None and int(own.group(1)) < layer.num_experts:
            yield int(own.group(1)), parameter
        elif parameter.ndim == 3 and parameter.shape[0] >= layer.num_experts:  # rows from E on: zero experts
            yield from enumerate(parameter.detach()[: layer.num_experts])
        elif parameter.shape[0] % layer.num_experts == 0:
            yield from enumerate(parameter.detach().reshape(layer.num_experts, -1))
