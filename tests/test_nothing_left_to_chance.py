"""``make test`` is the same every time, and ``make fuzz`` finds what is false."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import sere
from tests.support import workers
from tests.support.workers import parts

ROOT = Path(__file__).resolve().parents[1]
# Without the settings in pyproject.toml.
ALONE = ("-c", "/dev/null")

pytestmark = pytest.mark.checkout


def run_pytest(*arguments: str, folder: Path = ROOT, code: int = 0, **environment: str) -> str:
    """Run pytest in a process of its own, which is to end with a code; return what it printed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    paths = os.pathsep.join([str(ROOT), str(Path(sere.__file__).parents[1])])
    found = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == code, found.stdout + found.stderr
    return found.stdout


def test_examples_are_the_same_in_every_run() -> None:
    """The profile in use draws from the test's own digest, and neither keeps nor times anything."""
    profile = settings.get_profile(settings.get_current_profile_name())
    assert (profile.derandomize, profile.database, profile.deadline) == (True, None, None)
    assert profile.print_blob


DRAWN = """
from hypothesis import given, strategies as st

@given(number=st.integers(0, 100_000), text=st.text(max_size=4))
def test_draws(number, text):
    print("drawn", number, repr(text))
"""


def test_examples_depend_on_nothing_but_the_test(tmp_path: Path) -> None:
    """The same examples whatever modules were imported before, and whatever order sets have."""
    (tmp_path / "other.py").write_text(f"NUMBERS = {[*range(50_000, 50_100)]}")
    drawn = []
    for before, seed in (("", "0"), ("import other\n", "1")):
        file = tmp_path / "test_drawn.py"
        file.write_text(before + DRAWN)
        found = run_pytest("-s", "-p", "tests.conftest", *ALONE, str(file), PYTHONHASHSEED=seed)
        drawn.append([line for line in found.splitlines() if "drawn" in line])
    assert len(drawn[0]) > 50
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("kind", ["random", "numpy", "torch"])
def test_the_global_generators_are_seeded_for_each_test(kind: str) -> None:
    """Before its fixtures are made, whatever ran before it."""
    draw = {"random": random.random, "numpy": np.random.rand, "torch": lambda: float(torch.rand(()))}[kind]
    seeds = {"random": random.seed, "numpy": np.random.seed, "torch": torch.manual_seed}
    first = draw()
    seeds[kind](0)
    assert first == draw()


def test_the_order_is_shuffled_by_a_seed_that_is_printed(tmp_path: Path) -> None:
    """The same order in each run."""
    file = tmp_path / "test_many.py"
    file.write_text("".join(f"def test_{number}(): pass\n" for number in range(30)))
    orders = []
    for _ in range(2):
        found = run_pytest("--collect-only", "-p", "tests.conftest", *ALONE, str(file))
        assert "Using --randomly-seed=" in found
        orders.append([int(number) for number in re.findall(r"test_(\d+)>", found)])
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])


DISTRIBUTE = """
from tests.support.workers import FixedParts

def pytest_xdist_make_scheduler(config, log):
    return FixedParts(config, log)
"""

WORKERS = """
from pathlib import Path
import time, pytest

@pytest.mark.parametrize("number", range(10))
def test_any(number, worker_id):
    {wait}
    with Path("ran.txt").open("a") as log:
        log.write(f"{{worker_id}} {name}\\n")
"""


def test_each_worker_has_the_same_files_in_every_run(tmp_path: Path) -> None:
    """However long the tests of one worker take."""
    (tmp_path / "conftest.py").write_text(DISTRIBUTE)
    ran = []
    for slow in ("ab", "cd"):
        for name in "abcd":
            wait = "time.sleep(0.05)" if name in slow else ""
            (tmp_path / f"test_{name}.py").write_text(WORKERS.format(name=name, wait=wait))
        run_pytest("-n", "2", "-p", "no:randomly", *ALONE, "--rootdir", ".", folder=tmp_path)
        ran.append(set((tmp_path / "ran.txt").read_text().splitlines()))
        (tmp_path / "ran.txt").unlink()
    assert ran[0] == ran[1]
    assert len(ran[0]) == 4


