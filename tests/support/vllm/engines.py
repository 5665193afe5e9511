"""Real engines in this process: one start takes seconds instead of half a minute."""

from __future__ import annotations

import atexit
import functools
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sere.engines.in_process import in_process_engine
from tests.support.vllm.models import table_of

ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING"}
# More than any test fills; vLLM writes zeros into all of it.
_CACHE_BYTES = 2**27


@contextmanager
def engine(path: Path, sere: Any = None, **options: Any) -> Iterator[Any]:
    """Start an engine on a tiny checkpoint and end it.

    Args:
        path: The checkpoint.
        sere: Settings of re-routing, the table's path filled in and, so that few experts are left of 16,
            ``active_experts=0``; None for an engine that does not ask for it.
        **options: Further arguments of vLLM's ``LLM``.
    """
    os.environ.update(ENVIRONMENT)
    _keep_imports()
    if isinstance(sere, dict):
        sere = {"table": str(table_of(path)), "log_seconds": 0, "active_experts": 0} | sere
    defaults: dict[str, Any] = {
        "skip_tokenizer_init": True, "dtype": "bfloat16", "enforce_eager": True, "max_model_len": 256,
        "max_num_seqs": 16, "seed": 0, "enable_prefix_caching": False, "kv_cache_memory_bytes": _CACHE_BYTES,
    }  # fmt: skip
    with in_process_engine(path, sere, **(defaults | options)) as llm:
        yield llm


@functools.cache
def _keep_imports() -> None:
    """Keep what importing vLLM has made out of all later collections of garbage.

    An engine collects about nine times while it starts and ends, each time through millions of objects of
    modules: most of what a tiny engine takes. vLLM's own freezing would keep an engine that ended.
    """
    from vllm import LLM

    del LLM
    gc.collect()
    gc.freeze()
    # At the end of the process nanobind reports what was not collected.
    atexit.register(gc.unfreeze)
    for name in ("freeze", "unfreeze"):
        setattr(gc, name, lambda: None)


def prompts(count: int = 8, *, length: int = 6, vocabulary: int = 128) -> list[dict[str, list[int]]]:
    """Return different prompts of different lengths, as token ids."""
    return [
        {"prompt_token_ids": [(31 * i + 7 * j * j + j) % vocabulary for j in range(length + i % 5)]}
        for i in range(count)
    ]


def generate(llm: Any, given: Sequence[Any], *, tokens: int = 12, **params: Any) -> list[list[int]]:
    """Decode greedily and return each prompt's new tokens."""
    outputs = llm.generate(list(given), sampling(tokens=tokens, **params), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def sampling(*, tokens: int = 12, **params: Any) -> Any:
    """Return greedy sampling parameters."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, **params)
