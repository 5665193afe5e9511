"""What the rivals share: which rows and slots count, and refilling slots from a set of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sere.errors import ConfigError, InputError
from sere.policies.base import Policy
from sere.reroute import Routing
from sere.reroute.batch import members, real_rows, weight_ranks


@dataclass(frozen=True, slots=True)
class Rows:
    """A step's rows and slots, sorted out; METHOD.md section 4, steps 1 and 2.

    Attributes:
        E: Number of experts.
        real: ``[T]``, bool; rows that are not padding.
        protected: ``[T]``, bool; real rows with a budget of K or more.
        inside: ``[T, K]``, bool; slots with an id in [0, E).
        valid: ``[T, K]``, bool; such slots of real rows with a weight.
        ranks: ``[T, K]``, int64; 0 for a row's heaviest valid slot (ties: the lower slot).
    """

    E: int
    real: Tensor
    protected: Tensor
    inside: Tensor
    valid: Tensor
    ranks: Tensor


def sort_out(
    ids: Tensor, weights: Tensor, E: int, row_budget: Tensor | None, num_tokens: Tensor | int | None
) -> Rows:
    """Tell real rows and valid slots from the others.

    Args:
        ids: ``[T, K]``, integers.
        weights: ``[T, K]``, floating point.
        E: Number of experts.
        row_budget: ``[T]``, integers, or None; negative marks padding, K or more protects.
        num_tokens: N, or None for T.
    """
    real = real_rows(ids, row_budget, num_tokens)
    protected = torch.zeros_like(real) if row_budget is None else real & (row_budget >= ids.shape[1])
    inside = (ids >= 0) & (ids < E)
    valid = inside & (weights != 0) & real[:, None]
    return Rows(E, real, protected, inside, valid, weight_ranks(weights, valid))


class Rival(Policy):
    """A policy that needs to know how many experts each layer has, and no more."""

    def __init__(self) -> None:
        self._experts: dict[int, int] = {}

    def bind(self, experts: Mapping[int, int]) -> None:
        """Say how many experts each layer has; ``apply`` does this.

        Args:
            experts: E by index of the decoder layer.
        """
        self._experts = dict(experts)

    def experts(self, layer: int) -> int:
        """Return E of a layer.

        Raises:
            InputError: ``bind`` has not named the layer.
        """
        if layer not in self._experts:
            raise InputError(
                f"policy {self.name!r}: the number of experts of layer {layer} is not known; "
                f"call bind({{{layer}: E}}) first, as sere.apply does"
            )
        return self._experts[layer]


def check_slots(name: str, value: object) -> int:
    """Return ``value`` if it is a number of slots or experts.

    Raises:
        ConfigError: It is not an integer of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected an integer of at least 1, got {value!r}")
    return value


def heaviest(rows: Rows, select_top_k: int, row_budget: Tensor | None) -> Tensor:
    """Return the valid slots among each row's b_t heaviest, ``[T, K]`` bool."""
    budget = select_top_k if row_budget is None else row_budget[:, None]
    return rows.valid & (rows.ranks < budget)


def renormalised(new: Tensor, old: Tensor, valid: Tensor) -> Tensor:
    """Scale each row's valid weights so that they sum to what the row's valid weights summed to.

    Rows of a router that normalises keep the sum 1, rows of one that does not keep theirs.

    Args:
        new: ``[T, K]``, float64; weights that go, 0 in freed slots.
        old: ``[T, K]``, floating point; weights that came.
        valid: ``[T, K]``, bool.
    """
    before = torch.where(valid, old.double(), 0.0).sum(dim=1, keepdim=True)
    after = torch.where(valid, new, 0.0).sum(dim=1, keepdim=True)
    factor = torch.where(after != 0, before / torch.where(after != 0, after, 1.0), 1.0)
    return torch.where(valid, new * factor, new)


