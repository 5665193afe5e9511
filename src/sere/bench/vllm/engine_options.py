"""Options of vLLM as written on a command line, for an engine and for ``vllm serve``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sere.bench.vllm.engine_loads import EngineLoad
from sere.bench.vllm.serve_plan import ServePlan
from sere.errors import ConfigError

_FIXED: Mapping[str, str] = {
    "model": "give MODEL or --preset",
    "additional_config": "give --table and --setting",
    "dtype": "use --dtype",
    "trust_remote_code": "use --trust-remote-code",
    "enforce_eager": "use --compile",
    "seed": "use --seed",
    "enable_prefix_caching": "every block sends the same prompts, and must compute them itself",
    "skip_tokenizer_init": "requests are token ids",
}
"""Options that every timing sets itself, and what to do instead."""

OF_ENGINE: Mapping[str, str] = {
    **_FIXED,
    "async_scheduling": "each step must be timed alone; with --server the server schedules ahead",
    "disable_log_stats": "statistics would be part of a step's time",
    **dict.fromkeys(
        (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "data_parallel_size",
            "distributed_executor_backend",
            "worker_cls",
        ),
        "an engine that is timed step by step has one process; add --server",
    ),
}
"""Those of an engine that is timed step by step."""

OF_SERVER: Mapping[str, str] = {
    **_FIXED,
    "host": "the server is only for this machine",
    "port": "a free one is taken",
    "api_key": "it would lock our own requests out",
    "served_model_name": "requests name it",
    "disable_uvicorn_access_log": "log lines would be part of a step's time",
}
"""Those of a server."""


def parse_engine_options(
    texts: Iterable[str], taken: Mapping[str, str], *, command: str = "sere bench serve"
) -> dict[str, Any]:
    """Read options such as ``max_num_seqs=64``, ``quantization=fp8`` or ``kv_cache_dtype="fp8"``.

    Args:
        texts: ``KEY=VALUE`` each; a value is JSON, or else the text itself. Dashes of a key
            count as underscores, as on vLLM's own command line.
        taken: Options that cannot be given, and what to do instead.
        command: Who sets these itself.

    Raises:
        ConfigError: One is not ``KEY=VALUE``, comes twice, is among ``taken``, or its JSON is broken.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        key = name.strip().lstrip("-").replace("-", "_")
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"--engine-option {text!r}: expected KEY=VALUE, e.g. max_num_seqs=64 or quantization=fp8"
            )
        if key in taken:
            raise ConfigError(f"--engine-option {key}: {command} sets it itself; {taken[key]}")
        if key in options:
            raise ConfigError(f"--engine-option {key}: expected it once, got it twice")
        options[key] = _value(key, value.strip())
    return options


def _value(key: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        if text and text[0] not in '{["':
            return text
        raise ConfigError(f"--engine-option {key}: expected JSON or a word, got {text!r} ({error})") from None
    if value is None:
        raise ConfigError(f"--engine-option {key}: expected a value, got null; leave the option out instead")
    return value


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments of ``vllm serve``: flags for true and false, JSON for objects."""
    arguments: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(_word, value)]
        else:
            arguments += [f"--{name}", _word(value)]
    return arguments


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def start_options(
    plan: ServePlan,
    *,
    requests: int,
    longest: int,
    prompt_tokens: int,
    dtype: str,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return what every engine or server of a timing is started with.

    Args:
        plan: What is timed; its options replace our own limits on requests.
        requests: Requests at once.
        longest: Tokens of a request, prompt and answer.
        prompt_tokens: Tokens of prompts that one step must be able to take.
        dtype: Of the weights, e.g. ``"bfloat16"``.
        trust_remote_code: Whether vLLM may run Python code that comes with the checkpoint.
    """
    room = {
        "max_model_len": longest + 8,
        "max_num_seqs": requests,
        "max_num_batched_tokens": max(2048, prompt_tokens),
    }
    fixed = {
        "skip_tokenizer_init": True,
        "dtype": dtype,
        "seed": plan.seed,
        "enable_prefix_caching": False,
        "enforce_eager": not plan.compiled,
        "trust_remote_code": trust_remote_code,
    }
    return {**room, **plan.engine_options, **fixed}


def start_options_for(
    plan: ServePlan, loads: Sequence[EngineLoad], *, dtype: str, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Return what an engine of a process of its own is started with, so that it can take all loads."""
    together = [load.prompt_tokens for load in loads if load.measure == "tpot"]
    options = start_options(
        plan,
        requests=max(len(load.requests) for load in loads),
        longest=max(load.longest for load in loads),
        prompt_tokens=max(together, default=0),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    return options | {"async_scheduling": False, "disable_log_stats": True}
