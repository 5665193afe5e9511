"""Decoder layers that cannot be run one at a time are refused by name."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.calibrate.layerwise.by_layers import collect_layerwise
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.calibrate.layerwise.work_folder import WorkFolder, resumable
from sere.errors import UnsupportedModel
from tests.support.calibration import config, save_tiny, some_tokens
from tests.support.tiny import Looping


def refuses(skeleton: Skeleton, text: str, folder: Path) -> None:
    """Expect this text when the model is calibrated."""
    work = WorkFolder(folder / "work", {})
    with pytest.raises(UnsupportedModel, match=text):
        collect_layerwise(skeleton, some_tokens(), config("cosine"), work, states_in_memory=True)


def _fill_shared(layer: Any) -> None:
    forward, shared = layer.forward, []
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"shared": shared}), with_kwargs=True
    )

    def spoiled(hidden: Any, *, shared: list[Any], **kwargs: Any) -> Any:
        shared.append(hidden)
        return forward(hidden, **kwargs)

    layer.forward = spoiled


def _replace_shared(layer: Any) -> None:
    forward, shared = layer.forward, {"keys": None}
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"shared": shared}), with_kwargs=True
    )

    def spoiled(hidden: Any, *, shared: Any, **kwargs: Any) -> Any:
        shared["keys"] = hidden
        return forward(hidden, **kwargs)

    layer.forward = spoiled


def _read_shared(layer: Any) -> None:
    forward, shared = layer.forward, UserDict[str, Any]()
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"shared": shared}), with_kwargs=True
    )

    def spoiled(hidden: Any, *, shared: Any, **kwargs: Any) -> Any:
        before = shared.get("keys")
        return forward(hidden if before is None else hidden + before, **kwargs)

    layer.forward = spoiled


def _return_more(layer: Any) -> None:
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: (forward(*args, **kwargs), torch.ones(2))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_fill_shared, "a collection that its decoder layers share"),
        (_replace_shared, "a collection that its decoder layers share"),
        (_read_shared, "a collection that its decoder layers share"),
        (_return_more, "further results"),
    ],
    ids=["fills a list", "replaces in a dict", "reads what is absent", "returns more"],
)
def test_layers_that_share_more_than_hidden_states_are_refused(
    spoil: Callable[[Any], None], text: str, tmp_path: Path
) -> None:
    """A decoder layer that fills a shared collection, or returns further tensors, cannot be run by itself."""
    skeleton = Skeleton(save_tiny(tmp_path, "qwen3_moe"))
    for layer in skeleton.layers:
        spoil(layer)
    refuses(skeleton, text, tmp_path)


def test_a_model_that_loops_over_its_layers_is_refused(tmp_path: Path) -> None:
    """Its first loop alone would be measured: the layer and its number of runs are named."""
    skeleton = Skeleton(save_tiny(tmp_path, "qwen3_moe"))
    skeleton.layers.__class__ = Looping
    text = r"decoder layer 0 3 times; expected once.*low_memory=False"
    with pytest.raises(UnsupportedModel, match=text), resumable(tmp_path / "work", {}, total=2) as work:
        collect_layerwise(skeleton, some_tokens(), config("cosine"), work, states_in_memory=True)


def test_layers_that_get_what_follows_from_earlier_hidden_states_are_refused(tmp_path: Path) -> None:
    """An argument made of an earlier layer's hidden states would be that of the embeddings instead."""
    skeleton = Skeleton(save_tiny(tmp_path, "qwen3_moe"))
    first, second = skeleton.layers
    seen: list[Any] = []
    first.register_forward_hook(lambda *call: seen.append(call[-1]))
    second.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"residual": seen[-1]}), with_kwargs=True
    )
    refuses(skeleton, "passes on arguments of decoder layer 1; expected", tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda head: lambda _, args: (head(args[0])[..., :32],),
        lambda head: lambda _, args: (args[0] + head.weight[:32, :32].sum().item(),),
    ],
    ids=["hidden states without values", "an error of PyTorch's"],
)
def test_weights_elsewhere_that_the_pass_needs_are_named(tmp_path: Path, spoil: Any) -> None:
    """A forward pass that needs what stands outside the decoder layers' parent is refused by name."""
    skeleton = Skeleton(save_tiny(tmp_path, "qwen3_moe"))
    head = skeleton.model.lm_head
    skeleton.layers[0].register_forward_pre_hook(spoil(head))
    refuses(skeleton, r"needs weights .* \(lm_head.weight\).*low_memory=False", tmp_path)