def test_parts_are_of_about_the_same_length() -> None:
    """By the seconds that files took, else by their number of tests; whatever the order of files."""
    tests = {"fast": 30, "other": 12, "slow": 1}
    expected = {"slow": 0, "fast": 1, "other": 1}
    assert parts(tests, {"slow": 9.0}, 2) == expected
    assert parts(dict(reversed(tests.items())), {"slow": 9.0}, 2) == expected
    assert parts(tests, {"slow": 9.0, "fast": 12.0}, 2) == {"fast": 0, "slow": 1, "other": 1}


REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_a" name="test_one" file="tests/test_a.py" line="1" time="1.25" />
<testcase classname="tests.test_a" name="test_two" file="tests/test_a.py" line="9" time="2.5" />
<testcase classname="tests.test_b" name="test_one" file="tests/test_b.py" line="1" time="0.5" />
</testsuite></testsuites>"""


def test_a_report_says_how_long_files_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each run by itself; files that take no second count by their number of tests."""
    report, kept = tmp_path / "report.xml", tmp_path / "seconds.json"
    report.write_text(REPORT)
    monkeypatch.setattr(workers, "SECONDS", kept)
    assert workers.main([str(report)]) == 0
    assert workers.measured("vllm") == {"tests/test_a.py": 4}
    report.write_text(REPORT.replace("test_a.py", "test_c.py"))
    assert workers.main([str(report), "vllm"]) == 0
    assert workers.measured("vllm") == {"tests/test_c.py": 4}
    assert workers.measured("") == workers.measured("not checkout") == {"tests/test_a.py": 4}


def test_files_that_were_measured_exist() -> None:
    """A file that was moved or deleted is measured anew."""
    known = json.loads(workers.SECONDS.read_text(encoding="utf-8"))
    assert [file for files in known.values() for file in files if not (ROOT / file).exists()] == []


KILLED = """
import os, signal, pytest

@pytest.mark.parametrize("number", range(5))
def test_any(number):
    if "{name}" == "a" and number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_is_killed_fails_the_run(tmp_path: Path) -> None:
    """Memory may run out: the run ends, and names the test."""
    (tmp_path / "conftest.py").write_text(DISTRIBUTE)
    for name in "ab":
        (tmp_path / f"test_{name}.py").write_text(KILLED.format(name=name))
    found = run_pytest("-n", "2", "--max-worker-restart=0", *ALONE, "--rootdir", ".", folder=tmp_path, code=1)
    assert "test_any[3]" in found


def test_waiting_is_given_up_for_what_hangs_alone() -> None:
    """No test has a limit of its own: on a busy machine it would pass and fail by chance."""
    found = [
        f"{path.relative_to(ROOT)}:{keyword.value.lineno}"
        for path in (ROOT / "tests").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "timeout" and isinstance(keyword.value, ast.Constant)
    ]
    assert found == [], "expected HANGS_S of tests.support.patience"


FALSE = """
from hypothesis import given, strategies as st

@given(numbers=st.lists(st.integers()))
def test_false(numbers):
    assert sum(numbers) < 1000

@given(number=st.integers())
def test_true(number):
    assert number == number
"""


def test_fuzzing_finds_what_is_false(tmp_path: Path) -> None:
    """It ends in time with exit 1, and prints the example to add and how to repeat it."""
    file = tmp_path / "test_false.py"
    file.write_text(FALSE)
    plugins = ("-p", "tests.conftest", "-p", "tests.support.fuzz")
    found = run_pytest(*plugins, "-m", "hypothesis", *ALONE, "--fuzz-seconds=10", str(file), code=1)
    assert re.search(r"Add to the test: @example\(numbers=\[.+\]\)", found)
    repeats = re.findall(r"Repeat: pytest '\S+' (--hypothesis-profile=fuzz --hypothesis-seed=\d+)", found)
    assert len(repeats) == 1, found
    run_pytest("-p", "tests.conftest", *ALONE, *repeats[0].split(), f"{file}::test_false", code=1)
