"""Which words are which command, and help that can be pasted."""

from __future__ import annotations

import shlex

import pytest

from sere.cli import main
from sere.cli.parser import COMMANDS, build_parser
from tests.support.commands import parsers, run_text

WORDS = [name.split()[1:] for name, _ in parsers(build_parser()) if name != "sere"]


@pytest.mark.parametrize("command", WORDS, ids=" ".join)
def test_help_shows_examples_that_parse(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    """Every command's help ends with examples of it, and each of them is a command line that parses."""
    out, _ = run_text(capsys, *command, "--help")
    lines = [line.strip() for line in out.partition("examples:\n")[2].splitlines() if line.strip()]
    assert lines
    examples = [shlex.split(line.partition(" > ")[0]) for line in lines]
    short = [words for words in examples if words[: 1 + len(command)] != ["sere", *command]]
    assert not short or command == ["bench", "run"]
    for words in examples:
        assert callable(build_parser().parse_args(words[1:]).run)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The program's help names each command; none is missing from the installation."""
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert all(f"\n    {command} " in out for command in COMMANDS)
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "module", "model"),
    [
        (["bench", "serve", "m"], "serve", "m"),
        (["--debug", "bench", "serve", "m"], "serve", "m"),
        (["bench", "--debug", "serve", "m"], "serve", "m"),
        (["bench", "run", "m"], "run", "m"),
        (["bench", "m"], "run", "m"),
        (["bench", "--debug", "m"], "run", "m"),
        (["bench", "server"], "run", "server"),
        (["bench", "serve/"], "run", "serve/"),
        (["bench", "./serve"], "run", "./serve"),
        (["bench", "run", "serve"], "run", "serve"),
        (["bench", "--preset", "serve"], "run", None),
        (["bench", "--steps", "1", "serve"], "run", "serve"),
        (["bench", "serve", "run"], "serve", "run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bench_falls_back_on_run(argv: list[str], module: str, model: str | None) -> None:
    """``serve`` and ``run`` right after ``bench`` are its commands; anything else goes to ``run``."""
    args = build_parser().parse_args(argv)
    assert (args.run.__module__, args.model) == (f"sere.cli.bench.{module}", model)


def test_bench_shows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """``sere bench --help`` lists both, and each has a help of its own."""
    out, _ = run_text(capsys, "bench", "--help")
    assert "\n    run " in out
    assert "\n    serve " in out


def test_words_of_other_commands_stay_apart() -> None:
    """``bench`` and ``serve`` behind another command are its own."""
    args = build_parser().parse_args(["generate", "--prompt", "bench", "serve"])
    assert (args.prompt, args.model) == (["bench"], "serve")


def test_every_option_that_takes_a_number_reads_it_one_way() -> None:
    """No option falls back on Python's own ``int`` or ``float``, whose errors say nothing."""
    found = [
        (name, action.dest)
        for name, parser in parsers(build_parser())
        for action in parser._actions
        if action.type in (int, float)
    ]
    assert found == []
