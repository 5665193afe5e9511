"""One layer's similarities: what calibration computes, a table holds and re-routing uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sere.errors import InputError

# Sums in float32 may leave a similarity this far outside [0, 1], or a diagonal this far from 1.
TOLERANCE = 1e-4
# Similarities that differ by no more are equal but for rounding.
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class LayerSimilarity:
    """How well one expert of a layer replaces another.

    Attributes:
        similarity: ``[E, E]``, float32; row e, column p: how well p replaces e, in [0, 1]; NaN if that is
            not known, and then p never replaces e; diagonal 1.
        scale: ``[E, E]``, float32, finite, or None; the factor α by which p's output fits e's best.
        sensitivity: ``[E]``, float32, in (0, 1], or None; how much losing e's output costs, relative to the
            layer's most sensitive expert.

    Raises:
        InputError: A shape, dtype or value is wrong.

    Source: docs/method.md section 3.
    """

    similarity: Tensor
    scale: Tensor | None = None
    sensitivity: Tensor | None = None

    def __post_init__(self) -> None:
        check_similarity(self.similarity)
        if self.scale is not None:
            check_scale(self.scale, self.num_experts)
        if self.sensitivity is not None:
            check_sensitivity(self.sensitivity, self.num_experts)

    def __repr__(self) -> str:
        return (
            f"LayerSimilarity(E={self.num_experts}, scale={self.scale is not None}, "
            f"sensitivity={self.sensitivity is not None})"
        )

    @property
    def num_experts(self) -> int:
        """Number of experts of the layer."""
        return int(self.similarity.shape[0])

    @property
    def unknown(self) -> tuple[int, ...]:
        """The experts that have no known similarity to any other: they are never replaced."""
        if self.num_experts == 1:
            return ()
        known = (~self.similarity.isnan()).sum(dim=1)  # the diagonal among them
        return tuple((known == 1).nonzero().flatten().tolist())


def check_tensor(name: str, value: object) -> None:
    """Refuse an argument that is not a tensor.

    Args:
        name: The argument's name.
        value: Its value.

    Raises:
        InputError: It is not a tensor.
    """
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, got {type(value).__name__}; use torch.as_tensor")


def check_similarity(similarity: Tensor) -> None:
    """Refuse what cannot be a similarity matrix. NaN off the diagonal is a similarity that is not known.

    Raises:
        InputError: Not a tensor, not square, not float32, outside [0, 1], or the diagonal is not 1.
    """
    check_tensor("similarity", similarity)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or similarity.shape[0] == 0:
        raise InputError(f"similarity: expected a square [E, E] matrix, got shape {list(similarity.shape)}")
    if similarity.dtype != torch.float32:
        raise InputError(
            f"similarity: expected float32 (16-bit similarities change choices), got {similarity.dtype}; "
            "keep the values that calibration computed"
        )
    if bool(similarity.diagonal().isnan().any()):
        raise InputError(
            "similarity: expected a diagonal of 1, got NaN, which off the diagonal means that a similarity "
            "is not known; calibrate again"
        )
    known = similarity[~similarity.isnan()]
    low, high = float(known.min()), float(known.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise InputError(f"similarity: expected values in [0, 1], got {low:.4g} to {high:.4g}")
    worst = float((similarity.diagonal() - 1).abs().max())
    if worst > TOLERANCE:
        raise InputError(f"similarity: expected a diagonal of 1, got one off by {worst:.3g}")


def check_scale(scale: Tensor, num_experts: int) -> None:
    """Refuse what cannot be the factors of a layer with this many experts.

    Raises:
        InputError: It is not a tensor, or shape, dtype or a value is wrong.
    """
    check_tensor("scale", scale)
    E = num_experts
    if tuple(scale.shape) != (E, E):
        raise InputError(f"scale: expected shape [{E}, {E}] like the similarity, got {list(scale.shape)}")
    if scale.dtype != torch.float32:
        raise InputError(f"scale: expected float32, got {scale.dtype}")
    if not bool(torch.isfinite(scale).all()):
        raise InputError("scale: expected finite values, got NaN or infinity; calibrate again")


def check_sensitivity(sensitivity: Tensor, num_experts: int) -> None:
    """Refuse what cannot be the sensitivities of a layer with this many experts.

    Raises:
        InputError: It is not a tensor, or shape, dtype or a value is wrong.
    """
    check_tensor("sensitivity", sensitivity)
    if tuple(sensitivity.shape) != (num_experts,):
        raise InputError(
            f"sensitivity: expected shape [{num_experts}], one value an expert, got {list(sensitivity.shape)}"
        )
    if sensitivity.dtype != torch.float32:
        raise InputError(f"sensitivity: expected float32, got {sensitivity.dtype}")
    if not bool(((sensitivity > 0) & (sensitivity <= 1)).all()):
        raise InputError(
            "sensitivity: expected values above 0 and at most 1, relative to the layer's most sensitive "
            f"expert, got {float(sensitivity.min()):.4g} to {float(sensitivity.max()):.4g}; calibrate again"
        )
