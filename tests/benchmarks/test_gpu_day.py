"""The first day on a GPU: what is resumed, cut off and left out; and its quick pieces, rehearsed on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_day
from sere.cli.parser import build_parser
from tests.support.shim.build import COMPILER, NO_COMPILER
from tests.support.source import ROOT

pytestmark = pytest.mark.checkout


def piece(name: str, code: str, **changes: Any) -> gpu_day.Piece:
    """A piece that runs a line of Python."""
    return gpu_day.Piece(name, (("-c", code),), (("-c", code),), **{"seconds": 60} | changes)


def spend(
    pieces: list[gpu_day.Piece], results: Path, seconds: float = 100, *, rehearse: bool = False
) -> list[str]:
    """How each piece ended."""
    until = time.monotonic() + seconds
    return [row[1] for row in gpu_day.spend(pieces, results, rehearse=rehearse, until=until)]


def records(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (results / "gpu_day.jsonl").read_text().splitlines()]


def test_a_second_call_goes_on(tmp_path: Path) -> None:
    """What ended well is not run again, what failed is; each record is there as soon as its piece ended."""
    flag = tmp_path / "flag"
    pieces = [
        piece("first", "print('ran')"),
        piece("second", f"import pathlib; assert pathlib.Path({str(flag)!r}).exists()"),
    ]
    assert spend(pieces, tmp_path) == ["well", "failed"]
    assert [(one["piece"], one["ended"]) for one in records(tmp_path)] == [
        ("first", "well"),
        ("second", "failed"),
    ]
    assert "AssertionError" in records(tmp_path)[1]["tail"]
    flag.touch()
    assert spend(pieces, tmp_path) == ["done before", "well"]
    assert spend(pieces, tmp_path) == ["done before", "done before"]


def test_a_second_call_on_a_new_machine_goes_on(tmp_path: Path) -> None:
    """It gets the records of the first as a folder; what it has measured itself since is not written over."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert spend([piece("test", "print('ran')")], first) == ["well"]
    (first / "gpu_serve.jsonl").write_text("measured\n")
    gpu_day.take_over(first, second)
    assert sorted(path.name for path in second.iterdir()) == [
        "gpu_day.jsonl",
        "gpu_day.log",
        "gpu_serve.jsonl",
    ]
    assert spend([piece("test", "raise SystemExit(1)"), piece("kernel", "pass")], second) == [
        "done before",
        "well",
    ]
    gpu_day.take_over(first, second)
    assert [one["piece"] for one in records(second)] == ["test", "kernel"]
    with pytest.raises(SystemExit, match=r"expected the records of an earlier call"):
        gpu_day.take_over(tmp_path, second)


def test_a_rehearsal_is_no_measurement(tmp_path: Path) -> None:
    """What was rehearsed on a machine is still to be run there."""
    pieces = [piece("first", "pass")]
    assert spend(pieces, tmp_path, rehearse=True) == ["well"]
    assert spend(pieces, tmp_path) == ["well"]


