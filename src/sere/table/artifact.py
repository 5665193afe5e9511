"""The similarity table: what calibration leaves behind and every integration takes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from sere.errors import InputError, TableError, TableMismatch
from sere.identity import ModelIdentity, span, summary
from sere.similarity import LayerSimilarity

if TYPE_CHECKING:
    from sere.table.verify import Check

logger = logging.getLogger("sere")


@dataclass(frozen=True, eq=False)
class SimilarityTable:
    """The similarities of all MoE layers of one model, and where they come from.

    Attributes:
        layers: One `LayerSimilarity` by decoder-layer index; in layer order.
        identity: The model that was calibrated.
        metric: The metric's name.
        metric_parameters: Its parameters, JSON-ready.
        num_tokens: Calibration tokens; 0 for a metric without data, or where it is not known.
        data_digest: Hex digest of the calibration tokens; empty where there were none.
        seed: Seed of the choice of texts, or None.
        provenance: Versions, commit, machine, time, notes; JSON-ready. Not part of the fingerprint.

    Raises:
        TableError: There is no layer, layers or their E differ from the identity, or a layer is an identity
            matrix, which is a missing similarity in disguise.

    Source: docs/method.md section 3.
    """

    layers: Mapping[int, LayerSimilarity]
    identity: ModelIdentity
    metric: str
    metric_parameters: Mapping[str, Any] = field(default_factory=dict)
    num_tokens: int = 0
    data_digest: str = ""
    seed: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(sorted(self.layers.items()))))
        check_layers(self.layers, self.identity)

    def __repr__(self) -> str:
        return (
            f"SimilarityTable({self.identity.name!r}, {self.metric}, L={len(self.layers)}, "
            f"E={span(self.identity.experts.values())}, K={span(self.identity.slots.values())}, "
            f"fingerprint {self.fingerprint[:12]})"
        )

    @property
    def num_experts(self) -> int:
        """Number of experts of a layer: the largest, where layers differ."""
        return self.identity.num_experts

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over similarities, identity, metric and data, as hex; the order of keys does not matter."""
        digest = hashlib.sha256(json.dumps(describe(self), sort_keys=True).encode())
        for name, tensor in sorted(tensors(self).items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically; see `sere.table.storage`.

        Raises:
            OutputError: It cannot be written there; the text says why.
        """
        from sere.table.storage import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read and check a file that `save` wrote.

        Raises:
            TableError: It is missing, damaged, of an unknown version or makes no sense; the text says which.
        """
        from sere.table.storage import load

        return load(cls, path)

    def check(self, identity: ModelIdentity) -> None:
        """Refuse to be used with another model than the one that was calibrated.

        Args:
            identity: The model at hand, from `sere.structure.identify`. Its name and its K may differ: both
                are worth a line in the log.

        Raises:
            TableMismatch: The architecture, the layers or a layer's E differ; the text names both sides and
                each value that differs.
        """
        if differences := self.identity.differences(identity):
            raise TableMismatch(
                f"the table was calibrated on {summary(self.identity)}, but the model is "
                f"{summary(identity)}: {'; '.join(differences)}; calibrate this model (sere calibrate) or "
                "give its own table"
            )
        if self.identity.name != identity.name:
            _say_other_name(self.identity.name, identity.name)
        self.check_slots(identity.slots)

    def check_slots(self, slots: Mapping[int, int]) -> None:
        """Log, once, that the model routes to another number of experts per token than at calibration.

        Args:
            slots: The model's K by decoder-layer index.
        """
        mine = self.identity.slots
        if self.identity.recorded_digest is not None:  # its file holds the largest K for every layer
            mine, slots = {0: max(mine.values(), default=0)}, {0: max(slots.values(), default=0)}
        if any(mine.get(index, K) != K for index, K in slots.items()):
            _say_other_slots(self.identity.name, self.metric, span(mine.values()), span(slots.values()))

    def verify(self, identity: ModelIdentity | None = None) -> tuple[Check, ...]:
        """Return the checks that go beyond loading, each with its outcome; see `sere.table.verify`."""
        from sere.table.verify import verify_table

        return verify_table(self, identity)

    def critical_experts(self, layer: int, threshold: float) -> tuple[int, ...]:
        """Return the experts that no other resembles, as far as is known: they are kept whatever the batch.

        Args:
            layer: Decoder-layer index.
            threshold: ρ; compared in float32, like the similarities.

        Raises:
            InputError: The table has no such layer.
        """
        if layer not in self.layers:
            raise InputError(f"layer: expected one of {list(self.layers)}, got {layer}")
        best = best_neighbors(self.layers[layer].similarity)
        least = torch.tensor(threshold, dtype=torch.float32, device=best.device)
        return tuple((~(best >= least)).nonzero().flatten().tolist())


def best_neighbors(similarity: Tensor) -> Tensor:
    """Return each expert's similarity to the other expert that resembles it most; ``[E]``, float32.

    NaN for an expert whose similarity to no other is known.
    """
    best = similarity.nan_to_num(nan=-1).fill_diagonal_(-1).max(dim=1).values
    return best.masked_fill(best == -1, torch.nan)


def tensors(table: SimilarityTable) -> dict[str, Tensor]:
    """Return the table's tensors by the names they have in the file."""
    named: dict[str, Tensor] = {}
    for index, layer in table.layers.items():
        named[f"layers.{index}.similarity"] = layer.similarity.cpu().contiguous()
        if layer.scale is not None:
            named[f"layers.{index}.scale"] = layer.scale.cpu().contiguous()
    return named


def describe(table: SimilarityTable) -> dict[str, Any]:
    """Return all that identifies a table but its tensors, JSON-ready."""
    return {
        "identity": table.identity.to_mapping(),
        "metric": table.metric,
        "metric_parameters": dict(table.metric_parameters),
        "num_tokens": table.num_tokens,
        "data_digest": table.data_digest,
        "seed": table.seed,
    }


@cache
def _say_other_name(table_name: str, model_name: str) -> None:
    """Log, once, that names differ: what is compared otherwise is the architecture."""
    logger.warning(
        "sere: the table was calibrated on %r, the model is %r, of the same architecture: right if the "
        "weights are the same, renamed or quantized, and wrong for any others",
        table_name,
        model_name,
    )


@cache
def _say_other_slots(name: str, metric: str, table_slots: str, model_slots: str) -> None:
    """Log, once, that K differs, and what that means for the metric."""
    meaning = (
        f"it was measured on the tokens routed to each expert with K={table_slots}, so its similarities and "
        f"scales describe those tokens; calibrate with K={model_slots} if that matters"
        if metric == "projection"
        else "similarities do not depend on K, so the table fits"
    )
    logger.warning(
        "sere: the table of %r (%s) was calibrated with K=%s routed slots per token, this model has K=%s: %s",
        name,
        metric,
        table_slots,
        model_slots,
        meaning,
    )


def check_layers(layers: Mapping[int, LayerSimilarity], identity: ModelIdentity) -> None:
    """Refuse layers that do not belong to a model of this identity.

    Raises:
        TableError: Missing or extra layers, another E, or an identity matrix; the text names the layer.
    """
    if set(layers) != set(identity.layer_names) or not layers:
        raise TableError(
            f"similarities exist for layers {sorted(layers)}, but {summary(identity)} has its experts in "
            f"layers {sorted(identity.layer_names)}; calibrate again"
        )
    for index, layer in layers.items():
        E = identity.experts.get(index)
        if layer.num_experts != E:
            raise TableError(
                f"layer {index}: expected E = {E} experts as in {summary(identity)}, got {layer.num_experts}; "
                "calibrate again"
            )
        # Of two experts, each is the other's farthest. NaN, which is not known, is no 0.
        if layer.num_experts > 2 and not bool(layer.similarity.clone().fill_diagonal_(0).any()):
            raise TableError(
                f"layer {index}: expected similarities, got the identity matrix, which is none (it would "
                "send every token to the lowest primary expert); calibrate again"
            )
