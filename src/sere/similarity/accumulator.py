"""The base of all metrics of outputs: takes outputs piece by piece and holds only sums of shape [E, E]."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sere.errors import DataError, InputError, name_some
from sere.similarity.layer import LayerSimilarity

# Outputs are taken in slices of at most this many elements, so that an update needs no second copy of its
# input. Each slice is checked on the host.
SLICE_ELEMENTS = 2**22
# Within a slice, a CPU works on blocks that stay in its cache between the passes over them: of 2^16 to 2^22
# elements, about 2^19 took the least time (E = 64 and 128, H = 2048). Not a power of two itself: rows that
# far apart compete for the same sets of the cache, which doubled the time.
CACHED_ELEMENTS = 2**19 + 2**10
GRAM_STRIP = 64


class Accumulator(ABC):
    """Sums over tokens, from which one layer's similarities are computed.

    Products are computed in ``dtype`` (float32 by default, whatever the outputs' dtype), sums are held in
    float64 on the CPU. Tokens may come in any pieces; accumulators of parts of the tokens can be merged in
    any order. After an error in `update`, make a new accumulator.

    Attributes:
        metric: The metric's name.
        needs_routing: Whether `update` must be given the router's ids and weights.
        num_experts: Number of experts.
        parameters: The metric's parameters, JSON-ready.
        tokens: Number of tokens so far.

    Source: docs/method.md section 3.
    """

    metric: ClassVar[str]
    needs_routing: ClassVar[bool] = False

    def __init__(
        self,
        num_experts: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(num_experts, bool) or not isinstance(num_experts, int) or num_experts < 1:
            raise InputError(f"num_experts: expected an integer of at least 1, got {num_experts!r}")
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"dtype: expected float32 or float64 (16-bit sums change choices), got {dtype}")
        self.num_experts = num_experts
        self.parameters: dict[str, Any] = {}
        self.tokens = 0
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._H: int | None = None
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, outputs: Tensor, ids: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Add the outputs of all experts for some more tokens.

        Args:
            outputs: Expert outputs before the gate weight, ``[E, t, H]``, any floating dtype. Not modified.
            ids: The router's expert ids for these tokens, ``[t, K]``, or None if the metric needs none.
            weights: The router's gate weights for these tokens, ``[t, K]``, or None likewise.

        Raises:
            InputError: A shape or dtype is wrong, H differs from the earlier updates', or an expert's outputs
                are not finite.
        """
        self._check_outputs(outputs)
        if self.needs_routing:
            self._check_routing(outputs.shape[1], ids, weights)
        if outputs.shape[1] == 0:
            return
        if self._device is not None:
            outputs = outputs.to(self._device)
        if ids is not None and weights is not None and self.needs_routing:
            self._add(outputs, ids, weights)
        else:
            self._add(outputs)
        self.tokens += outputs.shape[1]

    @torch.no_grad()
    def merge(self, other: Self) -> None:
        """Add the sums of ``other``, which stays as it is.

        Raises:
            InputError: ``other`` has another metric, number of experts, hidden size or other parameters.
        """
        mine = (self.metric, self.num_experts, self.parameters)
        theirs = (getattr(other, "metric", type(other).__name__), other.num_experts, other.parameters)
        if mine != theirs:
            raise InputError(f"merge: expected an accumulator of {mine}, got one of {theirs}")
        if None not in (self._H, other._H) and self._H != other._H:
            raise InputError(f"merge: expected outputs of H = {self._H}, got H = {other._H}")
        for name, value in other._closed_sums().items():
            self._sums[name] += value
        self._H = self._H if self._H is not None else other._H
        self.tokens += other.tokens

    @torch.no_grad()
    def finalize(self) -> LayerSimilarity:
        """Return the similarities of all tokens so far; updates may follow.

        Raises:
            DataError: No token was taken.
        """
        if self.tokens == 0:
            raise DataError(f"{self.metric}: expected at least one token, got none; call update first")
        return self._similarity(self._closed_sums())

    @torch.no_grad()
    def since(self, earlier: Mapping[str, Tensor]) -> LayerSimilarity:
        """Return the similarities of the tokens that came after an earlier `state` of this accumulator.

        Args:
            earlier: That state. Tokens that waited in it for their window count as later ones.

        Raises:
            DataError: No token came since.
        """
        later = copy.copy(self)
        later._sums = {name: value - earlier[f"{self.metric}.{name}"] for name, value in self._sums.items()}
        later.tokens = self.tokens - int(earlier["tokens"][0])
        return later.finalize()

    def state(self) -> dict[str, Tensor]:
        """Return everything that was accumulated, as tensors that `load_state` reads back."""
        sums = {f"{self.metric}.{name}": value.clone() for name, value in self._sums.items()}
        return sums | {"tokens": torch.tensor([self.tokens, self._H or 0], device="cpu")}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``; what was accumulated here is replaced.

        Raises:
            InputError: The state belongs to another metric or number of experts.
        """
        names = {f"{self.metric}.{name}": name for name in self._sums} | {"tokens": "tokens"}
        if set(state) != set(names):
            raise InputError(
                f"state: expected the entries [{name_some(sorted(names))}], got [{name_some(sorted(state))}]"
            )
        for key, name in names.items():
            if name != "tokens" and state[key].shape != self._sums[name].shape:
                expected, got = list(self._sums[name].shape), list(state[key].shape)
                raise InputError(f"state {key}: expected shape {expected}, got {got}")
        self._sums = {
            name: state[key].double().cpu().clone() for key, name in names.items() if name != "tokens"
        }
        self.tokens, H = (int(value) for value in state["tokens"])
        self._H = H or None

    @abstractmethod
    def _add(self, outputs: Tensor, *routing: Tensor) -> None:
        """Add checked, non-empty outputs ``[E, t, H]`` to the sums; ``routing``: ids, weights if needed."""

    @abstractmethod
    def _similarity(self, sums: dict[str, Tensor]) -> LayerSimilarity:
        """Compute the result from the sums of at least one token."""

    def _closed_sums(self) -> dict[str, Tensor]:
        """Return the sums of all tokens taken; for metrics that hold some tokens back."""
        return self._sums

    def _slices(self, outputs: Tensor) -> Iterator[slice]:
        """Yield slices of the token axis that are small enough to be copied."""
        E, t, H = outputs.shape
        return blocks(t, E * H, SLICE_ELEMENTS)

    def _sum(self, name: str, value: Tensor) -> None:
        """Add ``value``, ``[E, E]``, to a sum."""
        self._sums[name] += self._finite(value)

    def _finite(self, value: Tensor) -> Tensor:
        """Return ``value`` as float64 on the CPU; refuse what is not finite, naming the experts."""
        wide = value.cpu().double()
        if not bool(torch.isfinite(wide).all()):
            bad = (~torch.isfinite(wide.diagonal())).nonzero().flatten().tolist()
            raise InputError(
                f"outputs: expected finite values, got NaN, infinity or values whose squares overflow "
                f"{self._dtype} from experts [{name_some(bad)}]; run the model in bfloat16 or float32"
            )
        return wide

    def _check_outputs(self, outputs: Tensor) -> None:
        if outputs.ndim != 3 or outputs.shape[0] != self.num_experts or outputs.shape[2] == 0:
            raise InputError(
                f"outputs: expected shape [E, t, H] with E = {self.num_experts} experts, "
                f"got {list(outputs.shape)}"
            )
        if not outputs.is_floating_point():
            raise InputError(f"outputs: expected a floating-point dtype, got {outputs.dtype}")
        if self._H not in (None, outputs.shape[2]):
            raise InputError(f"outputs: expected H = {self._H} as before, got H = {outputs.shape[2]}")
        self._H = outputs.shape[2]

    def _check_routing(self, t: int, ids: Tensor | None, weights: Tensor | None) -> None:
        if ids is None or weights is None:
            raise InputError(f"{self.metric}: needs the router's ids and weights for these tokens, got none")
        if ids.ndim != 2 or ids.shape[0] != t or ids.shape != weights.shape:
            raise InputError(
                f"ids and weights: expected the same shape [t, K] with t = {t}, "
                f"got {list(ids.shape)} and {list(weights.shape)}"
            )
        if ids.is_floating_point() or ids.dtype == torch.bool or not weights.is_floating_point():
            raise InputError(
                "ids and weights: expected integers and floating-point numbers, "
                f"got {ids.dtype} and {weights.dtype}"
            )
        if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
            raise InputError("weights: expected finite gate weights of at least 0")


def blocks(count: int, size: int, elements: int) -> Iterator[slice]:
    """Yield slices that cover ``range(count)``, each of about ``elements`` at ``size`` elements per entry."""
    step = max(1, elements // size)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def cached_elements(device: torch.device) -> int:
    """Return how many elements a pass should take at once: what fits a CPU's cache, else a complete slice."""
    return CACHED_ELEMENTS if device.type == "cpu" else SLICE_ELEMENTS


def gram(rows: Tensor) -> Tensor:
    """Return the inner products of all pairs of rows ``[E, n]``: ``[E, E]``, symmetric.

    On a CPU only the upper triangle is multiplied, in strips of rows that are wide enough for a fast product:
    about an eighth of the time less at E = 128, a fifth at E = 256.
    """
    if rows.device.type != "cpu" or len(rows) <= GRAM_STRIP:
        return rows @ rows.T
    products = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), GRAM_STRIP):
        end = start + GRAM_STRIP
        products[start:end, start:] = rows[start:end] @ rows[start:].T
        products[end:, start:end] = products[start:end, end:].T
    return products


def zeros(num_experts: int) -> Tensor:
    """Return an empty sum: ``[E, E]``, float64, on the CPU."""
    return torch.zeros(num_experts, num_experts, dtype=torch.float64, device="cpu")


def as_layer(similarity: Tensor, scale: Tensor | None = None) -> LayerSimilarity:
    """Round float64 similarities ``[E, E]`` to float32, clamped to [0, 1], with a diagonal of exactly 1.

    NaN, a similarity that is not known, stays NaN.
    """
    result = similarity.clamp(0, 1)
    result.fill_diagonal_(1)
    return LayerSimilarity(result.float(), None if scale is None else scale.float())
