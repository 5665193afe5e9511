"""Tests mirror the source: where a test is, what it may import, how long a file may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.source import ROOT, SOURCE, imports, modules

pytestmark = pytest.mark.checkout

TESTS = ROOT / "tests"
KNOWN = modules(TESTS)
# Folders that are not named like one of the source, and what is in them.
OTHER = {
    "support": "what several test modules share",
    "public_cases": "what users do, one small test per kind of report",
    "architectures": "every architecture of the installed Transformers",
    "recipe": "how the bundled model was made",
    "benchmarks": "what measures, outside the package",
    "docs": "what builds the documents' tables and pictures",
    "integrations/vllm/in_engine": "the plug-in in real engines",
}
# Files that name paths of tests.
RUNNERS = ("Makefile", "tests/wheel.sh")
LONGEST = 300


def folders() -> list[str]:
    """The folders of tests, but for those inside ``support``."""
    found = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py")} - {"."}
    return sorted(name for name in found if not name.startswith("support/"))


@pytest.mark.parametrize("folder", folders())
def test_a_folder_is_named_like_what_it_tests(folder: str) -> None:
    """A folder of tests is one of the source, or one of the few others."""
    assert folder in OTHER or (SOURCE / folder).is_dir()


def test_the_other_folders_exist() -> None:
    """None is excused that is no longer there."""
    assert not [folder for folder in OTHER if not (TESTS / folder).is_dir()]


@pytest.mark.parametrize("module", KNOWN)
def test_what_tests_share_is_in_support(module: str) -> None:
    """Of the tests, a module imports nothing but ``tests.support``."""
    found = [name for name in imports(module, KNOWN) if name.split(".")[0] == "tests"]
    assert not [name for name in found if not name.startswith("tests.support")]


@pytest.mark.parametrize("runner", RUNNERS)
def test_what_is_run_exists(runner: str) -> None:
    """A folder or file of tests that moves is still run, and is named where it is now."""
    named = re.findall(r"\btests/[\w/]+(?:\.py)?", (ROOT / runner).read_text(encoding="utf-8"))
    assert len(named) >= 4
    assert [path for path in named if not (ROOT / path).exists() and path != "tests/wheel"] == []


def test_every_test_with_an_engine_is_run() -> None:
    """`make test-vllm` names the folder of each test that needs vLLM."""
    (line,) = re.findall(r" -m vllm (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    run = [ROOT / folder for folder in line.split()]
    marked = [path for path in TESTS.rglob("test_*.py") if "mark.vllm" in path.read_text(encoding="utf-8")]
    assert len(marked) >= 10
    assert [path for path in marked if not {path, *path.parents} & {*run, Path(__file__)}] == []


def test_what_comes_with_vllm_is_run_with_vllm() -> None:
    """A test that needs a package of vLLM's environment is marked: else nothing runs it."""
    skipping = re.compile(r'importorskip\(\s*"(?:vllm|prometheus_client|openai|fastapi)"')
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
    found = {path: text for path, text in texts.items() if skipping.search(text)}
    assert len(found) >= 10
    assert [path.as_posix() for path, text in found.items() if "mark.vllm" not in text] == []


def test_no_file_is_too_long() -> None:
    """A file of more than 300 lines is two files."""
    paths = [path for folder in (SOURCE, TESTS) for path in folder.rglob("*.py")]
    long = [path for path in paths if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST]
    assert [path.as_posix() for path in long] == []
