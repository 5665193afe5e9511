"""The line that serves a model with the table that a command has just written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from sere.bundled import BUNDLED, model_path
from sere.cli.output import say
from sere.defaults import own_table


def say_how_to_serve(model: str, written: Path) -> None:
    """Say how vLLM serves a model with a table, from whatever folder; and which other one is found first.

    Args:
        model: The model, as a command got it.
        written: The table.
    """
    own = None if model == BUNDLED else own_table(model)
    here = written.absolute()
    if own is not None and own != here:
        say(f"without --table {written}, the table that comes with the model is used: {own}")
    settings = {} if own == here else {"table": str(here)}
    name = str(model_path()) if model == BUNDLED else model
    command = ["vllm", "serve", name, "--additional-config", json.dumps({"sere": settings})]
    say(f"serve it with: {shlex.join(command)}")
