"""Notice when re-routing changes nothing, and log one line that says why."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from sere.flatten import Flattening
from sere.integrations.activity import Activity, why_nothing_changed, without_numbers
from sere.integrations.transformers.flat_experts import FlatExperts
from sere.policies.base import Policy
from sere.reroute import COUNTERS
from sere.reroute.stats import read_counters
from sere.warn_once import WarnOnce

logger = logging.getLogger("sere")

# When to look at the layers' counters in use, once each: that waits for the device.
ENOUGH_STEPS = 16
ENOUGH_CALLS = 64

_STEPS = COUNTERS.index("steps")

_VERIFYING = (
    "assisted decoding (prompt lookup, a draft model) checks several tokens of one text in one step, and "
    "re-routing treats them as a batch: the output is neither that of the unmodified model nor that of "
    "plain decoding with re-routing"
)


class Counted(Protocol):
    """What a guard needs of a layer."""

    @property
    def index(self) -> int:
        """Decoder-layer index."""

    @property
    def name(self) -> str:
        """Module name of the experts."""

    @property
    def counters(self) -> Tensor:
        """One entry per name in ``COUNTERS``."""

    @property
    def experts(self) -> Tensor | None:
        """How often each expert was chosen and ran, ``[2, E]``, or None if that is not counted."""

    @property
    def flat(self) -> FlatExperts:
        """What hands the experts only what carries weight."""


class Guard:
    """Counts the calls of a model on the host and compares them with what the layers counted.

    Attributes:
        layers: The layers, which count on their device.
        policy: The rule that changes the routing.
        model: The model's class, for the log.
        top_k: K, the largest of any layer.
        num_experts: E, the largest of any layer.
        calls: Calls of the model; compiled ones are not seen.
        eligible: Of them, those whose layers may be re-routed.
        exact: Runs of the layers in such calls that could not change anything, so that nothing was routed.
        exact_rows: The most rows of such a run.
        hook_ran: Whether a layer's hook ran in such a call.
        compiled: Whether a compiler took the hooks into its code.
        warned: Whether `apply` has warned already that the settings re-route nothing.
        quiet: Whether nothing is logged, because the caller reads `why` itself.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        model: str,
        top_k: int,
        num_experts: int,
    ) -> None:
        self.layers: Sequence[Counted] = ()
        self.model, self.top_k, self.num_experts = model, top_k, num_experts
        self.policy = policy
        self._warn_once = WarnOnce(logger)
        self.warned = False
        self.quiet = False
        self.own_budgets = False
        self._used = False
        self.calls = self.eligible = 0
        self.exact = self.exact_rows = 0
        self.hook_ran = self.compiled = False

    def reset(self) -> None:
        """Forget the calls, but not that there were some, nor what was said."""
        self._used |= self.calls > 0 or self.compiled
        self.calls = self.eligible = 0
        self.exact = self.exact_rows = 0
        self.hook_ran = self.compiled = False

    def restart(self) -> None:
        """Say again what was said before other settings held, if it is still so."""
        self._warn_once = WarnOnce(logger)
        self.warned = False

    def count(self, *, eligible: bool, verifying: bool) -> None:
        """Count a call that begins; look once, after enough of them, whether anything was re-routed.

        Args:
            eligible: Whether its layers may be re-routed.
            verifying: Whether it checks the drafts of assisted decoding.
        """
        if verifying:
            self._warn("assisted", _VERIFYING)
        looking = (
            self.eligible == ENOUGH_STEPS if eligible else self.calls == ENOUGH_CALLS and self.eligible == 0
        )
        if looking and not capturing():
            self.warn()
        self.calls += 1
        self.eligible += eligible

    def count_exact(self, rows: int) -> None:
        """Count a run of the layers that cannot change anything.

        Args:
            rows: Rows that the layers see.
        """
        self.exact += 1
        self.exact_rows = max(rows, self.exact_rows)

    def activity(self) -> Activity:
        """Return what was seen; the host waits for the device."""
        return Activity.of(
            read_counters([layer.counters for layer in self.layers]),
            calls=self.calls,
            eligible=self.eligible,
            exact=self.exact,
            exact_rows=self.exact_rows,
            hook_ran=self.hook_ran,
            compiled=self.compiled,
            own_budgets=self.own_budgets,
        )

    def flattening(self) -> Flattening:
        """Return whether steps compute pairs only, and why not where no step did."""
        flats = [layer.flat for layer in self.layers]
        break_even = {
            f"{flat.num_experts} experts, {flat.top_k} slots per row": flat.break_even.points()
            for flat in flats
            if flat.break_even is not None
        }
        counts = [flat.counts.to_list() for flat in flats]
        found = Flattening.of(flats[0].setting, None, counts, break_even)
        if found.steps or found.whole:
            return found
        compiled = "compiled code has steps of fixed shapes" if self.compiled else None
        reason = next((flat.why_not for flat in flats if flat.why_not is not None), compiled)
        return replace(found, why_not=reason)

    def why(self) -> str | None:
        """Return one sentence that says why nothing was re-routed; None if something was, or for ``off``."""
        if not self.policy.changes_routing:
            return None
        return why_nothing_changed(
            self.activity(),
            self.policy.config,
            top_k=self.top_k,
            num_experts=self.num_experts,
            layers=[layer.index for layer in self.layers],
        )

    def warn(self) -> None:
        """Log the sentence, each kind of it once."""
        if self.quiet or (self.warned and self.hook_ran):
            return
        if self._used and not (self.calls or self.compiled):
            # Statistics that were reset after the last call are no sign that there was none.
            return
        if (why := self.why()) is not None:
            self._warn(without_numbers(why), why)
        elif (left := self.left_out()) is not None:
            self._warn("left out", left)

    def left_out(self) -> str | None:
        """Return one sentence about layers that no step reached while others were; None if there are none."""
        steps = {layer.name: int(layer.counters[_STEPS]) for layer in self.layers}
        names = [name for name, reached in steps.items() if not reached]
        if not names or len(names) == len(steps):
            return None
        return (
            f"{len(names)} of {len(steps)} layers ({names[0]}{', …' * (len(names) > 1)}) saw none of "
            f"{max(steps.values())} re-routed steps: their experts were replaced, or are computed without "
            "calling the hooks; remove the handle and apply again"
        )

    def _warn(self, kind: str, text: str) -> None:
        if not self.quiet:
            self._warn_once(kind, "sere: %s: %s", self.model, text)


def capturing() -> bool:
    """Whether a CUDA graph is being captured, during which the host must not wait."""
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()
