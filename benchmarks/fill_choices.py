"""Which experts a step reads: the fills of ``fill_rules.py``.

A fill is a name and a number, perhaps with a power after ``^``: ``w3`` is the sum of cubed weights,
``s4`` that of fourth powers times the expert's sensitivity. One
forward pass holds several steps at once: its rows are cut into groups of B, and each group chooses for
itself, as B rows of a batch would. Shapes: G groups, B rows, K slots, E experts; R = G x B rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fill_facts import LayerFacts

BIG = 1e9


@dataclass
class Step:
    """The rows of one forward pass of one layer, cut into groups.

    Attributes:
        ids: ``[G, B, K]``, int64.
        w: ``[G, B, K]``, float64; the gate weights.
        relative: ``[R, E]``, float64; the router's probability of each expert over the row's largest.
        facts: What calibration knows of the layer.
        M: Experts that the step may read.
        extra: The fill's own number: a threshold on masses.
    """

    ids: Tensor
    w: Tensor
    relative: Tensor
    facts: LayerFacts
    M: int
    extra: float = 0.0

    @property
    def E(self) -> int:
        """Experts of the layer."""
        return len(self.facts.energy)

    def per_expert(self, values: Tensor) -> Tensor:
        """Sum a value per slot ``[G, B, K]`` by expert: ``[G, E]``."""
        G = len(self.ids)
        total = torch.zeros(G, self.E, dtype=torch.float64)
        return total.scatter_add(1, self.ids.flatten(1), values.flatten(1))

    @property
    def top(self) -> Tensor:
        """Whether a slot is its row's heaviest, ``[G, B, K]``."""
        return torch.zeros_like(self.ids, dtype=torch.bool).scatter(2, self.w.argmax(2, keepdim=True), True)

    @property
    def occurring(self) -> Tensor:
        """The experts of the group's slots, ``[G, E]``."""
        return self.per_expert(torch.ones_like(self.w)) > 0

    @property
    def kept(self) -> Tensor:
        """The experts of the rows' heaviest slots, ``[G, E]``."""
        return self.per_expert(self.top.double()) > 0


def best_in(table: Tensor, P: Tensor) -> Tensor:
    """Return each expert's largest similarity to a member of P, ``[G, E]``; 0 without any."""
    return torch.where(P[:, None, :], table, -1.0).amax(2).clamp(min=0)


def most(step: Step, mass: Tensor, *, guaranteed: bool = True) -> Tensor:
    """Return P: the rows' heaviest, then by mass, up to M; without guarantee by mass alone."""
    occurring = step.occurring
    key = torch.where(occurring, mass, -1.0)
    kept = step.kept
    if guaranteed:
        key = torch.where(kept, key + BIG, key)
    order = key.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(step.E).expand_as(order))
    room = kept.sum(1, keepdim=True).clamp(min=step.M) if guaranteed else step.M
    return occurring & (rank < room)


def power(step: Step, p: float) -> Tensor:
    """Return the sum of the weights' powers by expert."""
    return step.per_expert(step.w**p)


def by_largest(step: Step) -> Tensor:
    """Return each expert's largest weight."""
    zero = torch.zeros(len(step.ids), step.E, dtype=torch.float64)
    return zero.scatter_reduce(1, step.ids.flatten(1), step.w.flatten(1), "amax")


def relative_power(step: Step, p: float) -> Tensor:
    """Return the sum of powers of the weights over their row's largest."""
    return step.per_expert((step.w / step.w.amax(2, keepdim=True)) ** p)


def by_gap(step: Step, value: Tensor, table: Tensor) -> Tensor:
    """Fill by value times what the best of the rows' heaviest does not explain."""
    return most(step, value * (1 - best_in(table, step.kept)))


def cover(step: Step, value: Tensor, table: Tensor) -> Tensor:
    """Add one expert after another: each the one after which the least value is unexplained."""
    P, occurring = step.kept, step.occurring
    best = best_in(table, P)
    for _ in range(step.M):
        room = P.sum(1) < step.M
        if not bool(room.any()):
            break
        gain = (value[:, :, None] * (table - best[:, :, None]).clamp(min=0)).sum(1)
        gain = torch.where(occurring & ~P, gain, -1.0)
        chosen = gain.argmax(1)
        add = room & (gain.amax(1) >= 0)
        P = P.scatter(1, chosen[:, None], P.gather(1, chosen[:, None]) | add[:, None])
        best = torch.where(add[:, None], torch.maximum(best, table[:, chosen].T), best)
    return P


