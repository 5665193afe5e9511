"""Exit codes, one line per error, and how a command ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sere.cli import main
from sere.errors import ConfigError, MissingDependency, OutputError, ServerError
from tests.support.commands import failing


def refused_path(cause: OSError) -> OutputError:
    """The error of a file that cannot be written, as ``sere.files`` raises it."""
    error = OutputError(f"t: cannot be written: {cause.strerror}")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("S: expected 1,\n  got 0"), 2, "sere: error: S: expected 1, got 0"),
        (MissingDependency("a plot needs matplotlib"), 2, "sere: error: a plot needs matplotlib"),
        (ModuleNotFoundError("no", name="pyarrow.parquet"), 2, "pyarrow is not installed; in a clone"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "No such file or directory: a.txt"),
        (
            refused_path(PermissionError(13, "Permission denied")),
            2,
            "t: cannot be written: Permission denied",
        ),
        (refused_path(OSError(28, "No space left on device")), 1, "t: cannot be written: No space left"),
        (OSError(28, "No space left on device", "a.txt"), 1, "No space left on device: a.txt"),
        (BrokenPipeError(32, "Broken pipe"), 1, "sere: error: Broken pipe"),  # of a server, not of stdout
        (ServerError("vllm serve exited with code 1"), 1, "sere: error: vllm serve exited with code 1"),
        (MemoryError("no 8 GB"), 1, "not enough memory (no 8 GB); use a smaller batch size"),
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
    """Whatever a command raises becomes one line on stderr: code 2 for wrong use, 1 for a failure."""
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
        (["calibrat", "m"], "invalid choice: 'calibrat'; did you mean 'calibrate'? (valid: bench, "),
        (["table", "shw"], "invalid choice: 'shw'; did you mean 'show'? (valid: diff, import, plot, pull, "),
        (["list", "polices"], "invalid choice: 'polices'; did you mean 'policies'?"),
        (["doctor", "--jsn"], "unrecognized arguments: --jsn; did you mean --json? (see sere doctor --help)"),
        (["doctor", "--tabl=x"], "--tabl=x; did you mean --table? (see sere doctor --help)"),
        (["list", "metrics", "more"], "unrecognized arguments: more (see sere list metrics --help)"),
        (["--json", "doctor"], "unrecognized arguments: --json (see sere --help)"),
        (
            ["bench", "serv", "--preset", "tiny"],
            "neither a command nor a model; did you mean 'sere bench serve'",
        ),
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


@pytest.mark.parametrize("argv", [["doctor"], ["--help"], ["eval", "--help"]], ids=" ".join)
def test_a_closed_pipe_ends_quietly(argv: list[str]) -> None:
    """In `sere ... | head -0` nothing is printed about the pipe, and it is no error."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sere", *argv]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, "")


def test_what_stdout_cannot_show_is_escaped() -> None:
    """On a stdout of ASCII, the ± of doctor or a model's own words are escaped; the command goes on."""
    program = """
import sys, sere.cli, sere.cli.doctor
def run(_):
    print("\u03c1")
    return 0
sere.cli.doctor.run = run
sys.argv = ["sere", "doctor"]
sys.exit(sere.cli.main())
"""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "\\u03c1\n", "")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints name and version and ends well."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sere ")


def test_package_is_the_command() -> None:
    """``python -m sere`` is ``sere``, where the script is not on the path."""
    run = subprocess.run(
        [sys.executable, "-m", "sere", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("sere ")
