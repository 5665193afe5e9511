"""What the rivals share: which rows and slots count, and refilling slots from a set of experts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sere.errors import ConfigError, InputError
from sere.policies.base import Policy, count
from sere.reroute import Routing
from sere.reroute.batch import TokenBatch
from sere.reroute.checks import as_row_budgets, check_batch
from sere.reroute.slots import has_weight, members, real_rows, weight_ranks


@dataclass(frozen=True, slots=True)
class Rows:
    """A step's rows and slots, sorted out; docs/method.md section 4, steps 1 and 2.

    Attributes:
        num_experts: Number of experts.
        real: ``[T]``, bool; rows that are not padding.
        protected: ``[T]``, bool; real rows with a budget of K or more.
        inside: ``[T, K]``, bool; slots with an id in [0, E).
        valid: ``[T, K]``, bool; such slots of real rows whose weight is neither 0 nor NaN.
        ranks: ``[T, K]``, int64; 0 for a row's heaviest valid slot (ties: the lower slot).
    """

    num_experts: int
    real: Tensor
    protected: Tensor
    inside: Tensor
    valid: Tensor
    ranks: Tensor


def sort_out(
    ids: Tensor, weights: Tensor, E: int, row_budgets: Tensor | None, num_tokens: Tensor | int | None
) -> Rows:
    """Tell real rows and valid slots from the others.

    Args:
        ids: ``[T, K]``, integers.
        weights: ``[T, K]``, floating point.
        num_experts: Number of experts.
        row_budgets: ``[T]``, integers, or None; negative marks padding, K or more protects.
        num_tokens: N, or None for T.
    """
    real = real_rows(ids, row_budgets, num_tokens)
    protected = torch.zeros_like(real) if row_budgets is None else real & (row_budgets >= ids.shape[1])
    inside = (ids >= 0) & (ids < E)
    valid = inside & has_weight(weights) & real[:, None]
    return Rows(E, real, protected, inside, valid, weight_ranks(weights, valid))


class Rival(Policy):
    """A policy that needs to know how many experts each layer has, and chooses experts for all rows at once.

    Subclasses say in `choose` which experts the valid slots get; counting is done here.
    """

    def __init__(self) -> None:
        self._experts: dict[int, int] = {}

    def bind(self, experts: Mapping[int, int]) -> None:
        """Say how many experts each layer has; ``apply`` does this.

        Args:
            experts: E by index of the decoder layer.
        """
        self._experts = dict(experts)

    @abstractmethod
    def choose(self, step: Choice) -> Routing:
        """Return the new ids and weights of a step."""

    def route(
        self,
        layer: int,
        topk_ids: Tensor,
        topk_weights: Tensor,
        *,
        row_budgets: Tensor | Sequence[int] | None = None,
        num_tokens: Tensor | int | None = None,
        scores: Tensor | None = None,
        counters: Tensor | None = None,
    ) -> Routing:
        """Route one step of one layer; see ``Policy.route``.

        Raises:
            InputError: ``bind`` has not named the layer, or an argument is one that SERE refuses, too.
        """
        E = self._experts.get(layer)
        if E is None:
            raise InputError(
                f"policy {self.name!r}: the number of experts of layer {layer} is not known; "
                f"call bind({{{layer}: E}}) first, as sere.apply does"
            )
        budget = as_row_budgets(row_budgets, topk_ids.device if isinstance(topk_ids, Tensor) else None)
        check_batch(TokenBatch(topk_ids, topk_weights, budget, num_tokens, scores), counters)
        rows = sort_out(topk_ids, topk_weights, E, budget, num_tokens)
        result = self.choose(Choice(layer, rows, topk_ids, topk_weights, budget, scores))
        count(counters, topk_ids, result.ids, topk_weights, result.weights, real=rows.real, E=E)
        return result


class SlotRival(Rival):
    """A rival whose one number is how many slots of a row are kept.

    Args:
        select_top_k: S, at least 1.

    Raises:
        ConfigError: ``select_top_k`` is no integer of at least 1.
    """

    def __init__(self, select_top_k: int) -> None:
        super().__init__()
        self.select_top_k = check_count("select_top_k", select_top_k)

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name, "select_top_k": self.select_top_k}


@dataclass(frozen=True, slots=True)
class Choice:
    """One step of one layer, as a rival sees it; fields as in ``Policy.route``."""

    layer: int
    rows: Rows
    ids: Tensor
    weights: Tensor
    row_budgets: Tensor | None
    scores: Tensor | None


def check_count(name: str, value: object) -> int:
    """Return ``value`` if it is a number of slots or experts.

    Raises:
        ConfigError: It is not an integer of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected an integer of at least 1, got {value!r}")
    return value


def heaviest(step: Choice, select_top_k: int) -> Tensor:
    """Return the valid slots among each row's b_t heaviest, ``[T, K]`` bool."""
    budget = select_top_k if step.row_budgets is None else step.row_budgets[:, None]
    return step.rows.valid & (step.rows.ranks < budget)