def test_another_card_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured on one card says nothing of another."""
    pieces = [piece("first", "pass")]
    assert spend(pieces, tmp_path) == ["well"]
    monkeypatch.setattr(gpu_day, "card", lambda: "NVIDIA H200")
    assert spend(pieces, tmp_path) == ["well"]
    assert [one["card"] for one in records(tmp_path)][1] == "NVIDIA H200"


def test_nothing_is_timed_after_a_wrong_result(tmp_path: Path) -> None:
    """Where the piece that decides fails, the others are not begun."""
    pieces = [piece("test", "raise SystemExit(1)", decides=True), piece("kernel", "pass")]
    assert spend(pieces, tmp_path) == ["failed"]


def test_a_piece_that_hangs_is_cut_off(tmp_path: Path) -> None:
    """It ends after its seconds, and the next one runs."""
    pieces = [
        piece("slow", "import time; print('so far', flush=True); time.sleep(60)", seconds=4),
        piece("next", "pass"),
    ]
    assert spend(pieces, tmp_path) == ["cut off", "well"]
    assert "so far" in records(tmp_path)[0]["tail"]


def test_what_was_cut_off_waits_for_the_others(tmp_path: Path) -> None:
    """To be cut off is no failure: the rest is timed, and the second call begins with what has not begun."""
    flag = tmp_path / "flag"
    code = f"import pathlib, time; time.sleep(0 if pathlib.Path({str(flag)!r}).exists() else 60)"
    pieces = [piece("test", code, seconds=2, decides=True), piece("kernel", "pass")]
    assert spend(pieces, tmp_path) == ["cut off", "well"]
    flag.touch()
    pieces[0] = piece("test", code, decides=True)
    assert spend(pieces, tmp_path) == ["done before", "well"]
    assert [one["piece"] for one in records(tmp_path)] == ["test", "kernel", "test"]


def test_nothing_of_a_piece_goes_on(tmp_path: Path) -> None:
    """What a command has started ends with it: it would disturb the next times."""
    late = tmp_path / "late"
    child = f"import time; time.sleep(2); open({str(late)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    pieces = [piece("leaves", code), piece("next", "import time; time.sleep(4)")]
    assert spend(pieces, tmp_path) == ["well", "well"]
    assert not late.exists()


def test_what_is_left_out(tmp_path: Path) -> None:
    """A piece whose package is missing says so, and none is begun when the time is up."""
    assert spend([piece("vllm", "pass", needs="no_such_package")], tmp_path) == ["left out"]
    assert records(tmp_path)[0]["tail"] == "no_such_package is not installed"
    assert spend([piece("late", "pass")], tmp_path, seconds=10) == ["not begun: call again"]


def test_the_pieces_fit_the_day() -> None:
    """What decides comes first, what is run is there, and two calls do all but what must be carried."""
    assert [one.decides for one in gpu_day.PIECES] == [True] + [False] * (len(gpu_day.PIECES) - 1)
    assert all(one.seconds <= gpu_day.MOST_SECONDS for one in gpu_day.PIECES)
    own = [one.seconds for one in gpu_day.PIECES if one.needs != "vllm"]
    assert sum(own) <= gpu_day.DAY_SECONDS == 840
    assert sum(own[:3]) <= gpu_day.CALL_SECONDS <= 570
    assert sum(own[3:]) <= gpu_day.DAY_SECONDS - gpu_day.CALL_SECONDS + 20 <= 570
    named = [part for part in parts() if part.startswith(("benchmarks/", "tests/"))]
    assert len(named) >= 10
    assert [part for part in named if not (ROOT / part).exists()] == []


def parts() -> list[str]:
    """All words of all commands."""
    commands = [command for one in gpu_day.PIECES for command in one.commands + one.rehearsal]
    return [part for command in commands for part in command]


def test_what_a_day_writes_comes_back() -> None:
    """Each file that a command writes is among the records, which are no more than may come back."""
    written = {part.removeprefix("{out}/") for part in parts() if part.startswith("{out}/")}
    assert written | {"gpu_day.jsonl", "gpu_day.log"} == set(gpu_day.RECORDS)
    assert len(gpu_day.RECORDS) <= 8


def test_the_engines_command_line() -> None:
    """`sere bench serve` takes the arguments of the command that only a GPU with vLLM can run."""
    (module, name, *arguments) = gpu_day.ENGINES
    assert (module, name) == ("-m", "sere")
    found = build_parser().parse_args(arguments)
    assert found.vanilla
    assert not found.replay
    assert found.compile
    assert {"decode", "ttft-32", "ttft-2k", "ttft-8k", "prefill", "mixed"} == set(found.load)
    assert found.batch_size == [8, 32, 64]


def test_without_a_device() -> None:
    """Without a GPU, and not as a rehearsal, it ends with one line."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "benchmarks/gpu_day.py"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("no CUDA device here: nothing to measure")


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("name", ["test", "kernel", "transformers", "similarity", "sanitize", "triton"])
def test_a_piece_is_rehearsed(tmp_path: Path, name: str) -> None:
    """On a CPU each quick piece runs to its end, with stand-ins and tiny shapes."""
    if name == "transformers":
        pytest.importorskip("transformers")
    (found,) = [known for known in gpu_day.PIECES if known.name == name]
    assert spend([found], tmp_path, seconds=480, rehearse=True) == ["well"], records(tmp_path)[0]["tail"]