def by_row_loss(step: Step, p: float, q: float) -> Tensor:
    """Fill by the rows' losses: slots count w^p times a power q of what their row would lose in all."""
    loss = step.w**p
    lost = ~step.kept.gather(1, step.ids.flatten(1)).reshape(step.ids.shape)
    whole = torch.where(lost, loss, 0.0).sum(2, keepdim=True)
    return most(step, step.per_expert(loss * whole**q))


def greedy_rows(step: Step, p: float, q: float) -> Tensor:
    """Add one expert after another: each the one that lowers the sum of (sum of lost w^p)^q most."""
    P, occurring = step.kept, step.occurring
    loss = step.w**p
    for _ in range(step.M):
        room = P.sum(1) < step.M
        if not bool(room.any()):
            break
        lost = ~P.gather(1, step.ids.flatten(1)).reshape(step.ids.shape)
        own = torch.where(lost, loss, 0.0)
        whole = own.sum(2, keepdim=True)
        gain = step.per_expert(whole**q - (whole - own).clamp(min=0) ** q)
        gain = torch.where(occurring & ~P, gain, -1.0)
        chosen = gain.argmax(1)
        add = room & (gain.amax(1) >= 0)
        P = P.scatter(1, chosen[:, None], P.gather(1, chosen[:, None]) | add[:, None])
    return P


def by_probability(step: Step, *, guaranteed: bool) -> Tensor:
    """Fill by the summed probabilities of all experts, as XShare (with the rows' heaviest) does."""
    G = len(step.ids)
    shape = (G, -1, step.E)
    gates = step.relative / step.relative.sum(1, keepdim=True)
    mass = gates.reshape(shape).sum(1)
    key = torch.where(step.kept, mass + BIG, mass) if guaranteed else mass
    order = key.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(step.E).expand_as(order))
    return rank < (step.kept.sum(1, keepdim=True).clamp(min=step.M) if guaranteed else step.M)


def by_level(step: Step, p: float) -> Tensor:
    """Take the rows' heaviest and each expert whose mass is at least the layer's level."""
    return step.kept | (step.occurring & (power(step, p) >= step.extra))


def by_left_out(step: Step, p: float) -> Tensor:
    """Leave out the lightest experts, as long as what is left out is at most a share of the rows."""
    mass = power(step, p)
    free = torch.where(step.occurring & ~step.kept, mass, BIG)
    order = free.argsort(dim=1, stable=True)
    summed = free.gather(1, order).cumsum(1)
    out = torch.zeros_like(step.kept).scatter(1, order, summed <= step.extra * step.ids.shape[1])
    return step.occurring & ~out


def _table(step: Step) -> Tensor:
    return step.facts.similarity["projection"].clamp(min=0)


# By name: what is done with the number p and the power q.
FILLS: Mapping[str, Callable[[Step, float, float], Tensor]] = {
    "w": lambda s, p, _: most(s, power(s, p)),
    "s": lambda s, p, q: most(s, power(s, p) * s.facts.sensitivity**q),
    "wmax": lambda s, *_: most(s, by_largest(s)),
    "rel": lambda s, p, _: most(s, relative_power(s, p)),
    "gap": lambda s, p, _: by_gap(s, power(s, p), _table(s)),
    "loss": lambda s, p, _: by_gap(s, power(s, p) * s.facts.energy, _table(s)),
    "cover": lambda s, p, _: cover(s, power(s, p), _table(s)),
    "free": lambda s, p, _: most(s, power(s, p), guaranteed=False),
    "row": by_row_loss,
    "rows": greedy_rows,
    "xshare": lambda s, *_: by_probability(s, guaranteed=True),
    "budget": lambda s, *_: by_probability(s, guaranteed=False),
    "level": lambda s, p, _: by_level(s, p),
    "left": lambda s, p, _: by_left_out(s, p),
}

_FORM = re.compile(r"(?P<name>[a-z]+)(?P<p>[\d.]*)(\^(?P<q>[\d.]+))?")


def fill_of(name: str) -> Callable[[Step], Tensor]:
    """Read a fill, such as ``w3`` or ``rows2^1.5``."""
    found = _FORM.fullmatch(name)
    if found is None or found["name"] not in FILLS:
        raise ValueError(f"{name!r}: expected one of {', '.join(FILLS)}, and a number")
    p, q = float(found["p"] or 1), float(found["q"] or 1)
    return lambda step: FILLS[found["name"]](step, p, q)
