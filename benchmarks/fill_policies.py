"""A rule of ``fill_rules.py`` as a policy: ``FILL/TARGET``, options of the target after commas.

Or ``rival/SPEC``: a rule that comes with sere, as for ``sere eval --setting``, on each group by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fill_choices import Step, fill_of
from fill_facts import LayerFacts
from fill_targets import TARGETS, Slots
from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.reroute import Routing, TokenBatch


def parse(rule: str) -> tuple[Callable[[Step], Tensor], Callable[[Slots], Any]]:
    """Read ``FILL/TARGET`` or ``FILL/TARGET,name=value,...``; what follows an @ in FILL is the layers'."""
    fill, _, rest = rule.partition("/")
    fill = fill.partition("@")[0]
    name, *options = rest.split(",")
    pairs = dict(option.split("=") for option in options)
    given = {key: value if key == "metric" else float(value) for key, value in pairs.items()}
    return fill_of(fill), lambda slots: TARGETS[name](slots, **given)


def by_layers(rule: str, M: int, layers: Sequence[int]) -> dict[int, int]:
    """Return M by layer; ``FILL@first=X`` gives the first layer X times the mean of all, the others less."""
    share = rule.partition("/")[0].partition("@")[2]
    if not share:
        return dict.fromkeys(layers, M)
    name, _, times = share.partition("=")
    favored = {"first": layers[:1], "last": layers[-1:], "ends": [layers[0], layers[-1]]}[name]
    most = round(float(times) * M)
    whole = M * len(layers) - most * len(favored)
    rest = [layer for layer in layers if layer not in favored]
    return {
        **dict.fromkeys(favored, most),
        **{layer: whole * (i + 1) // len(rest) - whole * i // len(rest) for i, layer in enumerate(rest)},
    }


class TallyingRouter(LayerRouter):
    """One layer of a rule; tallies the experts that its groups read, and each row's experts."""

    def __init__(self, layer: LayerShape, device: torch.device) -> None:
        super().__init__(layer, device)
        self.after = self.before = 0.0
        self.groups = self.rows = self.pairs = 0

    def tally_pairs(self, routing: Routing) -> None:
        """Count the rows, and the different experts with a weight in each."""
        R = len(routing.ids)
        used = torch.zeros(R, self.layer.num_experts, dtype=torch.bool)
        used[
            torch.arange(R)[:, None].expand_as(routing.ids)[routing.weights != 0],
            routing.ids[routing.weights != 0].long(),
        ] = True
        self.rows += R
        self.pairs += int(used.sum())


class RivalRouter(TallyingRouter):
    """One layer of a rule that comes with sere, which routes each group as a step of its own."""

    def __init__(self, policy: RivalPolicy, layer: LayerShape, device: torch.device) -> None:
        super().__init__(layer, device)
        self.B, self.inner = policy.B, policy.rule.bind(layer, device)

    def __call__(self, batch: TokenBatch) -> Routing:
        """Route one forward pass."""
        ids, weights, scores = batch.topk_ids, batch.topk_weights, batch.router_scores
        assert len(ids) % self.B == 0, (len(ids), self.B)
        assert scores is not None
        found = []
        for start in range(0, len(ids), self.B):
            rows = slice(start, start + self.B)
            routing = self.inner(TokenBatch(ids[rows], weights[rows], router_scores=scores[rows]))
            found.append(routing)
            self.groups += 1
            self.before += len(set(ids[rows].flatten().tolist()))
            self.after += len(set(routing.ids[routing.weights != 0].tolist()))
        routing = Routing(torch.cat([one.ids for one in found]), torch.cat([one.weights for one in found]))
        self.tally_pairs(routing)
        return routing


class StudyRouter(TallyingRouter):
    """One layer of a rule of this study."""

    def __init__(self, policy: StudyPolicy, layer: LayerShape, device: torch.device) -> None:
        super().__init__(layer, device)
        self.policy = policy

    def __call__(self, batch: TokenBatch) -> Routing:
        """Route one forward pass."""
        ids, weights = batch.topk_ids.long(), batch.topk_weights.double()
        policy, (R, K) = self.policy, ids.shape
        assert R % policy.B == 0, (R, policy.B)
        G = R // policy.B
        scores = batch.router_scores
        assert scores is not None
        logits = scores.double()
        relative = (logits - logits.amax(1, keepdim=True)).exp()
        facts = policy.facts[self.layer.index]
        step = Step(
            ids.reshape(G, -1, K), weights.reshape(G, -1, K), relative, facts,
            policy.M[self.layer.index], policy.extra.get(self.layer.index, 0.0),
        )  # fmt: skip
        P = policy.fill(step)
        inside = P.repeat_interleave(policy.B, 0)
        new_ids, new = policy.target(Slots(step, ids, weights, inside, ~inside.gather(1, ids)))
        self.groups += G
        self.before += float(step.occurring.sum())
        used = torch.zeros(G, step.E).scatter_add(
            1, new_ids.reshape(G, -1), (new != 0).float().reshape(G, -1)
        )
        self.after += float((used > 0).sum())
        routing = Routing(new_ids.to(batch.topk_ids.dtype), new.to(batch.topk_weights.dtype))
        self.tally_pairs(routing)
        return routing


class TallyingPolicy(Policy):
    """A rule in steps of B rows, whose routers tally.

    Args:
        B: Rows of a step.
    """

    name = "study"
    needs_scores = True

    def __init__(self, B: int) -> None:
        self.B = B
        self.routers: list[TallyingRouter] = []

    def bind(self, layer: LayerShape, device: torch.device) -> TallyingRouter:
        """Return the router of one layer."""
        self.routers.append(self._router(layer, device))
        return self.routers[-1]

    @abstractmethod
    def _router(self, layer: LayerShape, device: torch.device) -> TallyingRouter: ...

    def experts(self) -> dict[str, float]:
        """Return the mean experts of a step and layer before and after, and those of a row after."""
        rows = sum(router.rows for router in self.routers)
        groups = sum(router.groups for router in self.routers)
        return {
            "distinct_before": round(sum(router.before for router in self.routers) / groups, 3),
            "distinct_after": round(sum(router.after for router in self.routers) / groups, 3),
            "pairs_per_row": round(sum(router.pairs for router in self.routers) / rows, 3),
        }


class RivalPolicy(TallyingPolicy):
    """A rule that comes with sere.

    Args:
        rule: The rule.
        B: Rows of a step.
    """

    def __init__(self, rule: Policy, B: int) -> None:
        super().__init__(B)
        self.rule = rule

    def _router(self, layer: LayerShape, device: torch.device) -> RivalRouter:
        return RivalRouter(self, layer, device)

    def describe(self) -> dict[str, Any]:
        """Return the settings."""
        return {"policy": self.name, "rows": self.B, "rule": dict(self.rule.describe())}


class StudyPolicy(TallyingPolicy):
    """A rule with its settings.

    Args:
        rule: As `parse` reads it.
        facts: By layer index.
        B: Rows of a step.
        M: Experts that a step may read.
        extra: The fill's own number by layer.
    """

    def __init__(
        self, rule: str, facts: Mapping[int, LayerFacts], B: int, M: int, extra: Mapping[int, float]
    ) -> None:
        super().__init__(B)
        self.fill, self.target = parse(rule)
        self.facts, self.extra = facts, extra
        self.M = by_layers(rule, M, sorted(facts))

    def _router(self, layer: LayerShape, device: torch.device) -> StudyRouter:
        return StudyRouter(self, layer, device)

    def describe(self) -> dict[str, Any]:
        """Return the settings."""
        return {"policy": self.name, "rows": self.B, "active_experts": self.M}
