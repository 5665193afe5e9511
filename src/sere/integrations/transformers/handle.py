"""What ``apply`` returns: statistics, per-call settings, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sere.config import RerouteConfig
from sere.errors import InputError
from sere.flatten import Flattening
from sere.integrations.activity import Activity
from sere.integrations.transformers.call import CurrentCall
from sere.integrations.transformers.guard import Guard
from sere.integrations.transformers.hooks import HookedLayer
from sere.integrations.transformers.live_settings import LiveSettings
from sere.policies.base import Policy
from sere.reroute.checks import ID_DTYPES, as_row_budgets
from sere.reroute.expert_counts import ExpertCounts
from sere.reroute.stats import LayerStats, layer_stats, read_counters


class Handle:
    """Re-routing that is active on a model, until `remove` or the end of a ``with`` block.

    If nothing was re-routed, one warning of the logger ``sere`` says why: when the handle is removed, when
    `stats` is read, and once in use.

    Attributes:
        top_k: K, routed slots per token; the largest of any layer.
        num_experts: E, experts of a layer; the largest of any layer.
    """

    def __init__(
        self,
        guard: Guard,
        call: CurrentCall,
        hooks: list[RemovableHandle],
        layers: Sequence[HookedLayer],
        live: LiveSettings | None,
    ) -> None:
        self._guard, self._call, self._hooks, self._layers, self._live = guard, call, hooks, layers, live
        self.top_k, self.num_experts = guard.top_k, guard.num_experts
        self._blocks = 0

    def __enter__(self) -> Self:
        """Begin a block, at whose end the hooks are removed; of blocks within blocks the outermost counts.

        Raises:
            InputError: The handle was removed.
        """
        self._refuse_removed()
        self._blocks += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._blocks -= 1
        if self._blocks == 0:
            # After an error, a warning would only distract from it.
            self._remove(warn=error is None)

    def _refuse_removed(self) -> None:
        if not self.active:
            raise InputError(
                "handle: it was removed (at the end of a with block, or by remove()) and no longer "
                "re-routes; call sere.apply again"
            )

    @property
    def policy(self) -> Policy:
        """The rule that changes the routing."""
        return self._guard.policy

    @property
    def layers(self) -> Sequence[HookedLayer]:
        """The layers as their hooks see them, for measurements; not part of the stable interface."""
        return self._layers

    @property
    def config(self) -> RerouteConfig | None:
        """The settings, a tier's numbers among them; None if a policy without settings was given."""
        return self.policy.config

    def configure(self, **settings: Any) -> None:
        """Change settings from the next step on; compiled code and captured graphs read the new ones.

        A tier replaces every ``active_experts`` that was given, and ``active_experts`` replaces the tier.

        Args:
            **settings: ``tier="fast"``, ``active_experts=24``, ``active_experts={0: 32}`` (these layers
                only), ``select_top_k``, ``threshold``, ``min_gain``, ``layers`` or ``keep``.

        Raises:
            InputError: The handle was removed, or re-routing was applied with a policy, whose settings are
                fixed.
            ConfigError: A setting is refused, or cannot change in place; nothing has changed then.
        """
        self._refuse_removed()
        if self._live is None:
            raise InputError(
                f"handle: the settings of the policy {self.policy.name!r} are fixed; give apply a table and "
                "settings instead of a policy, or remove the handle and apply again"
            )
        self._guard.policy = self._live.change(self._layers, settings)
        self._call.follow(self._guard.policy, [layer.shape for layer in self._layers])
        self._guard.restart()

    @property
    def active(self) -> bool:
        """Whether the hooks are set."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Take every hook off the model; a second call does nothing. `stats` stays readable."""
        self._remove(warn=True)

    def _remove(self, *, warn: bool) -> None:
        active = self.active
        self._call.stop()
        while self._hooks:
            self._hooks.pop().remove()
        if warn and active:
            self._guard.warn()

    def activity(self) -> Activity:
        """Return what was seen since the statistics began; the host waits for the device."""
        return self._guard.activity()

    def why_nothing_changed(self) -> str | None:
        """Return one sentence that says why no slot was re-routed, or None if one was; waits for the device.

        The policy ``off`` changes nothing on purpose: always None.
        """
        return self._guard.why()

    @property
    def quiet(self) -> bool:
        """Whether nothing is logged, because the caller reads `why_nothing_changed`."""
        return self._guard.quiet

    @quiet.setter
    def quiet(self, value: bool) -> None:
        self._guard.quiet = value

    @property
    def counts_all(self) -> bool:
        """Whether `stats` count also steps that surely change nothing, such as those of one row.

        Such a step is left alone by default: the model runs as without re-routing. Counted, it takes as long
        as any other; set this to True for measurements of experts, not of time.
        """
        return self._call.counts_all

    @counts_all.setter
    def counts_all(self, value: bool) -> None:
        self._call.counts_all = bool(value)

    @property
    def enabled(self) -> bool:
        """Whether the next call is re-routed; set it to False to run the model as it was, hooks in place.

        Compiled code obeys it, after one more compilation.

        Raises:
            InputError: On setting it to True once the handle was removed.
        """
        return self._call.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value:
            self._refuse_removed()
        self._call.enabled = bool(value)

    @property
    def row_budgets(self) -> Tensor | None:
        """Budgets of the rows of the batch, ``[B]``, from the next step on; None for the policy's own.

        A budget of K or more protects its row: it keeps its experts, which others may use. A negative
        one says that the row is padding or has finished: it does not vote, and its output means nothing.
        Beam search has one row per beam.

        Raises:
            InputError: On setting what is not one dimension of integers. A length that is not the
                batch's is found at the next step.
        """
        return self._call.row_budgets

    @row_budgets.setter
    def row_budgets(self, budget: Sequence[int] | Tensor | None) -> None:
        values = as_row_budgets(budget)
        if values is not None and (values.ndim != 1 or values.dtype not in ID_DTYPES):
            raise InputError(
                "row_budgets: expected one integer per row of the batch, "
                f"got {values.dtype} of shape {list(values.shape)}"
            )
        self._call.row_budgets = values
        self._guard.own_budgets |= values is not None

    def stats(self) -> list[LayerStats]:
        """Read the counters of all layers; this is where the host waits for the device."""
        self._guard.warn()
        layers = self._guard.layers
        read = read_counters([layer.counters for layer in layers])
        return [layer_stats(layer.index, layer.name, sums) for layer, sums in zip(layers, read, strict=True)]

    def expert_counts(self) -> list[ExpertCounts]:
        """Return how often each expert of each layer was chosen and ran; the host waits for the device.

        Raises:
            InputError: That is not counted.
        """
        counted = [
            ExpertCounts.read(layer.index, layer.name, layer.experts)
            for layer in self._guard.layers
            if layer.experts is not None
        ]
        if not counted:
            raise InputError(
                "expert_counts: expected a handle that counts the uses of each expert, but this one does "
                "not; call sere.apply(model, count_experts=True, ...)"
            )
        return counted

    def flattening(self) -> Flattening:
        """Return whether re-routed steps compute only the pairs of a row and an expert that carry weight."""
        return self._guard.flattening()

    def reset_stats(self) -> None:
        """Set all counters to zero."""
        self._guard.reset()
        for layer in self._guard.layers:
            layer.counters.zero_()
            layer.flat.counts.reset()
            if layer.experts is not None:
                layer.experts.zero_()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a removed handle with the same statistics: the copy of a model is not re-routed."""
        return type(self)(self._guard, self._call.stopped(), [], (), None)

    def __reduce__(self) -> NoReturn:
        """Refuse to be saved: hooks belong to the model in this process.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "handle: re-routing belongs to the model in this process and cannot be saved or sent to another "
            "process; delete the attribute that holds the handle first, and call sere.apply after loading"
        )