def renormalized(new: Tensor, old: Tensor, valid: Tensor) -> Tensor:
    """Scale each row's valid weights so that they sum to what the row's valid weights summed to.

    Rows of a router that normalizes keep the sum 1, rows of one that does not keep theirs. Where one of the
    two sums is 0, or is not finite, the weights are left as they are.

    Args:
        new: ``[T, K]``, float64; weights that go, 0 in freed slots.
        old: ``[T, K]``, floating point; weights that came.
        valid: ``[T, K]``, bool.
    """
    before = torch.where(valid, old.double(), 0.0).sum(dim=1, keepdim=True)
    after = torch.where(valid, new, 0.0).sum(dim=1, keepdim=True)
    factor = before / after
    factor = torch.where((factor != 0) & torch.isfinite(factor) & torch.isfinite(after), factor, 1.0)
    return torch.where(valid, new * factor, new)


def finish(step: Choice, new_ids: Tensor, new_weights: Tensor) -> Routing:
    """Keep protected rows and invalid slots, send padding to an expert that runs, restore the dtypes.

    Args:
        step: The step.
        new_ids: Ids of the valid slots, ``[T, K]``.
        new_weights: Weights of the valid slots, ``[T, K]``, float64; 0 in freed slots.

    Returns:
        New ids and weights; what came, where no expert runs for a real row.

    Source: docs/method.md section 4, step 8.
    """
    rows, ids, weights = step.rows, step.ids, step.weights
    changed = rows.valid & ~rows.protected[:, None]
    out_ids = torch.where(changed, new_ids, ids.long())
    out_weights = torch.where(changed, new_weights, weights.double())
    active = members(out_ids, rows.valid & (out_weights != 0), rows.num_experts)
    lowest = torch.where(active, torch.arange(rows.num_experts, device=ids.device), rows.num_experts).amin()
    padding = rows.inside & ~rows.real[:, None]
    out_ids = torch.where(padding, lowest, out_ids)
    out_weights = torch.where(padding, 0.0, out_weights)
    some = lowest < rows.num_experts
    return Routing(
        torch.where(some, out_ids, ids.long()).to(ids.dtype),
        # Slots that pass through keep their bits, whatever these are.
        torch.where(some & (changed | padding), out_weights.to(weights.dtype), weights),
    )


def refill(step: Choice, gates: Tensor, allowed: Tensor) -> Routing:
    """Let each row choose its best experts again, inside ``allowed``.

    A slot whose expert is allowed keeps it: the row's own choice is the best of all experts, so it is
    the best of fewer. The other slots take the row's best allowed experts that it does not
    have, by gate; where there is none, the row's heaviest kept expert with weight 0, which reads nothing
    new. Where all gates of what a row ends with are 0, they count alike. Weights are renormalized to the
    row's old sum.

    Args:
        step: The step.
        gates: ``[T, E]``, float64; weights that the router would give, on the scale of the weights.
        allowed: ``[E]``, bool; includes the experts of protected rows.
    """
    rows, ids, weights = step.rows, step.ids, step.weights
    E = rows.num_experts
    safe = torch.where(rows.inside, ids.long(), 0)
    keeps = rows.valid & allowed[safe]
    needs = rows.valid & ~keeps
    own = torch.zeros(ids.shape[0], E + 1, dtype=torch.bool, device=ids.device)
    own = own.scatter(1, torch.where(rows.valid, safe, E), torch.ones_like(rows.valid))[:, :E]
    free = torch.where(allowed & ~own, gates, -torch.inf)
    best, order = free.sort(dim=1, descending=True, stable=True)
    # The r-th slot of a row that needs an expert takes the row's r-th best free one.
    place = needs.long().cumsum(dim=1) - 1
    # A row that came with repeated ids may need more than there are.
    there, place = place < E, place.clamp(0, E - 1)
    found = needs & there & (best.gather(1, place) > -torch.inf)
    spare = _heaviest_kept(rows, safe, keeps, order[:, :1])
    new_ids = torch.where(found, order.gather(1, place), torch.where(needs, spare, safe))
    new_weights = torch.where(found, best.gather(1, place), torch.where(needs, 0.0, weights.double()))
    some = (rows.valid & (new_weights != 0)).any(dim=1, keepdim=True)
    new_weights = torch.where(found & ~some, 1.0, new_weights)
    new_weights = renormalized(new_weights, weights, rows.valid)
    return finish(step, new_ids, new_weights)


def occurring(step: Choice, slots: Tensor) -> Tensor:
    """Return the experts in the chosen slots and those of protected rows, ``[E]`` bool."""
    rows = step.rows
    return members(step.ids, slots | (rows.valid & rows.protected[:, None]), rows.num_experts)


def _heaviest_kept(rows: Rows, ids: Tensor, keeps: Tensor, fallback: Tensor) -> Tensor:
    """The id in each row's heaviest kept slot, ``[T, 1]``; ``fallback`` where a row keeps none."""
    K = ids.shape[1]
    slot = torch.where(keeps, rows.ranks, K).argmin(dim=1, keepdim=True)
    return torch.where(keeps.any(dim=1, keepdim=True), ids.gather(1, slot), fallback)
