"""What is known about the running requests, and which rows of a step belong to which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sere.integrations.vllm.tiers import NOTHING, OFF, PROTECTED, Allowed, Asked, parse_request
from sere.reroute.constants import LAYER_BUDGET


class StepRows(NamedTuple):
    """What the rows of a step are.

    Attributes:
        budgets: Of every row, ``[N]``, int32: ``LAYER_BUDGET`` where the request has no S of its own.
        decoding: How many requests decode, those with ``"off"`` among them.
        tiers: What the decoding requests without ``"off"`` ask for; None stands for the engine's settings.
    """

    budgets: npt.NDArray[np.int32]
    decoding: int
    tiers: frozenset[str | None]

    def keeping_all(self) -> StepRows:
        """Return the same rows for a step that counts the experts of those that decode and re-routes none."""
        budgets = np.where(self.budgets == PROTECTED, PROTECTED, LAYER_BUDGET).astype(np.int32)
        return StepRows(budgets, self.decoding, frozenset({OFF}))

    def least_budget(self, layers_least: int) -> int:
        """Return the smallest S of any row.

        Args:
            layers_least: The smallest S of any layer, for rows without one of their own.
        """
        if self.budgets.min() != LAYER_BUDGET:
            return int(self.budgets.min())
        return int(np.where(self.budgets == LAYER_BUDGET, layers_least, self.budgets).min())


class RequestBook:
    """What is known about the requests that are running: their prompts' lengths and what they ask for.

    Args:
        allowed: What requests may ask for.
    """

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._known: dict[str, tuple[int, Asked]] = {}
        self._with_images: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def update(self, scheduler_output: Any) -> None:
        """Take in new requests and forget finished ones.

        Args:
            scheduler_output: vLLM's ``SchedulerOutput`` of the coming step.
        """
        for name in scheduler_output.finished_req_ids:
            self._known.pop(name, None)
            self._with_images.pop(name, None)
        for request in scheduler_output.scheduled_new_reqs:
            self._known[request.req_id] = (_prompt_length(request), self._asked(request))
            if getattr(request, "mm_features", None):
                self._with_images[request.req_id] = _prompt_length(request)

    def reads_images(self, scheduler_output: Any) -> bool:
        """Whether a step computes the prompt of a request that has images or sound.

        Args:
            scheduler_output: vLLM's ``SchedulerOutput`` of the step.
        """
        if not self._with_images:
            return False
        cached = scheduler_output.scheduled_cached_reqs
        return any(
            request.req_id in self._with_images for request in scheduler_output.scheduled_new_reqs
        ) or any(
            done < self._with_images.get(name, 0)
            for name, done in zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        )

    def _asked(self, request: Any) -> Asked:
        """What a request asks for; the front end has refused bad values, so one here protects if it may."""
        params = request.sampling_params
        try:
            extra_args = getattr(params, "extra_args", None)
            return NOTHING if extra_args is None else parse_request(extra_args, self._allowed)
        except Exception:
            # Whatever it is: an error here would end the engine, with all its requests.
            return Asked(PROTECTED) if OFF in self._allowed.names else NOTHING

    def budgets(
        self,
        scheduler_output: Any,
        names: Sequence[str],
        counts: npt.NDArray[Any],
        *,
        all_phases: bool = False,
    ) -> StepRows:
        """Return the budget of every row of a step, how many requests decode, and what they ask for.

        A request is decoding if its complete prompt has been computed and it has one token scheduled
        besides drafted ones. Rows of any other request are protected: prompts, and what is computed
        again after a preemption.

        Args:
            scheduler_output: vLLM's ``SchedulerOutput`` of the step.
            names: The requests in the order of the model runner's batch.
            counts: Scheduled tokens of each, ``[len(names)]``.
            all_phases: Treat rows of prompts as decoded ones.
        """
        cached = scheduler_output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        drafts = scheduler_output.scheduled_spec_decode_tokens
        chosen = np.full(len(names), PROTECTED, dtype=np.int32)
        count, tiers = 0, set()
        for index, name in enumerate(names):
            known, done = self._known.get(name), computed.get(name)
            if known is None:
                continue
            decoding = done is not None and done >= known[0]
            if all_phases or (decoding and counts[index] == 1 + len(drafts.get(name, ()))):
                budget, tier = known[1]
                chosen[index] = LAYER_BUDGET if budget is None else budget
                count += 1
                if budget != PROTECTED:
                    tiers.add(tier)
        return StepRows(np.repeat(chosen, counts), count, frozenset(tiers))


def _prompt_length(request: Any) -> int:
    """Tokens of a new request's prompt, given as ids or as embeddings."""
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    return 0 if request.prompt_embeds is None else int(request.prompt_embeds.shape[0])
