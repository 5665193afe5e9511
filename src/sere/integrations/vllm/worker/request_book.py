"""What is known about the running requests, and which rows of a step belong to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sere.config import MOST_INT
from sere.integrations.vllm.tiers import NOTHING, OFF, PROTECTED, Allowed, Asked, parse_request
from sere.reroute.constants import LAYER_BUDGET


@dataclass(frozen=True, eq=False)
class StepRows:
    """What the rows of a step are; steps that do not differ share one.

    Attributes:
        budgets: Of every row, ``[N]``, int32: ``LAYER_BUDGET`` where the request has no S of its own.
        decoding: How many requests decode, those with ``"off"`` among them.
        tiers: What the decoding requests without ``"off"`` ask for; None stands for the engine's settings.
    """

    budgets: npt.NDArray[np.int32]
    decoding: int
    tiers: frozenset[str | None]

    @cached_property
    def alike(self) -> bool:
        """Whether every row has the layers' own S."""
        return bool((self.budgets == LAYER_BUDGET).all())

    @cached_property
    def protected(self) -> int:
        """How many rows keep their experts."""
        return int(np.count_nonzero(self.budgets == PROTECTED))

    @property
    def open(self) -> int:
        """How many rows may change; one whose request asked for an S of K or more counts, too."""
        return len(self.budgets) - self.protected

    def keeping_all(self) -> StepRows:
        """Return the same rows for a step that counts the experts of those that decode and re-routes none."""
        budgets = np.where(self.budgets == PROTECTED, PROTECTED, LAYER_BUDGET).astype(np.int32)
        return StepRows(budgets, self.decoding, frozenset({OFF}))

    def least_budget(self, layers_least: int) -> int:
        """Return the smallest S of any row.

        Args:
            layers_least: The smallest S of any layer, for rows without one of their own.
        """
        if self.alike:
            return layers_least
        if self.budgets.min() != LAYER_BUDGET:
            return int(self.budgets.min())
        return int(np.where(self.budgets == LAYER_BUDGET, layers_least, self.budgets).min())


class _Batch(NamedTuple):
    """What stays of a batch from step to step.

    Attributes:
        names: The requests in the order of the model runner's batch.
        listed: The requests in the order of the scheduler's.
        prompts: Tokens of each request's prompt, ``[len(names)]``; ``_UNKNOWN`` of one that is not known.
        order: Where each request is in ``listed``, ``[len(names)]``; behind its end if it is not there.
        wanted: The budget of each request's rows when it decodes, ``[len(names)]``, int32.
        tiers: By index, what requests ask for that ask for something.
    """

    names: list[str]
    listed: list[str]
    prompts: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    wanted: npt.NDArray[np.int32]
    tiers: dict[int, str | None]


class _Decoded(NamedTuple):
    """A step in which every request of its batch decoded one token.

    Attributes:
        rows: What its rows were.
        counts: The bytes of its counts, which are all 1: the quickest of comparisons.
        computed: The sum of what its requests had computed.
    """

    rows: StepRows
    counts: bytes
    computed: int


# Longer than any prompt: a request that is not known never decodes.
_UNKNOWN = MOST_INT


