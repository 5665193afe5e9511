"""Which model a similarity table belongs to: the values that are compared, and which of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sere.errors import name_some

# The values that must be equal for a table to fit a model, besides the experts of each layer. Each is read
# by several names, so that a key renamed in another release does not make it another model.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "model_type": ("model_type",),
    "hidden_size": ("hidden_size", "d_model", "n_embd"),
    "layers": ("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    "expert_width": (
        "moe_intermediate_size",
        "expert_ffn_hidden_size",
        "ffn_hidden_size",
        "intermediate_size",
    ),
}


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a similarity table was made for.

    Attributes:
        name: A hub id, or the last part of a path; shown to people, not compared.
        architecture: Model type, hidden size, number of layers and expert width, as the config has them;
            JSON-ready. Empty if only ``recorded_digest`` is known.
        layer_names: Module name of the experts by decoder-layer index.
        experts: E, number of experts, by decoder-layer index.
        slots: K, routed slots per token, by decoder-layer index. Not compared: a similarity does not depend
            on how many experts a token is sent to.
        recorded_digest: The digest that a file of format version 1 holds instead of the values; None
            otherwise.
    """

    name: str
    architecture: Mapping[str, Any]
    layer_names: Mapping[int, str]
    experts: Mapping[int, int]
    slots: Mapping[int, int]
    recorded_digest: str | None = None

    @property
    def num_experts(self) -> int:
        """Number of experts per layer: the largest, if layers differ."""
        return max(self.experts.values(), default=0)

    @property
    def top_k(self) -> int:
        """Routed slots per token: the largest number, if layers differ."""
        return max(self.slots.values(), default=0)

    @property
    def digest(self) -> str:
        """Hex digest of the architecture with the largest E and K; for people and records."""
        return self.recorded_digest or architecture_digest(
            self.architecture, num_experts=self.num_experts, top_k=self.top_k
        )

    def differences(self, model: ModelIdentity) -> list[str]:
        """Return the values in which ``model`` differs from this model, a phrase for each; empty if none.

        Args:
            model: The model at hand; this identity is a table's. Names and K may differ.
        """
        found = self.architecture_differences(model.architecture)
        if set(self.experts) != set(model.experts):
            table, other = (name_some(sorted(identity.experts)) for identity in (self, model))
            found.append(f"MoE layers: the table has [{table}], the model [{other}]")
        found += [
            f"experts of layer {index}: the table has {E}, the model {model.experts[index]}"
            for index, E in sorted(self.experts.items())
            if model.experts.get(index, E) != E
        ]
        return found

    def architecture_differences(self, architecture: Mapping[str, Any]) -> list[str]:
        """Return which values differ from a model's, a phrase for each.

        Args:
            architecture: The model's values, from `architecture_of`.
        """
        if self.recorded_digest is None:
            return [
                f"{key}: the table has {self.architecture.get(key)}, the model {architecture.get(key)}"
                for key in dict.fromkeys((*self.architecture, *architecture))
                if self.architecture.get(key) != architecture.get(key)
            ]
        # With the table's own E and K: the model's are compared separately.
        digest = architecture_digest(architecture, num_experts=self.num_experts, top_k=self.top_k)
        if digest == self.recorded_digest:
            return []
        return [
            f"{', '.join(_KEYS)}: the table was written by an older sere and has only their digest "
            f"{self.recorded_digest[:12]}, but the model's digest is {digest[:12]}"
        ]

    def to_mapping(self) -> dict[str, Any]:
        """Return all values, JSON-ready; ``from_mapping`` reads them back."""
        common = {"name": self.name, "layer_names": _keyed_by_text(self.layer_names)}
        if self.recorded_digest is not None:
            return common | {"digest": self.recorded_digest, "E": self.num_experts, "K": self.top_k}
        experts, slots = _keyed_by_text(self.experts), _keyed_by_text(self.slots)
        return common | {"architecture": dict(self.architecture), "experts": experts, "slots": slots}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ModelIdentity:
        """Build from what ``to_mapping`` returned, or from the older form with one E, one K and a digest.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: The values make no sense.
        """
        names = {int(index): str(name) for index, name in values["layer_names"].items()}
        if "digest" in values:
            experts, slots = dict.fromkeys(names, int(values["E"])), dict.fromkeys(names, int(values["K"]))
            return cls(values["name"], {}, names, experts, slots, recorded_digest=str(values["digest"]))
        experts = {int(index): int(E) for index, E in values["experts"].items()}
        slots = {int(index): int(K) for index, K in values["slots"].items()}
        if not set(names) == set(experts) == set(slots):
            raise ValueError("layer_names, experts and slots name different layers")
        return cls(values["name"], dict(values["architecture"]), names, experts, slots)


def architecture_of(config: object) -> dict[str, Any]:
    """Return the values of a text config that say which model it is, JSON-ready.

    Args:
        config: The text config, or None for a model without one.
    """
    values = {key: first_of(config, names) for key, names in _KEYS.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def architecture_digest(architecture: Mapping[str, Any], *, num_experts: int, top_k: int) -> str:
    """Return the hex digest over the values of `architecture_of`.

    Args:
        architecture: The values.
        num_experts: Experts per layer.
        top_k: Routed slots per token.

    Returns:
        64 hex digits, independent of library versions, dtype and quantization.
    """
    values = dict(architecture) | {"E": num_experts, "K": top_k}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def summary(identity: ModelIdentity) -> str:
    """Return a model's identity in a line, for error texts."""
    indices = sorted(identity.layer_names)
    layers = f"layers {indices[0]} to {indices[-1]}" if indices else "none"
    return (
        f"{identity.name!r} (E={span(identity.experts.values())}, K={span(identity.slots.values())}, "
        f"{len(indices)} MoE layers: {layers}, digest {identity.digest[:12]})"
    )


def span(numbers: Iterable[int]) -> str:
    """Return ``"16"`` for numbers that are all 16, ``"12 to 16"`` for others; ``"0"`` for no number."""
    values = sorted(set(numbers)) or [0]
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def first_of(holder: object, names: tuple[str, ...]) -> Any:
    """Return the first of these attributes that exists and is not None; else None.

    Args:
        holder: A config or module; the config in its ``ffn_config`` (DBRX) is searched too.
        names: Names of attributes.
    """
    for config in (holder, getattr(holder, "ffn_config", None)):
        for name in names:
            value = getattr(config, name, None)
            if value is not None:
                return value
    return None


def _keyed_by_text(values: Mapping[int, Any]) -> dict[str, Any]:
    """JSON has no numbers as keys."""
    return {str(index): value for index, value in sorted(values.items())}
