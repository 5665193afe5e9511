"""What a worker says of its model besides what it counts: sizes, kernel, table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sere.integrations.vllm.worker.layer import RoutedLayer
from sere.table import SimilarityTable

_SHOWN_DIGITS = 12


def facts_of(layers: Collection[RoutedLayer], table: SimilarityTable) -> dict[str, Any]:
    """Return what does not change while an engine runs, as plain numbers and texts.

    Args:
        layers: Those of the worker.
        table: The engine's.
    """
    shapes = [layer.shape for layer in layers]
    return {
        "top_k": max((shape.top_k for shape in shapes), default=0),
        "num_experts": max((shape.num_experts for shape in shapes), default=0),
        "expert_bytes": next((layer.expert_bytes for layer in layers), None),
        "table": {"fingerprint": table.fingerprint[:_SHOWN_DIGITS], "tiers": list(table.tiers)},
    }


def stage_of(vllm_config: Any) -> range | None:
    """Return the decoder layers that a worker holds, or None if it holds all.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
    """
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size == 1:
        return None
    return range(*vllm_config.model_config.get_layers_start_end_indices(parallel))


def rest_bytes(model: Any, layers: Collection[RoutedLayer]) -> int | None:
    """Return the bytes of weights that every decode step of a worker reads, however few experts it needs.

    All parameters but those of the routed experts, and but the input embeddings, of which a step reads a row
    per token, unless they are the weights of the output, too.

    Args:
        model: The model of vLLM's model runner.
        layers: Those of the worker.

    Returns:
        None where it cannot be told.
    """
    holders: list[Any] = [getattr(layer.runner, "routed_experts", None) for layer in layers]
    if model is None or not hasattr(model, "parameters") or None in holders:
        return None
    sizes: dict[int, int] = {id(one): one.numel() * one.element_size() for one in model.parameters()}
    for holder in holders:
        for one in holder.parameters():
            sizes.pop(id(one), None)
    inputs, outputs = _embeddings(model)
    if outputs - inputs:
        for one in inputs - outputs:
            sizes.pop(one, None)
    return sum(sizes.values())


def _embeddings(model: Any) -> tuple[set[int], set[int]]:
    """Return the ids of the parameters of the input embeddings and of the output layer."""
    found: dict[str, set[int]] = {"VocabParallelEmbedding": set(), "ParallelLMHead": set()}
    for module in model.modules():
        names = found.get(type(module).__name__)
        if names is not None:
            names.update(id(one) for one in module.parameters())
    return found["VocabParallelEmbedding"], found["ParallelLMHead"]
