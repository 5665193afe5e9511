"""Read prompts before decoding: exact, because prefill is never re-routed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sere.integrations.transformers.inputs import cache_argument, find_cache

KeyValues = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values of one row, ``[heads, length, head size]`` each."""

# Prompts read at once. Fixed, so that the same prompts give the same bits at every batch size and setting.
GROUP = 16


@dataclass(slots=True)
class Prefilled:
    """One prompt after prefill.

    Attributes:
        index: Its place among the prompts.
        cache: Keys and values of all its tokens.
        logits: ``[n, V]``: of the last token (n = 1), or of all its tokens.
    """

    index: int
    cache: KeyValues
    logits: Tensor


@torch.no_grad()
def prefill(model: Any, prompts: Sequence[Sequence[int]], *, all_logits: bool = False) -> Iterator[Prefilled]:
    """Yield every prompt's keys, values and logits, in order, reading small left-padded groups at once.

    Args:
        model: A causal language model of Transformers with full attention.
        prompts: Token ids, at least one each.
        all_logits: Keep the logits of every token, not only of the last.
    """
    for first in range(0, len(prompts), GROUP):
        group = prompts[first : first + GROUP]
        output = _read(model, group, all_logits)
        layers = [(layer.keys, layer.values) for layer in find_cache(output).layers]
        for row, prompt in enumerate(group):
            length = len(prompt)
            # Cloned: a view would keep the whole group's tensors alive as long as its longest answer.
            cache = [(k[row, :, -length:].clone(), v[row, :, -length:].clone()) for k, v in layers]
            yield Prefilled(first + row, cache, output.logits[row, -length if all_logits else -1 :].clone())


def _read(model: Any, group: Sequence[Sequence[int]], all_logits: bool) -> Any:
    """Run the model over one left-padded group."""
    from transformers import DynamicCache

    width = max(len(prompt) for prompt in group)
    ids = torch.zeros(len(group), width, dtype=torch.long, device="cpu")
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(group):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device="cpu")
        mask[row, width - len(prompt) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=positions.to(model.device),
        use_cache=True,
        logits_to_keep=0 if all_logits else 1,
        **cache_argument(model, DynamicCache(config=model.config)),
    )
