"""Read what a model was called with: tokens, mask and cache, known by what they are, not by one name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sere.config import MOST_INT

# The names that a cache has had; any other object that can say its length is found as well.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params", "past_key_value")

# The length of a cache that is filled and does not say how far: beyond any mask.
FILLED = MOST_INT


class CallInputs(NamedTuple):
    """What the model, or a module inside that takes tokens as well, was called with.

    Attributes:
        outer: The call of the module around it, or None.
        module: The module that is called, where it is known.
        tokens: Token ids ``[B, q]``, or None where the call was given embeddings and nobody knows the ids.
        mask: Attention mask ``[B, L]``, or None.
        cache: What holds the past, or None.
        kept: For how many positions logits are wanted, or 0 where that is not said.
        B: Rows; 0 if neither tokens nor embeddings were found.
        q: Positions per row.
    """

    outer: CallInputs | None
    module: nn.Module | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    cache: Any = None
    kept: int = 0
    B: int = 0
    q: int = 0


def read_call(
    inputs: Mapping[str, Any], outer: CallInputs | None, module: nn.Module | None = None
) -> CallInputs:
    """Return what a call's arguments say; what they leave open is taken from the call around it.

    Args:
        inputs: The arguments by name.
        outer: The call within which this one happens, or None.
        module: The module that is called.
    """
    given = inputs.get("input_ids")
    if given is None:
        given = inputs.get("inputs_embeds")
    if given is None:
        given = _looks_like_input(inputs)
    if given is not None and given.ndim < 2:
        # The model's own error explains better what is wrong.
        given = None
    if outer is None:
        outer_tokens = outer_mask = outer_cache = None
        kept, B, q = 0, 0, 0
    else:
        _, _, outer_tokens, outer_mask, outer_cache, kept, B, q = outer
    if given is not None:
        if (int(given.shape[0]), int(given.shape[1])) != (B, q):
            outer_tokens = None
        B, q = int(given.shape[0]), int(given.shape[1])
    tokens = given if given is not None and given.ndim == 2 else outer_tokens
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != B:
        # A module inside is often handed the mask in another form.
        mask = outer_mask if outer_mask is not None and outer_mask.shape[0] == B else None
    cache = find_cache(inputs)
    wanted = inputs.get("logits_to_keep")
    return CallInputs(
        outer=outer,
        module=module,
        tokens=tokens,
        mask=mask,
        cache=outer_cache if cache is None else cache,
        kept=wanted if type(wanted) is int else kept,
        B=B,
        q=q,
    )


def find_cache(values: Mapping[str, Any]) -> Any:
    """Return the cache among named values, or None: the object that can say how long it is.

    Args:
        values: A call's arguments or a model's output.
    """
    other = None
    for name, value in values.items():
        if value is None or isinstance(value, Tensor) or not hasattr(value, "get_seq_length"):
            continue
        if name in _CACHE_NAMES:
            return value
        # Not by its truth: an empty cache is false.
        other = value if other is None else other
    return other


def past_length(cache: Any) -> Tensor | int:
    """Return the positions in a cache: an integer, or a tensor (static caches) that the host must not read.

    A cache of linear attention alone knows no length: ``FILLED`` or 0.
    """
    if cache is None:
        return 0
    try:
        length = cache.get_seq_length()
    except (ValueError, NotImplementedError):
        filled = getattr(cache, "has_previous_state", False)
        filled = filled() if callable(filled) else filled
        return FILLED if filled else 0
    return length if isinstance(length, Tensor) else int(length)


def forward_names(kind: type) -> tuple[str, ...]:
    """Names of the positional parameters of a module class's ``forward``."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def cache_argument(model: nn.Module, cache: object) -> dict[str, Any]:
    """Return how to hand a cache to a model: Transformers 5.24 calls the argument ``cache``.

    Args:
        model: A model of Transformers.
        cache: The cache.
    """
    names = forward_names(type(model))
    return {next((name for name in _CACHE_NAMES if name in names), "past_key_values"): cache}


def has_full_attention_cache(model: Any) -> bool:
    """Say whether the cache keeps the keys and values of all tokens in every layer, and nothing else."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if getattr(model.config, "is_encoder_decoder", False):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _looks_like_input(inputs: Mapping[str, Any]) -> Tensor | None:
    """The tokens or embeddings under another name: the first argument of such a dtype and shape."""
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or "mask" in name or "position" in name:
            continue
        if value.ndim == 3 and value.is_floating_point():
            return value
        if value.ndim == 2 and value.dtype in (torch.int32, torch.int64):
            return value
    return None


def named(names: tuple[str, ...], args: Iterable[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name."""
    return dict(zip(names, args, strict=False)) | kwargs if args else kwargs
