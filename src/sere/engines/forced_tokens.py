"""A logits processor for vLLM: a request's tokens are given, not chosen; in either of its model runners.

vLLM imports this module by `PROCESSOR`, in each of its processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from sere.errors import UnsupportedEngine, name_some
from sere.integrations.vllm.start.versions import engine_version

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as _SlotProcessor
except ImportError:  # Older releases take processors of others in their first model runner alone.
    _SlotProcessor = object

GIVEN = "sere_given"
"""The key of a request's ``extra_args`` that holds its tokens."""


class ForcedTokens(LogitsProcessor, _SlotProcessor):  # type: ignore[misc]
    """Leaves a request no token but the next one of those given in its ``extra_args``.

    Requests without given tokens, and steps after the last given one, are left alone. vLLM takes the
    log-probabilities that it returns (``logprobs_mode="raw_logprobs"``) before it asks processors, so they
    are the model's own. It refuses processors together with speculative decoding.

    vLLM's first model runner says how its rows change and calls ``apply`` with the logits. The second one
    names requests by their slots, and calls ``apply`` with the logits and the slots of the step.

    Both constructors are those of vLLM 0.32. That of the first model runner is documented alike for 0.22. Of
    other releases nothing is known; a third constructor is refused.
    """

    def __init__(self, _: Any, *state: Any) -> None:
        """Begin without requests.

        Args:
            _: vLLM's configuration.
            *state: Of the first model runner, a device and whether memory is pinned; of the second one, the
                state of its requests.

        Raises:
            UnsupportedEngine: They are others, as in a release whose processors work in another way: then no
                token would be forced.
        """
        first = len(state) == 2 and isinstance(state[0], torch.device)
        if not first and not (len(state) == 1 and hasattr(state[0], "prompt_len")):
            given = name_some([type(one).__name__ for one in state]) or "nothing"
            raise UnsupportedEngine(
                f"vLLM {engine_version()} makes logits processors from its configuration and {given}; "
                "sere's, which gives requests their tokens, expected a device and whether memory is pinned, "
                "or the state of the requests, as in vLLM 0.32; install that, or leave out --phases decode"
            )
        self._lengths = None if first else state[0].prompt_len
        self._rows: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
        self._slots: dict[int, Sequence[int]] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False: the most likely token is another one."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests of the first model runner from row to row."""
        process_dict_updates(
            self._rows,
            batch_update,
            lambda params, _, chosen: None if (given := _given(params)) is None else (given, chosen),
        )

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take a request of the second model runner, whose slot another one may have had."""
        given = _given(sampling_params)
        self._slots.pop(req_idx, None)
        if given is not None:
            self._slots[req_idx] = given
        return given is not None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Return logits ``[rows, V]`` of which each forced row has one token left."""
        forced = list(self._by_row() if ctx is None else self._by_slot(ctx))
        if forced:
            rows, tokens = (list(values) for values in zip(*forced, strict=True))
            logits[rows] = -inf
            logits[rows, tokens] = 0.0
        return logits

    def _by_row(self) -> Iterator[tuple[int, int]]:
        """Yield rows and their tokens; the lists of chosen tokens grow as vLLM chooses."""
        for row, (given, chosen) in self._rows.items():
            if len(chosen) < len(given):
                yield row, given[len(chosen)]

    def _by_slot(self, ctx: Any) -> Iterator[tuple[int, int]]:
        """Yield rows and their tokens; a prompt that is read in parts has none until its end."""
        assert self._lengths is not None
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            given = self._slots.get(slot, ())
            step = int(ctx.seq_lens_upper_bound_np[row]) - int(self._lengths.np[slot])
            if 0 <= step < len(given):
                yield row, given[step]


PROCESSOR = f"{__name__}:{ForcedTokens.__name__}"
"""What vLLM's engine option ``logits_processors`` takes."""


def _given(params: Any) -> Sequence[int] | None:
    found: Sequence[int] | None = (params.extra_args or {}).get(GIVEN)
    return found
