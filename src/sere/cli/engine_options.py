"""``--engine-option``: what a command hands on to the engine of vLLM that it starts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sere.errors import ConfigError, name_some

if TYPE_CHECKING:
    from sere.policies.spec import PolicySpec

FIXED: Mapping[str, str] = {
    "model": "give MODEL",
    "additional_config": "give --table and --setting",
    "dtype": "use --dtype",
    "trust_remote_code": "use --trust-remote-code",
    "seed": "use --seed",
    "max_num_seqs": "use --batch-size",
    "enable_prefix_caching": "every prompt must be computed",
    "skip_tokenizer_init": "it depends on what is asked",
    "data_parallel_size": "use tensor_parallel_size or pipeline_parallel_size",
}
"""Options that every evaluation sets itself, and what to do instead."""

FIXED_BY_SCORING: Mapping[str, str] = {
    **FIXED,
    "logits_processors": "one of sere feeds the given tokens of --phases decode; leave it out",
    "logprobs_mode": "--phases decode needs the log-probabilities of the model; leave it out",
    "speculative_config": "vLLM cannot feed the given tokens of --phases decode to a drafter; leave it out",
}
"""Those of log-likelihoods in decode steps."""


def add_engine_option(parser: Any) -> None:
    """Add ``--engine-option``; to a parser or to a group of its arguments."""
    parser.add_argument(
        "--engine-option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of vLLM's engine, such as tensor_parallel_size=2; may be repeated",
    )  # fmt: skip


def engine_options(args: argparse.Namespace, fixed: Mapping[str, str], *, command: str) -> dict[str, Any]:
    """Return the options that were given; none for Transformers.

    Args:
        args: Arguments with ``engine`` and ``engine_option``.
        fixed: Options that the command sets itself, and what to do instead.
        command: The command.

    Raises:
        ConfigError: One is malformed or fixed, or vLLM is not asked for.
    """
    if args.engine != "vllm":
        if args.engine_option:
            raise ConfigError(
                "--engine-option: only applies to --engine vllm; add it, or leave the option out"
            )
        return {}
    from sere.bench.vllm.engine_options import parse_engine_options

    return parse_engine_options(args.engine_option, fixed, command=command)


def options_for(
    args: argparse.Namespace,
    settings: Sequence[PolicySpec],
    *,
    command: str,
    fixed: Mapping[str, str] = FIXED,
) -> dict[str, Any]:
    """Return the options of an evaluation's engines, which must be able to run its settings.

    Args:
        args: Arguments with ``engine`` and ``engine_option``.
        settings: What the engines are to run.
        command: The command.
        fixed: Options that it sets itself, and what to do instead.

    Raises:
        ConfigError: As for `engine_options`; or a routing rule that is not served needs to replace the
            engine's own, in a compiled engine or one of several processes.
    """
    from sere.engines.in_process import ranks_of
    from sere.engines.settings import is_served

    given = engine_options(args, fixed, command=command)
    others = [setting.label for setting in settings if not is_served(setting)]
    several = ranks_of(given) > 1
    if others and (several or given.get("enforce_eager") is False):
        why = "in several processes" if several else "compiled"
        raise ConfigError(
            f"--engine-option: vLLM {why} runs sere and off only, got {name_some(others)}; choose with "
            "--setting sere, or measure the others in one eager process"
        )
    return given
