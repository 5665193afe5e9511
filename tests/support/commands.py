"""Run the command line in this process and take what it prints, or the parsers of all commands."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest

from sere.cli import main


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    """Run a command with ``--json`` and return what it printed; stdout holds nothing else."""
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def run_text(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[str, str]:
    """Run a command that ends well and return its stdout and stderr."""
    assert main([*map(str, argv)]) == 0
    out, err = capsys.readouterr()
    return out, err


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run a command that ends with code 2 and return its one line; stdout stays empty."""
    assert main([*map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [text for text in err.splitlines() if text.startswith("sere: error:")]
    return line


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make ``sere doctor`` raise ``error``."""

    def run(_: Namespace) -> int:
        raise error

    monkeypatch.setattr("sere.cli.doctor.run", run)


def parsers(parser: argparse.ArgumentParser, name: str = "sere") -> Iterator[tuple[str, Any]]:
    """The parser and those of all its subcommands, with the words that lead to each."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from parsers(below, f"{name} {word}")
