"""The routing sample of a calibration: which tokens it has, and how each layer's router chose on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sere.calibrate.packing import Tokens
from sere.table import RoutingSample
from sere.table.routing_sample import MOST_TOKENS

# A step of decoding takes one token of each text, so a sample should have as many texts as large steps have
# rows.
_ENOUGH_TEXTS = 128
_LARGEST = torch.finfo(torch.float16).max


class SampledTokens(NamedTuple):
    """The calibration tokens on which routing is recorded.

    Attributes:
        positions: ``[T]``, int64, growing: their numbers in the stream of tokens.
        starts: ``[texts + 1]``, int32: where texts start among them.
    """

    positions: Tensor
    starts: Tensor


class LayerRouting(NamedTuple):
    """How one layer's router chose; see `RoutingSample`.

    Attributes:
        ids: ``[T, K]``, int16.
        weights: ``[T, K]``, float16.
        energy: ``[E]``, float32.
    """

    ids: Tensor
    weights: Tensor
    energy: Tensor


def choose_tokens(tokens: Tokens, seed: int | None) -> SampledTokens:
    """Choose the tokens of the sample: whole texts in random order, as long as there is room.

    A text is what a document has in one sequence; of a document that the model wrote, only its own words, as
    they are what it decodes. Where 128 texts would be too many tokens, only the last ones of each are taken,
    equally many of each long text.

    Args:
        tokens: The calibration tokens.
        seed: Of the choice; None is 0.
    """
    cuts = np.union1d(np.arange(0, tokens.num_tokens, tokens.seq_len), tokens.documents.numpy())
    ends = np.append(cuts[1:], tokens.num_tokens)
    if tokens.own:
        document = np.searchsorted(tokens.documents.numpy(), cuts, side="right") - 1
        cuts = np.maximum(cuts, tokens.written.numpy()[document])
        cuts, ends = cuts[cuts < ends], ends[cuts < ends]
    order = np.random.default_rng(seed or 0).permutation(len(cuts))
    most = _most_of_a_text((ends - cuts)[order[:_ENOUGH_TEXTS]])
    lengths = np.minimum(ends - cuts, most)
    total = lengths[order].cumsum()
    chosen = order[total - lengths[order] < MOST_TOKENS]
    # The last one may have room for a part only.
    lengths[chosen[-1]] -= max(0, int(total[len(chosen) - 1]) - MOST_TOKENS)
    chosen = np.sort(chosen)
    positions = np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in chosen])
    starts = np.concatenate([[0], lengths[chosen].cumsum()])
    return SampledTokens(torch.from_numpy(positions), torch.from_numpy(starts).int())


def _most_of_a_text(lengths: np.ndarray) -> int:
    """Return the largest number of tokens a text such that texts of these lengths fit into the sample."""
    least, most = 1, MOST_TOKENS
    while least < most:
        middle = (least + most + 1) // 2
        fits = int(np.minimum(lengths, middle).sum()) <= MOST_TOKENS
        least, most = (middle, most) if fits else (least, middle - 1)
    return least


class RoutingRecorder:
    """Records one layer's routing on the sampled tokens, and the mean energy of its experts' outputs.

    It holds ``4 K`` bytes a sampled token, and 16 an expert.
    """

    def __init__(self, num_experts: int, positions: Tensor) -> None:
        self._positions = positions
        self._rows = 0
        self._ids: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._energy = torch.zeros(num_experts, dtype=torch.float64, device="cpu")
        self._counts = torch.zeros(num_experts, dtype=torch.int64, device="cpu")

    def add(self, outputs: Tensor, ids: Tensor, weights: Tensor) -> None:
        """Add some more rows, in the order of the tokens.

        Args:
            outputs: The experts' outputs before the gate weight, ``[E, t, H]``.
            ids: The router's choice, ``[t, K]``.
            weights: Its gate weights, ``[t, K]``.
        """
        E, t = outputs.shape[:2]
        ids, weights = ids.to(outputs.device), weights.to(outputs.device)
        inside = (ids >= 0) & (ids < E)
        bounds = torch.tensor([self._rows, self._rows + t], device="cpu")
        first, last = torch.searchsorted(self._positions, bounds).tolist()
        wanted = (self._positions[first:last] - self._rows).to(ids.device)
        self._rows += t
        if len(wanted):
            self._ids.append(torch.where(inside, ids, -1)[wanted].short().cpu())
            self._weights.append(weights[wanted].float().clamp(-_LARGEST, _LARGEST).half().cpu())
        tokens = torch.arange(t, device=ids.device)[:, None]
        chosen = outputs.transpose(0, 1)[tokens, ids.long().clamp(0, E - 1)]
        squares = chosen.float().square().sum(dim=2)
        flat = ids.long()[inside].cpu()
        self._energy.index_add_(0, flat, squares[inside].double().cpu())
        self._counts += flat.bincount(minlength=E)

    def state(self) -> dict[str, Tensor]:
        """Return all that was recorded so far, as tensors that `load_state` reads back."""
        tensors = {
            "rows": torch.tensor([self._rows], device="cpu"),
            "energy": self._energy,
            "counts": self._counts,
        }
        if self._ids:
            tensors |= {"ids": torch.cat(self._ids), "weights": torch.cat(self._weights)}
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``, of the same sampled tokens; what was recorded here is replaced."""
        self._rows = int(state["rows"][0])
        self._energy, self._counts = state["energy"], state["counts"]
        self._ids, self._weights = ([state[name]] if name in state else [] for name in ("ids", "weights"))

    def finish(self, num_tokens: int) -> LayerRouting | None:
        """Return what was recorded; None unless each of ``num_tokens`` tokens came exactly once.

        A model that loops over its layers, or drops tokens, brings more rows or fewer.
        """
        if self._rows != num_tokens or not self._ids:
            return None
        mean = self._energy / self._counts.clamp(min=1)
        energy = mean.float().masked_fill(self._counts == 0, torch.nan)
        return LayerRouting(torch.cat(self._ids), torch.cat(self._weights), energy)


def routing_sample(chosen: SampledTokens, layers: Mapping[int, LayerRouting]) -> RoutingSample | None:
    """Return the sample of all layers that recorded one; None if there is no such layer.

    Args:
        chosen: The sampled tokens.
        layers: What was recorded by decoder-layer index.
    """
    if not layers:
        return None
    return RoutingSample(
        ids={index: layer.ids for index, layer in layers.items()},
        weights={index: layer.weights for index, layer in layers.items()},
        starts=chosen.starts,
        energy={index: layer.energy for index, layer in layers.items()},
    )
