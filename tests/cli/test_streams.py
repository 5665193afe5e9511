"""Results go to stdout, everything else to stderr, for every subcommand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sere.cli import main
from sere.cli.parser import build_parser
from tests.support.commands import parsers

# What each command is given, a word of its result, and a word of its notes; None where it has no notes.
CASES = {
    "calibrate": ("MODEL --metric weights --out new.sere", "fingerprint", "next: sere table verify new.sere"),
    "table show": ("TABLE", "fingerprint:", None),
    "table verify": ("TABLE", "result", None),
    "table diff": ("TABLE TABLE", "equal", None),
    "table plot": ("TABLE --out new.png", "wrote new.png", None),
    "generate": ("MODEL --table TABLE --prompt the --max-new-tokens 3", "the", "distinct experts per layer"),
    "eval": ("MODEL --table TABLE --prompts PROMPTS --batch-size 2 --max-new-tokens 4", "agree %", ": done"),
    "bench run": ("--preset tiny --batch-size 1 --steps 2 --rounds 1", "TPOT ms", "making tiny"),
    "report": ("TABLE --out new.html", "wrote new.html", None),
    "list policies": ("", "select_top_k=N", None),
    "list metrics": ("", "frobenius", None),
    "doctor": ("MODEL --table TABLE --no-measure", "no problems found", None),
}
# Tested where their engines, matrices and servers are: tests/bench, test_table_and_model, test_demo,
# test_tune, test_lm_eval, test_top, public_cases/test_shared_tables.
ELSEWHERE = {"bench serve", "table import", "table push", "table pull", "demo", "tune", "lm-eval", "top"}


def leaves() -> Iterator[str]:
    """The words of every command that runs something."""
    for name, parser in parsers(build_parser()):
        if "run" in parser._defaults:
            yield name.removeprefix("sere ")


def words(given: str, checkpoint: Path, similarities: Path, prompts: Path) -> list[str]:
    names = {"MODEL": checkpoint, "TABLE": similarities, "PROMPTS": prompts}
    return [str(names.get(word, word)) for word in given.split()]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of prompts, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("add 1+2\nthe mill stood\n")
    return tmp_path / "prompts.txt"


def test_no_command_is_forgotten() -> None:
    """Every subcommand has a case here, or a test of its own."""
    assert {*leaves()} == {*CASES} | ELSEWHERE


@pytest.mark.parametrize("command", CASES)
def test_results_go_to_stdout_and_notes_to_stderr(
    command: str, checkpoint: Path, similarities: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is read, piped and kept is on stdout alone."""
    given, result, note = CASES[command]
    assert main([*command.split(), *words(given, checkpoint, similarities, prompts)]) == 0
    out, err = capsys.readouterr()
    assert result in out
    assert result not in err
    if note is None:
        assert err == ""
    else:
        assert note in err
        assert note not in out


@pytest.mark.parametrize("command", CASES)
def test_json_is_alone_on_stdout(
    command: str, checkpoint: Path, similarities: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json each line of stdout is one JSON value."""
    argv = [*command.split(), *words(CASES[command][0], checkpoint, similarities, prompts), "--json"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_a_pipe_gets_the_result(similarities: Path) -> None:
    """``sere table show T | head -1`` ends well with the first line, and prints nothing else."""
    command = [sys.executable, "-m", "sere", "table", "show", str(similarities)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        assert shown.stdout.readline().startswith("model:")
        shown.stdout.close()
        assert shown.stderr.read() == ""
    assert shown.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", ["list metrics", "--help", "--version", "eval --help"])
def test_a_full_disk_is_one_line_and_code_1(argv: str, unbuffered: str) -> None:
    """What could not be written is no success, be it a result, a help text or the version."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = subprocess.run(
            [sys.executable, "-m", "sere", *argv.split()], stdout=full, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, check=False,
        )  # fmt: skip
    assert run.stderr == "sere: error: stdout: cannot be written: No space left on device\n"
    assert run.returncode == 1


@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_work_goes_on_where_notes_cannot_be_read(how: str, tmp_path: Path) -> None:
    """A stderr that is full, closed or left by its reader costs the notes alone; they never reach stdout."""
    program = """
import sys, time, sere.cli, sere.cli.doctor
from sere.cli.output import say, show
def run(_):
    time.sleep(0.5)  # until the reader has left
    say("a note")
    say("another")
    show("the result")
    return 0
sere.cli.doctor.run = run
sys.argv = ["sere", "doctor"]
sys.exit(sere.cli.main())
"""
    (tmp_path / "program.py").write_text(program)
    command = f"{sys.executable} {tmp_path / 'program.py'} {how}"
    run = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "the result\n")


@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-"])
def test_wrong_use_is_code_2_where_its_line_cannot_be_read(how: str) -> None:
    """The exit code does not depend on who reads."""
    for words in ("nothing", "generate bundled"):
        command = f"{sys.executable} -m sere {words} {how}"
        run = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, text=True, check=False)
        assert (run.returncode, run.stdout) == (2, "")