def finish(
    rows: Rows, ids: Tensor, weights: Tensor, new_ids: Tensor, new_weights: Tensor, active: Tensor
) -> Routing:
    """Keep protected rows and invalid slots, send padding to an active expert, restore the dtypes.

    Args:
        rows: The step's rows.
        ids: Ids that came, ``[T, K]``.
        weights: Weights that came, ``[T, K]``.
        new_ids: Ids of the valid slots, ``[T, K]``.
        new_weights: Weights of the valid slots, ``[T, K]``, float64.
        active: ``[E]``, bool; experts that run. Where there is none, nothing changes.

    Source: METHOD.md section 4, step 8.
    """
    experts = torch.arange(rows.E, device=ids.device)
    lowest = torch.where(active, experts, rows.E).amin()
    changed = rows.valid & ~rows.protected[:, None]
    padding = rows.inside & ~rows.real[:, None]
    out_ids = torch.where(changed, new_ids, ids.long())
    out_ids = torch.where(padding, lowest, out_ids)
    out_weights = torch.where(changed, new_weights, weights.double())
    out_weights = torch.where(padding, 0.0, out_weights)
    some = lowest < rows.E
    return Routing(
        torch.where(some, out_ids, ids.long()).to(ids.dtype),
        torch.where(some, out_weights.to(weights.dtype), weights),
    )


def refill(rows: Rows, ids: Tensor, weights: Tensor, gates: Tensor, allowed: Tensor) -> Routing:
    """Let each row choose its best experts again, inside ``allowed``.

    A slot whose expert is allowed keeps it: the row's own choice is the best of all experts, so it is
    the best of fewer. The other slots take the row's best allowed experts that it does not
    have, by gate; where there is none, the row's heaviest kept expert with weight 0, which reads nothing
    new. Weights are renormalised to the row's old sum.

    Args:
        rows: The step's rows.
        ids: ``[T, K]``, integers.
        weights: ``[T, K]``, floating point.
        gates: ``[T, E]``, float64; weights that the router would give, on the scale of ``weights``.
        allowed: ``[E]``, bool; includes the experts of protected rows.
    """
    E = rows.E
    safe = torch.where(rows.inside, ids.long(), 0)
    keeps = rows.valid & allowed[safe]
    needs = rows.valid & ~keeps
    own = torch.zeros(ids.shape[0], E + 1, dtype=torch.bool, device=ids.device)
    own = own.scatter(1, torch.where(rows.valid, safe, E), torch.ones_like(rows.valid))[:, :E]
    free = torch.where(allowed & ~own, gates, -torch.inf)
    best, order = free.sort(dim=1, descending=True, stable=True)
    # The r-th slot of a row that needs an expert takes the row's r-th best free one.
    place = (needs.long().cumsum(dim=1) - 1).clamp(min=0)
    found = needs & (best.gather(1, place) > -torch.inf)
    spare = _heaviest_kept(rows, safe, keeps, order[:, :1])
    new_ids = torch.where(found, order.gather(1, place), torch.where(needs, spare, safe))
    new_weights = torch.where(found, best.gather(1, place), torch.where(needs, 0.0, weights.double()))
    new_weights = renormalised(new_weights, weights, rows.valid)
    return finish(rows, ids, weights, new_ids, new_weights, allowed)


def occurring(rows: Rows, ids: Tensor, slots: Tensor) -> Tensor:
    """Return the experts in the chosen slots and those of protected rows, ``[E]`` bool."""
    return members(ids, slots | (rows.valid & rows.protected[:, None]), rows.E)


def _heaviest_kept(rows: Rows, ids: Tensor, keeps: Tensor, fallback: Tensor) -> Tensor:
    """The id in each row's heaviest kept slot, ``[T, 1]``; ``fallback`` where a row keeps none."""
    K = ids.shape[1]
    slot = torch.where(keeps, rows.ranks, K).argmin(dim=1, keepdim=True)
    return torch.where(keeps.any(dim=1, keepdim=True), ids.gather(1, slot), fallback)
