"""Move a checkpoint's tensors into a model, by Transformers' own loading code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sere.checkpoints.quiet import loading_bar
from sere.errors import MissingDependency


def load_into(
    model: Any, state: Mapping[str, Any], device: torch.device | str, conversions: Sequence[Any]
) -> Any:
    """Let Transformers convert tensors of a checkpoint and put them into a model; return its report.

    Args:
        model: The model.
        state: By name in the checkpoint, tensors, or objects that return them when indexed. Each is read
            when it is converted.
        device: Where the tensors go.
        conversions: What `conversions_of` the model gives; several calls may have to share its state.
    """
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    settings = LoadStateDictConfig(
        dtype=model.dtype,
        dtype_plan=model._get_dtype_plan(model.dtype),
        weight_mapping=list(conversions),
        device_map={"": torch.device(device)},
    )
    with _one_by_one(), torch.no_grad():
        report, _ = convert_and_load_state_dict_in_model(model, dict(state), settings)
    return report


def conversions_of(model: Any) -> list[Any]:
    """Return how Transformers turns the names and layouts of a model's checkpoints into its own.

    Raises:
        MissingDependency: Transformers is too old.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError as error:
        raise MissingDependency(
            "reading checkpoints needs transformers 5.17 or later: pip install -U transformers"
        ) from error
    return list(get_model_conversion_mapping(model))


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Make Transformers read tensors when it converts them, not all at once in threads."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with loading_bar(shown=False):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
