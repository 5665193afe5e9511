"""What the rules of ``fill_rules.py`` know of each layer, from one pass over calibration texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sere.calibrate.collect import routing_of
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.experts import expert_outputs
from sere.calibrate.packing import pack
from sere.calibrate.sensitivity import measure_sensitivity
from sere.eval.tasks import calibration_texts
from sere.similarity import make_accumulator
from sere.structure import ExpertsLayer, find_experts

# Which tokens, and how much each counts: by the gate weight (negative factors allowed), by its square, by
# both without the rows' heaviest slots.
WEIGHTS = ("signed", "squared", "rest", "rest2")
TOKENS, TEXTS = 8_192, 900  # as `sere.eval.calibration`


@dataclass(frozen=True, eq=False)
class LayerFacts:
    """One layer on the calibration tokens.

    Attributes:
        similarity: By metric, ``[E, E]``, float64; -1 where it is not known.
        scale: By metric, ``[E, E]``, float64.
        energy: ``[E]``, float64; mean ``|Y_e|²`` on the tokens routed to e.
        ids: The router's choice, ``[T, K]``.
        weights: Its gate weights, ``[T, K]``, float64.
        cross: ``[E]``, float64; mean ``|Y_p|²`` on all tokens.
        sensitivity: ``[E]``, float64, in (0, 1].
    """

    similarity: Mapping[str, Tensor]
    scale: Mapping[str, Tensor]
    energy: Tensor
    ids: Tensor
    weights: Tensor
    cross: Tensor
    sensitivity: Tensor


@dataclass
class _Sums:
    """Sums over the tokens routed to e, weighted by a power of the gate weight."""

    layer: ExpertsLayer
    projection: Any
    frobenius: Any
    common: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0.0))
    energy: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0.0))
    squares: Any = 0.0
    everywhere: Any = 0.0
    ids: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, layer: ExpertsLayer) -> _Sums:
        E = layer.num_experts
        return cls(layer, make_accumulator("projection", E), make_accumulator("frobenius", E))

    def add(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
        Y = expert_outputs(self.layer, hidden)
        self.projection.update(Y, ids, weights)
        self.frobenius.update(Y, ids, weights)
        E = self.layer.num_experts
        by_token = Y.transpose(0, 1).double()
        norms = by_token.square().sum(-1)
        chosen = by_token[torch.arange(len(ids))[:, None], ids]
        inner = (chosen @ by_token.transpose(1, 2)).flatten(0, 1)
        flat, w = ids.flatten(), weights.double()
        rest = w < w.amax(1, keepdim=True)
        for name, weight in (("signed", w), ("squared", w**2), ("rest", w * rest), ("rest2", w**2 * rest)):
            factor = weight.flatten()[:, None]
            zero = torch.zeros(E, E, dtype=torch.float64)
            self.common[name] += zero.clone().index_add_(0, flat, inner * factor)
            wide = norms.repeat_interleave(ids.shape[1], 0) * factor
            self.energy[name] += zero.index_add_(0, flat, wide)
        own = norms.gather(1, ids).flatten()
        both = torch.stack([own, torch.ones_like(own)], 1)
        self.squares += torch.zeros(E, 2, dtype=torch.float64).index_add_(0, flat, both)
        self.everywhere += norms.sum(0)
        self.ids.append(ids)
        self.weights.append(weights.double())

    def facts(self, sensitivity: Tensor) -> LayerFacts:
        found = {"projection": self.projection.finalize(), "frobenius": self.frobenius.finalize()}
        similarity = {name: one.similarity.double().nan_to_num(-1.0) for name, one in found.items()}
        assert found["projection"].scale is not None
        scale = {"projection": found["projection"].scale.double()}
        for name in WEIGHTS:
            A, B = self.common[name], self.energy[name]
            share = A.square() / (B * A.diagonal()[:, None])
            if name != "signed":
                share = torch.where(A > 0, share, 0.0)
            similarity[name] = share.nan_to_num(-1.0).fill_diagonal_(1)
            scale[name] = (A / B).nan_to_num(1.0, 1.0, 1.0).fill_diagonal_(1)
        ids = torch.cat(self.ids)
        energy = self.squares[:, 0] / self.squares[:, 1].clamp(min=1)
        weights, everywhere = torch.cat(self.weights), self.everywhere / len(ids)
        return LayerFacts(similarity, scale, energy, ids, weights, everywhere, sensitivity.double())


@torch.no_grad()
def measure_facts(model: Any, tokenizer: Any) -> dict[int, LayerFacts]:
    """Return every layer's facts by its index; the texts are of the training split."""
    texts = calibration_texts(count=TEXTS, seed=0)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = pack([texts[i] for i in order], tokenizer, max_tokens=TOKENS, seq_len=128)
    sums = {layer.index: _Sums.of(layer) for layer in find_experts(model)}

    def hook_for(one: _Sums) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            hidden, ids, weights = routing_of(args, kwargs, module)
            one.add(hidden.reshape(-1, hidden.shape[-1]), ids, weights)

        return hook

    handles = [
        one.layer.module.register_forward_pre_hook(hook_for(one), with_kwargs=True) for one in sums.values()
    ]
    try:
        for batch in tokens.batches(4):
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    layers = [one.layer for one in sums.values()]
    sensitive = measure_sensitivity(model, layers, tokens, CalibrationConfig(progress=False))
    return {index: one.facts(sensitive[index]) for index, one in sums.items()}
