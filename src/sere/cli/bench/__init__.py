"""``sere bench``: time decoding, in Transformers (``run``) or in a vLLM engine (``serve``)."""

from __future__ import annotations

from typing import Any

from sere.cli.bench import run, serve
from sere.cli.parser import add_command

_DETAILS = """sere bench MODEL is short for sere bench run MODEL."""

_EXAMPLES = """
  sere bench --preset qwen3-30b-a3b --layers 4 --batch-size 1 8 16 32
  sere bench run MODEL
  sere bench serve MODEL --server
"""


def add(subparsers: Any) -> None:
    """Add ``sere bench`` with its subcommands."""
    summary = "Time decoding with re-routing off and on."
    parser = add_command(subparsers, "bench", summary, details=_DETAILS, examples=_EXAMPLES)
    commands = parser.add_subparsers(title="what to time", metavar="WHAT", required=True)
    run.add(commands)
    serve.add(commands)
    parser.fall_back(commands, "run")
