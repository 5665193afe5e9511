"""Given tokens in either of vLLM's model runners, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from sere.engines.forced_tokens import GIVEN, PROCESSOR, ForcedTokens
from sere.errors import UnsupportedEngine

pytestmark = pytest.mark.vllm

V = 10


def params(given: list[int] | None) -> Any:
    return SimpleNamespace(extra_args=None if given is None else {GIVEN: given})


def left(logits: torch.Tensor) -> list[list[int]]:
    """The tokens that each row may still choose."""
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


ALL = list(range(V))


def test_rows_of_the_first_runner() -> None:
    """A row's token is the one after those chosen, wherever the row moves; after the last one, any."""
    processor = ForcedTokens(None, torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()
    chosen: list[list[int]] = [[], [], []]
    added = [(0, params([4, 5]), [1], chosen[0]), (1, params(None), [1], chosen[1])]
    added.append((2, params([6]), [1], chosen[2]))
    processor.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
    assert left(processor.apply(torch.zeros(3, V))) == [[4], ALL, [6]]
    chosen[0].append(-1)  # what vLLM writes until it has read the token from the device
    chosen[2].append(6)
    processor.update_state(None)
    assert left(processor.apply(torch.zeros(3, V))) == [[5], ALL, ALL]
    swap = [(0, 1, MoveDirectionality.SWAP)]
    processor.update_state(BatchUpdate(batch_size=2, removed=[2], added=[], moved=swap))
    assert left(processor.apply(torch.zeros(2, V))) == [ALL, [5]]
    processor.update_state(BatchUpdate(batch_size=1, removed=[1], added=[], moved=[]))
    logits = torch.zeros(1, V)
    assert processor.apply(logits) is logits
    assert left(logits) == [ALL]


def test_slots_of_the_second_runner() -> None:
    """The tokens that a row sees say which of its given ones is next; a slot may be given to another."""
    state = SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([3, 2, 5, 4], dtype=np.int32)))
    processor = ForcedTokens(None, state)

    def step(slots: list[int], lengths: list[int]) -> list[list[int]]:
        ctx = SimpleNamespace(idx_mapping_np=np.array(slots), seq_lens_upper_bound_np=np.array(lengths))
        return left(processor.apply(torch.zeros(len(slots), V), ctx))

    assert processor.add_request(2, params([7, 8]))
    assert processor.add_request(0, params([1]))
    assert not processor.add_request(1, params(None))
    # The prompt of slot 2 is read in parts.
    assert step([1, 2, 0], [2, 4, 3]) == [ALL, ALL, [1]]
    assert step([2, 0], [5, 4]) == [[7], ALL]
    assert step([2], [6]) == [[8]]
    assert not processor.add_request(2, params(None))
    assert step([2], [5]) == [ALL]


@pytest.mark.parametrize(
    ("state", "given"),
    [
        ((), "nothing"),
        ((object(),), "object"),
        ((1, 2), "int, int"),
        ((torch.device("cpu"), 1, 2), "device, int, int"),
    ],
    ids=["none", "unknown", "two", "three"],
)
def test_a_third_way_of_making_it_is_refused(state: tuple[Any, ...], given: str) -> None:
    """A release that makes processors otherwise would silently force no token."""
    with pytest.raises(UnsupportedEngine, match=f"from its configuration and {given}; .* as in vLLM 0.32"):
        ForcedTokens(None, *state)


def test_vllm_finds_it_by_its_name() -> None:
    """As the engine's option names it, for both runners."""
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    assert _load_logitsprocs_by_fqcns([PROCESSOR]) == [ForcedTokens]
    assert _load_v2_logitsprocs_by_fqcns([PROCESSOR]) == [ForcedTokens]
