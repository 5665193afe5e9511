"""The documents' form: links lead somewhere, commands parse, settings have one spelling, lines wrap."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from sere.cli.parser import build_parser
from sere.integrations.vllm.plugin_config import PluginConfig

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "recipe/*.md", "src/sere/bundled/*/*.md")
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What docs/adding-a-policy.md tells its reader to write.
TO_BE_WRITTEN = ("src/sere/policies/first.py", "tests/policies/test_first.py")
MOST_LINES = {"README.md": 150, "docs/vllm.md": 200}
MOST_COLUMNS = 110
# A row of a table is as wide as what it compares; more than this, and it is to be split.
MOST_TABLE_COLUMNS = 120


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub writes them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def commands(text: str) -> list[str]:
    """The ``sere`` lines of fenced blocks, without comments, continuation lines joined; not elided ones."""
    joined = [block.replace("\\\n", " ") for language, block in FENCED.findall(text) if not language]
    lines = [line.partition(" #")[0] for block in joined for line in block.splitlines()]
    return [line for line in lines if line.startswith("sere ") and not re.search(r"\.\.\.|…", line)]


CASES = [(name, line) for name in DOCUMENTS for line in commands(read(name))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_anchors_resolve(name: str) -> None:
    """Each relative link leads to a file, and each anchor to a heading of it."""
    text = FENCED.sub("", read(name))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (ROOT / name).parent / path if path else ROOT / name
        if not found.exists() or (anchor and anchor not in anchors(found.read_text(encoding="utf-8"))):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize(("name", "line"), CASES, ids=[f"{name}-{at}" for at, (name, _) in enumerate(CASES)])
def test_commands_parse(name: str, line: str) -> None:
    """Commands and flags exist, and take what the document gives them."""
    build_parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_of_vllm_are_valid(name: str) -> None:
    """What stands under ``additional_config["sere"]`` on a command line is what the plug-in takes."""
    joined = read(name).replace("\\\n", " ")
    for text in re.findall(r"--additional-config\s+'([^'…]*)'", joined):
        # A terminal breaks a long line within a path, too.
        PluginConfig.from_mapping(json.loads(text, strict=False)["sere"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_have_their_long_names(name: str) -> None:
    """The short spellings that ``--setting`` takes as well are in no document."""
    assert not re.findall(r"\w+:(?:\w+=[^,\s]+,)*(?:S|rho|scale)=\S+", read(name))


@pytest.mark.parametrize("name", sorted(MOST_LINES))
def test_pages_are_short(name: str) -> None:
    """The first page and the page on vLLM can be read at once."""
    assert len(read(name).splitlines()) <= MOST_LINES[name]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    """A path of the repository in code quotes is there, and so is each test file named alone."""
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    quoted = set(re.findall(r"`([^`\s]+)`", FENCED.sub("", read(name)))) - set(TO_BE_WRITTEN)
    paths = [one for one in quoted if re.match(r"(src|tests|benchmarks|docs|recipe|examples)/[\w./-]*$", one)]
    named_alone = [one for one in quoted if re.match(r"test_\w+\.py$", one)]
    assert not [one for one in paths if not (ROOT / one).exists()]
    assert set(named_alone) <= tests


def test_documents_that_the_source_names_exist() -> None:
    """A docstring, a comment or a make target that sends to a document sends to one that is there."""
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "Makefile"]
    named = {name for path in sources for name in re.findall(r"docs/[\w-]+\.md", path.read_text("utf-8"))}
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


def too_wide(text: str) -> Iterator[str]:
    for line in re.sub(
        r"<!-- record: architectures -->.*?<!-- end -->", "", text, flags=re.DOTALL
    ).splitlines():
        without_links = re.sub(r"\]\([^)]*\)", "]", line)
        table = line.startswith("|")
        # Machines and versions below a table are written by `make documents`; JSON is as long as it is.
        if re.match(r"\*.*; torch .*\*$|Settings: `|\s*'\{", line):
            continue
        if len(without_links) > (MOST_TABLE_COLUMNS if table else MOST_COLUMNS):
            yield line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_wrap(name: str) -> None:
    """Prose and code fit 110 columns beside a terminal's edge, tables about as many."""
    assert list(too_wide(read(name))) == []
