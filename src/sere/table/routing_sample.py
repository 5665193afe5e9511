"""How the router chose on some calibration tokens: what the loss of settings is estimated from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from sere.errors import InputError, name_some

MOST_TOKENS = 4096
"""The most tokens of a sample."""

_NAME = re.compile(r"routing\.(\d+)\.(ids|weights|energy)")
_STARTS = "routing.starts"


@dataclass(frozen=True, eq=False)
class RoutingSample:
    """The router's choices on the same tokens in every layer, and how strong experts' outputs are.

    Attributes:
        ids: The router's expert ids by decoder-layer index, ``[T, K]``, int16, on the CPU.
        weights: Their gate weights, ``[T, K]``, float16.
        starts: ``[texts + 1]``, int32: text i is tokens ``starts[i]`` to ``starts[i + 1] - 1``. A step of
            decoding has one token of each of several texts.
        energy: The mean of ``‖Y_e‖²`` over the calibration tokens routed to e, ``[E]``, float32; NaN for an
            expert that no token was routed to.

    Raises:
        InputError: A shape, dtype or value is wrong; the text names the layer.

    Source: docs/method.md section 3.
    """

    ids: Mapping[int, Tensor]
    weights: Mapping[int, Tensor]
    starts: Tensor
    energy: Mapping[int, Tensor]

    def __post_init__(self) -> None:
        for name in ("ids", "weights", "energy"):
            object.__setattr__(self, name, MappingProxyType(dict(sorted(getattr(self, name).items()))))
        if not self.ids or not set(self.ids) == set(self.weights) == set(self.energy):
            raise InputError(
                "routing sample: expected ids, weights and energy of the same layers, got those of "
                f"[{name_some(self.ids)}], [{name_some(self.weights)}] and [{name_some(self.energy)}]"
            )
        _check_starts(self.starts)
        for index in self.ids:
            _check_layer(index, self.ids[index], self.weights[index], self.energy[index], self.num_tokens)

    def __repr__(self) -> str:
        return f"RoutingSample(L={len(self.ids)}, tokens={self.num_tokens}, texts={self.num_texts})"

    @property
    def num_tokens(self) -> int:
        """Number of tokens, the same in each layer."""
        return int(self.starts[-1])

    @property
    def num_texts(self) -> int:
        """Number of texts that the tokens are from."""
        return len(self.starts) - 1

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their names in a table's file; `from_tensors` reads them back."""
        named = {_STARTS: self.starts.contiguous()}
        for index in self.ids:
            named[f"routing.{index}.ids"] = self.ids[index].contiguous()
            named[f"routing.{index}.weights"] = self.weights[index].contiguous()
            named[f"routing.{index}.energy"] = self.energy[index].contiguous()
        return named

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Self | None:
        """Build from what `to_tensors` returned; None if there are no tensors.

        Raises:
            InputError: A tensor is missing, has an unknown name, or is wrong.
        """
        if not named:
            return None
        if _STARTS not in named:
            raise InputError(f"routing sample: expected a tensor named {_STARTS}, got none")
        parts: dict[str, dict[int, Tensor]] = {"ids": {}, "weights": {}, "energy": {}}
        for name, tensor in named.items():
            match = _NAME.fullmatch(name)
            if match is not None:
                parts[match[2]][int(match[1])] = tensor
            elif name != _STARTS:
                raise InputError(f"routing sample: unknown tensor {name!r}")
        return cls(starts=named[_STARTS], **parts)


def is_of_sample(name: str) -> bool:
    """Whether a tensor of a table's file belongs to the routing sample, by its name."""
    return name.startswith("routing.")


def _check_starts(starts: Tensor) -> None:
    right = (
        isinstance(starts, Tensor) and starts.dtype == torch.int32 and starts.ndim == 1 and len(starts) > 1
    )
    if not right or int(starts[0]) != 0 or not bool((starts[1:] > starts[:-1]).all()):
        raise InputError(
            "routing sample: starts: expected int32 numbers that begin with 0 and grow, at least two of them"
        )
    if int(starts[-1]) > MOST_TOKENS:
        raise InputError(f"routing sample: expected at most {MOST_TOKENS} tokens, got {int(starts[-1])}")


def _check_layer(index: int, ids: Tensor, weights: Tensor, energy: Tensor, num_tokens: int) -> None:
    where = f"routing sample: layer {index}"
    if ids.dtype != torch.int16 or ids.ndim != 2 or len(ids) != num_tokens:
        raise InputError(
            f"{where}: ids: expected int16 of shape [{num_tokens}, K], got {ids.dtype} {list(ids.shape)}"
        )
    if weights.dtype != torch.float16 or weights.shape != ids.shape:
        raise InputError(
            f"{where}: weights: expected float16 of shape {list(ids.shape)}, "
            f"got {weights.dtype} {list(weights.shape)}"
        )
    if energy.dtype != torch.float32 or energy.ndim != 1:
        raise InputError(
            f"{where}: energy: expected float32 of shape [E], got {energy.dtype} {list(energy.shape)}"
        )
    if int(ids.max()) >= len(energy):
        raise InputError(
            f"{where}: ids: expected ids below E = {len(energy)} (negative ones count for nothing), "
            f"got {int(ids.max())}"
        )
    if not bool(torch.isfinite(weights).all()) or bool((energy < 0).any() | energy.isinf().any()):
        raise InputError(f"{where}: expected finite weights, and energies of at least 0 or NaN")
