"""Quality tiers: what one request may ask for, and which rows of a step are whose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sere.errors import ConfigError, did_you_mean
from sere.integrations.vllm.options import KEY

# A budget that no router's K reaches: the row keeps all its experts.
PROTECTED = 1 << 20
PADDING = -1
# An S that is beyond any router's K too, but whose rows count: the engine counts experts and re-routes none.
COUNT_ONLY_S = 1 << 19

_KEYS = ("select_top_k",)
# Characters of a wrong value that an error repeats.
_SHOWN = 200


def parse_tier(extra_args: Mapping[str, Any] | None) -> int | None:
    """Read a request's own budget.

    Args:
        extra_args: ``SamplingParams.extra_args``, which ``vllm_xargs`` of the OpenAI API becomes. Under
            ``"sere"`` stands ``"off"``, S as an integer, or ``{"select_top_k": S}``, the last also as JSON
            text, because the API's extra arguments are flat.

    Returns:
        S for the request's rows, ``PROTECTED`` for ``"off"``, or None where the engine's setting holds.

    Raises:
        ConfigError: The value is none of these.
    """
    value = (extra_args or {}).get(KEY)
    if value is None:
        return None
    if isinstance(value, str):
        if value == "off":
            return PROTECTED
        value = _decoded(value)
    if isinstance(value, Mapping):
        for key in value:
            if key not in _KEYS:
                raise ConfigError(f"sere: a request cannot set {key!r}{did_you_mean(str(key), _KEYS)}")
        value = value.get("select_top_k")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(_expected(value))
    return min(value, PROTECTED)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Besides what is no JSON: too many digits, too deep.
        raise ConfigError(_expected(text)) from None


def _expected(value: object) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):
        shown = f"{type(value).__name__} that is too large to show"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return (
        'sere: expected "off", or {"select_top_k": S} with S an integer of at least 1, '
        f"for this request, got {shown}"
    )


class StepRows(NamedTuple):
    """What the rows of a step are.

    Attributes:
        budgets: Of every row, ``[N]``, int32.
        decoding: How many requests decode, those with ``"off"`` among them.
    """

    budgets: npt.NDArray[np.int32]
    decoding: int


class RequestBook:
    """What is known about the requests that are running: their prompts' lengths and their tiers."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int | None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def update(self, scheduler_output: Any) -> None:
        """Take in new requests and forget finished ones.

        Args:
            scheduler_output: vLLM's ``SchedulerOutput`` of the coming step.
        """
        for name in scheduler_output.finished_req_ids:
            self._known.pop(name, None)
        for request in scheduler_output.scheduled_new_reqs:
            self._known[request.req_id] = (_prompt_length(request), _tier(request))

    def budgets(
        self,
        scheduler_output: Any,
        names: Sequence[str],
        counts: npt.NDArray[Any],
        default: int,
        *,
        all_phases: bool = False,
    ) -> StepRows:
        """Return the budget of every row of a step, and how many requests decode.

        A request is decoding if its whole prompt has been computed and it has one token scheduled
        besides drafted ones. Rows of any other request are protected: prompts, and what is computed
        again after a preemption.

        Args:
            scheduler_output: vLLM's ``SchedulerOutput`` of the step.
            names: The requests in the order of the model runner's batch.
            counts: Scheduled tokens of each, ``[len(names)]``.
            default: S of requests without a tier.
            all_phases: Treat rows of prompts as decoded ones.
        """
        cached = scheduler_output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        drafts = scheduler_output.scheduled_spec_decode_tokens
        chosen = np.full(len(names), PROTECTED, dtype=np.int32)
        count = 0
        for place, name in enumerate(names):
            known, done = self._known.get(name), computed.get(name)
            if known is None:
                continue
            decoding = done is not None and done >= known[0]
            if all_phases or (decoding and counts[place] == 1 + len(drafts.get(name, ()))):
                chosen[place] = min(default if known[1] is None else known[1], PROTECTED)
                count += 1
        return StepRows(np.repeat(chosen, counts), count)


def _prompt_length(request: Any) -> int:
    """Tokens of a new request's prompt, given as ids or as embeddings."""
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    return 0 if request.prompt_embeds is None else int(request.prompt_embeds.shape[0])


def _tier(request: Any) -> int | None:
    """The request's own budget; the front end has refused bad values, so one here protects."""
    params = request.sampling_params
    try:
        return None if params is None else parse_tier(getattr(params, "extra_args", None))
    except Exception:
        # Whatever it is: an error here would end the engine, with all its requests.
        return PROTECTED
