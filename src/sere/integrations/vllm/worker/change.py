"""Change the settings of one worker between two steps, in step with the other workers of its engine.

A change has two parts. Each worker first prepares it on the host, where everything that can fail does, and
says what state it leads to. Only if all say the same does each write it, with copies into tensors that exist.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sere.config.change import changed
from sere.integrations.vllm import methods
from sere.integrations.vllm.changes import SWITCHES, check_names
from sere.integrations.vllm.worker.proposal import Proposal
from sere.integrations.vllm.worker.start_log import warn_of_settings
from sere.integrations.vllm.worker.state import WorkerState

logger = logging.getLogger("vllm.sere")


class Changes:
    """One worker's side of `sere.integrations.vllm.client.agreement`.

    Args:
        state: The worker's state, prepared.
    """

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._proposal: Proposal | None = None

    def __call__(self, step: str, argument: Any = None) -> dict[str, Any]:
        """Do one step of a change; see `sere.integrations.vllm.methods`.

        Raises:
            ConfigError: A change is refused.
        """
        if step == methods.PROPOSE:
            return self._propose(argument)
        if step == methods.COMMIT:
            return self._commit(argument)
        return self._stop() if step == methods.STOP else self._withdraw()

    def _propose(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        self._proposal = None
        self._proposal = proposal_of(self._state, changes)
        return {"fingerprint": self._proposal.fingerprint}

    def _commit(self, common: str) -> dict[str, Any]:
        state, proposal = self._state, self._proposal
        if proposal is None or proposal.fingerprint["common"] != common:
            return {"stale": True}
        self._proposal = None
        state.commit(proposal)
        if state.enabled and state.speaks:
            warn_of_settings(state)
        return settings_of(state)

    def _withdraw(self) -> dict[str, Any]:
        self._proposal = None
        return {}

    def _stop(self) -> dict[str, Any]:
        self._proposal, self._state.enabled = None, False
        logger.error(
            "sere: re-routing is off: the ranks of this engine hold different settings; restart the engine"
        )
        return {}


def proposal_of(state: WorkerState, changes: Mapping[str, Any]) -> Proposal:
    """Prepare changes in one worker.

    Args:
        state: The worker's state.
        changes: As for `configure`.

    Raises:
        ConfigError: A setting cannot be changed, or its value is refused.
    """
    check_names(changes)
    switches = {name: changes.get(name, getattr(state, name)) for name in SWITCHES}
    values = {name: value for name, value in changes.items() if name not in SWITCHES}
    return state.propose(changed(state.given, values), **switches)


def settings_of(state: WorkerState) -> dict[str, Any]:
    """Return the current settings and switches of a worker, JSON-ready."""
    return state.config.to_mapping() | {name: getattr(state, name) for name in SWITCHES}