class RequestBook:
    """What is known about the requests that are running: their prompts' lengths and what they ask for.

    A step of the same batch as the one before takes a few operations on arrays, whatever its size; if all of
    its requests go on decoding, a comparison of lists and a sum.

    Args:
        allowed: What requests may ask for.
    """

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._prompts: dict[str, int] = {}
        # Of few requests, as a rule.
        self._asking: dict[str, Asked] = {}
        self._with_images: dict[str, int] = {}
        self._batch: _Batch | None = None
        self._decoded: _Decoded | None = None

    def __len__(self) -> int:
        return len(self._prompts)

    def update(self, scheduler_output: Any) -> None:
        """Take in new requests and forget finished ones.

        Args:
            scheduler_output: vLLM's ``SchedulerOutput`` of the coming step.
        """
        for name in scheduler_output.finished_req_ids:
            self._batch = None
            self._prompts.pop(name, None)
            self._asking.pop(name, None)
            self._with_images.pop(name, None)
        for request in scheduler_output.scheduled_new_reqs:
            self._batch = None
            self._prompts[request.req_id] = _prompt_length(request)
            self._asking.pop(request.req_id, None)
            asked = self._asked(request)
            if asked != NOTHING:
                self._asking[request.req_id] = asked
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
        drafts = scheduler_output.scheduled_spec_decode_tokens
        total, last = sum(cached.num_computed_tokens), self._decoded
        if drafts or all_phases or self._batch is None:
            last = None
        if last is not None and self._goes_on(last, total, names, counts, len(cached.req_ids)):
            self._decoded = _Decoded(last.rows, last.counts, total)
            return last.rows
        batch = self._batch
        if batch is None or batch.names != names or batch.listed != cached.req_ids:
            self._batch = batch = self._read(names, cached.req_ids)
        if all_phases:
            decoding = batch.prompts < _UNKNOWN
        else:
            # A request that the scheduler does not list is new: nothing of it has been computed.
            known = np.full(len(cached.req_ids) + 1, -1, dtype=np.int64)
            known[:-1] = np.fromiter(cached.num_computed_tokens, np.int64, len(cached.req_ids))
            computed = known[batch.order]
            tokens: Any = 1
            if drafts:
                tokens = [1 + len(drafts.get(name, ())) for name in names]
            decoding = (computed >= batch.prompts) & (counts == tokens)
        chosen = np.where(decoding, batch.wanted, np.int32(PROTECTED))
        count = int(np.count_nonzero(decoding))
        asking = [index for index in batch.tiers if decoding[index]]
        tiers = {batch.tiers[index] for index in asking if batch.wanted[index] != PROTECTED}
        if count > len(asking):
            tiers.add(None)
        rows = StepRows(np.repeat(chosen, counts), count, frozenset(tiers))
        # Without drafts, each of them has one row.
        all_decode = not (drafts or all_phases) and count == len(names) == len(batch.listed)
        self._decoded = _Decoded(rows, counts.tobytes(), total) if all_decode else None
        return rows

    def _goes_on(
        self, last: _Decoded, total: int, names: Sequence[str], counts: npt.NDArray[Any], listed: int
    ) -> bool:
        """Whether all requests of the last step, which decoded there, went on by one token and decode again.

        None can have gone on by more than the one token that it was given. So if all together went on by as
        many tokens as they are, none has been set back, which would make its next rows parts of a prompt.

        Args:
            last: That step.
            total: The sum of what those have computed that the scheduler lists.
            names: The requests in the order of the model runner's batch.
            counts: Scheduled tokens of each, ``[len(names)]``.
            listed: How many the scheduler lists; if as many as the batch has, the same ones.
        """
        assert self._batch is not None
        return (
            total == last.computed + len(names)
            and listed == len(names)
            and self._batch.names == names
            and counts.tobytes() == last.counts
        )

    def _read(self, names: Sequence[str], listed: Sequence[str]) -> _Batch:
        """Look up the requests of a batch."""
        count, where = len(names), {name: index for index, name in enumerate(listed)}
        prompts = np.fromiter(map(self._prompts.get, names, repeat(_UNKNOWN)), np.int64, count)
        order = np.fromiter(map(where.get, names, repeat(len(listed))), np.int64, count)
        wanted = np.full(count, LAYER_BUDGET, dtype=np.int32)
        tiers: dict[int, str | None] = {}
        if self._asking:
            for index, name in enumerate(names):
                asked = self._asking.get(name)
                if asked is not None:
                    wanted[index] = LAYER_BUDGET if asked.budget is None else asked.budget
                    tiers[index] = asked.tier
        return _Batch(list(names), list(listed), prompts, order, wanted, tiers)


def _prompt_length(request: Any) -> int:
    """Tokens of a new request's prompt, given as ids or as embeddings."""
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    return 0 if request.prompt_embeds is None else int(request.prompt_embeds.shape[0])
