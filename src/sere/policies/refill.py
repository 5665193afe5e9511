"""What rules that choose experts again share: refilling slots, keeping sums, keeping rows."""

from __future__ import annotations

import torch
from torch import Tensor

from sere.policies.baseline import LayerBatch
from sere.reroute import Routing
from sere.reroute.slots import members


def renormalized(new: Tensor, old: Tensor, valid: Tensor) -> Tensor:
    """Scale each row's valid weights so that they sum to what the row's valid weights summed to.

    Rows of a router that normalizes keep the sum 1, rows of one that does not keep theirs. Where one of the
    two sums is 0, or is not finite, the weights are left as they are.

    Args:
        new: ``[T, K]``, float64; the new weights, 0 in freed slots.
        old: ``[T, K]``, floating point; the router's weights.
        valid: ``[T, K]``, bool.
    """
    before = torch.where(valid, old.double(), 0.0).sum(dim=1, keepdim=True)
    after = torch.where(valid, new, 0.0).sum(dim=1, keepdim=True)
    factor = before / after
    factor = torch.where((factor != 0) & torch.isfinite(factor) & torch.isfinite(after), factor, 1.0)
    return torch.where(valid, new * factor, new)


def finish(batch: LayerBatch, new_ids: Tensor, new_weights: Tensor) -> Routing:
    """Keep protected rows and invalid slots, send padding to an expert that runs, restore the dtypes.

    Args:
        batch: The step.
        new_ids: Ids of the valid slots, ``[T, K]``.
        new_weights: Weights of the valid slots, ``[T, K]``, float64; 0 in freed slots.

    Returns:
        New ids and weights; the router's own where no expert runs for any real row.

    Source: docs/method.md section 4, step 8.
    """
    ids, weights = batch.ids, batch.weights
    changed = batch.changeable
    out_ids = torch.where(changed, new_ids, ids.long())
    out_weights = torch.where(changed, new_weights, weights.double())
    active = members(out_ids, batch.valid & (out_weights != 0), batch.num_experts)
    lowest = torch.where(active, torch.arange(batch.num_experts, device=ids.device), batch.num_experts).amin()
    padding = batch.inside & ~batch.real[:, None]
    out_ids = torch.where(padding, lowest, out_ids)
    out_weights = torch.where(padding, 0.0, out_weights)
    some = lowest < batch.num_experts
    return Routing(
        torch.where(some, out_ids, ids.long()).to(ids.dtype),
        # Slots that pass through keep their bits, whatever these are.
        torch.where(some & (changed | padding), out_weights.to(weights.dtype), weights),
    )


def drop_slots(batch: LayerBatch, kept: Tensor, *, renormalize: bool) -> Routing:
    """Free the valid slots that are not kept: weight 0, and the id of the row's heaviest kept slot.

    A row that keeps none gets the lowest expert that runs in the step. So freed slots read nothing new.

    Args:
        batch: The step.
        kept: ``[T, K]``, bool: valid slots.
        renormalize: Whether the weights of kept slots are scaled to the row's old sum.
    """
    E = batch.num_experts
    running = members(batch.ids, torch.where(batch.protected[:, None], batch.valid, kept), E)
    lowest = running.long().argmax().expand(len(kept), 1)
    safe = torch.where(batch.inside, batch.ids.long(), 0)
    new_ids = torch.where(kept, safe, _heaviest_kept(batch, safe, kept, lowest))
    new_weights = torch.where(kept, batch.weights.double(), 0.0)
    if renormalize:
        new_weights = renormalized(new_weights, batch.weights, batch.valid)
    return finish(batch, new_ids, new_weights)


def refill(batch: LayerBatch, gates: Tensor, allowed: Tensor) -> Routing:
    """Let each row choose its best experts again, inside ``allowed``.

    A slot whose expert is allowed keeps it: the row's own choice is the best of all experts, so it is
    the best of fewer. The other slots take, by gate, the row's best allowed experts that it does not
    have; when there are none left, the row's heaviest kept expert with weight 0, which reads nothing
    new. If all gates of a row's final experts are 0, these experts get equal weights.
    Weights are renormalized to the row's old sum.

    Args:
        batch: The step.
        gates: ``[T, E]``, float64; weights that the router would give, on the scale of the weights.
        allowed: ``[E]``, bool.
    """
    ids, weights = batch.ids, batch.weights
    E = batch.num_experts
    safe = torch.where(batch.inside, ids.long(), 0)
    keeps = batch.valid & allowed[safe]
    needs = batch.valid & ~keeps
    own = torch.zeros(ids.shape[0], E + 1, dtype=torch.bool, device=ids.device)
    own = own.scatter(1, torch.where(batch.valid, safe, E), torch.ones_like(batch.valid))[:, :E]
    free = torch.where(allowed & ~own, gates, -torch.inf)
    best, order = free.sort(dim=1, descending=True, stable=True)
    # The r-th slot of a row that needs an expert takes the row's r-th best free one.
    rank = needs.long().cumsum(dim=1) - 1
    # A row that came with repeated ids may need more than there are.
    exists, rank = rank < E, rank.clamp(0, E - 1)
    found = needs & exists & (best.gather(1, rank) > -torch.inf)
    spare = _heaviest_kept(batch, safe, keeps, order[:, :1])
    new_ids = torch.where(found, order.gather(1, rank), torch.where(needs, spare, safe))
    new_weights = torch.where(found, best.gather(1, rank), torch.where(needs, 0.0, weights.double()))
    some = (batch.valid & (new_weights != 0)).any(dim=1, keepdim=True)
    new_weights = torch.where(found & ~some, 1.0, new_weights)
    new_weights = renormalized(new_weights, weights, batch.valid)
    return finish(batch, new_ids, new_weights)


def _heaviest_kept(batch: LayerBatch, ids: Tensor, keeps: Tensor, fallback: Tensor) -> Tensor:
    """The id in each row's heaviest kept slot, ``[T, 1]``; ``fallback`` where a row keeps none."""
    K = ids.shape[1]
    slot = torch.where(keeps, batch.ranks, K).argmin(dim=1, keepdim=True)
    return torch.where(keeps.any(dim=1, keepdim=True), ids.gather(1, slot), fallback)
