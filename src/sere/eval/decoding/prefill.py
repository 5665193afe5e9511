"""Read prompts before decoding: exact, because prefill is never re-routed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sere.integrations.transformers.inputs import cache_argument, find_cache
from sere.structure import text_config

KeyValues = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values of one row, ``[heads, length, head size]`` each."""

# Prompts read at once; fixed, so that the same prompts give the same bits at every batch size and setting.
GROUP = 16
# Logits held at once while a group is read; with large vocabularies, fewer texts are read at once.
MOST_LOGITS = 1 << 27


@dataclass(slots=True)
class Prefilled:
    """One prompt after prefill.

    Attributes:
        index: Its index among the prompts.
        cache: Keys and values of all its tokens.
        logits: Of its last n tokens, ``[n, V]``.
    """

    index: int
    cache: KeyValues
    logits: Tensor


@torch.no_grad()
def prefill(model: Any, prompts: Sequence[Sequence[int]], *, keep: int = 1) -> Iterator[Prefilled]:
    """Yield every prompt's keys, values and logits, in order, reading small left-padded groups at once.

    Args:
        model: A causal language model of Transformers with full attention.
        prompts: Token ids, at least one each.
        keep: For how many last tokens of each prompt logits are kept; of a shorter prompt, all.
    """
    size = _group_size(model, keep)
    for first in range(0, len(prompts), size):
        group = prompts[first : first + size]
        output = _read(model, group, keep)
        layers = [(layer.keys, layer.values) for layer in find_cache(output).layers]
        for row, prompt in enumerate(group):
            length = len(prompt)
            # Cloned: a view would keep the whole group's tensors alive as long as its longest answer.
            cache = [(k[row, :, -length:].clone(), v[row, :, -length:].clone()) for k, v in layers]
            yield Prefilled(first + row, cache, output.logits[row, -min(keep, length) :].clone())


def pad_left(group: Sequence[Sequence[int]], device: Any = None) -> tuple[Tensor, Tensor]:
    """Return texts as one left-padded batch and its mask, both ``[B, length]``."""
    width = max(len(text) for text in group)
    ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in group], device=device)
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in group], device=device)
    return ids, mask


def _group_size(model: Any, keep: int) -> int:
    """Return how many texts to read at once: fewer if their logits would fill much memory."""
    vocabulary = getattr(text_config(model), "vocab_size", None) or 1
    return max(1, min(GROUP, MOST_LOGITS // (keep * vocabulary)))


def _read(model: Any, group: Sequence[Sequence[int]], keep: int) -> Any:
    """Run the model over one left-padded group."""
    from transformers import DynamicCache

    ids, mask = pad_left(group, model.device)
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=keep,
        **cache_argument(model, DynamicCache(config=model.config)),
    )
