"""``make fuzz``: the property tests again and again with fresh seeds, for a given time.

A pytest plugin (``-p tests.support.fuzz -m hypothesis --fuzz-seconds 300``). Each finding is printed with
what to add as an ``@example`` and how to repeat it; then its test is not tried again.
"""

from __future__ import annotations

import ast
import random
import re
import secrets
import sys
import time
from collections.abc import Collection, Iterator

import hypothesis
import pytest
import torch
from hypothesis.internal.conjecture import engine

# Hypothesis takes up to five minutes to make a finding smaller.
SHRINKING_SECONDS = 20
# How PyTorch prints what Python writes otherwise.
PRINTED = {"tensor": "torch.tensor", "nan": "math.nan", "inf": "math.inf"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, default=300.0, help="how long to look for counterexamples")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Fuzz(config.getoption("--fuzz-seconds")))
    hypothesis.settings.load_profile("fuzz")
    pytest.MonkeyPatch().setattr(engine, "MAX_SHRINKING_SECONDS", SHRINKING_SECONDS)
    # Every digit, or the example that is printed is another one.
    torch.set_printoptions(precision=17, threshold=sys.maxsize)


class Fuzz:
    """One run: rounds over all tests until the time is up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.runs = 0
        self.seed = 0
        self.findings: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests, each with a seed of its own, until the time is up or each has failed."""
        end = time.monotonic() + self.seconds
        turns = self._turns(session.items)
        item = next(turns, None)
        while item is not None and time.monotonic() < end:
            following = next(turns, None)
            if item.nodeid not in self.findings:
                self.runs, self.seed = self.runs + 1, secrets.randbits(32)
                hypothesis.seed(self.seed)(item.obj)
                # pytest keeps set up what it is told comes next: never this test, nor one that is left out.
                kept = None if following is item or _id(following) in self.findings else following
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=kept)
            item = following
        return True

    def _turns(self, items: list[pytest.Item]) -> Iterator[pytest.Function]:
        tests = [item for item in items if isinstance(item, pytest.Function)]
        while len(self.findings) < len(tests):
            yield from random.SystemRandom().sample(tests, len(tests))

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Keep what to print of a failure."""
        assert call.excinfo is not None
        parameters = node.callspec.params if hasattr(node, "callspec") else ()
        notes = "\n".join(getattr(call.excinfo.value, "__notes__", ["(no example: see above)"]))
        repeat = f"pytest '{node.nodeid}' --hypothesis-profile=fuzz --hypothesis-seed={self.seed}"
        self.findings[node.nodeid] = f"{as_example(notes, parameters)}\n  Repeat: {repeat}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the findings, and how much was tried."""
        for nodeid, text in self.findings.items():
            terminalreporter.section(nodeid)
            terminalreporter.write_line(text)
        terminalreporter.write_line(
            f"fuzz: {self.runs} runs of property tests, {len(self.findings)} findings"
        )


def _id(item: pytest.Item | None) -> str | None:
    return None if item is None else item.nodeid


class _Written(ast.NodeTransformer):
    """Printed tensors as they are written."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Give the name its module."""
        return ast.parse(PRINTED.get(node.id, node.id), mode="eval").body


def as_example(notes: str, parameters: Collection[str]) -> str:
    """Hypothesis' report of a finding, with its call (but for pytest's parameters) as the decorator to add.

    What cannot be written as one (the draws of ``st.data()``) stays as reported; the blob in it repeats it.
    """
    found = re.search(
        r"^(?:Failing test case|Falsifying example): (.*?^\))", notes, flags=re.MULTILINE | re.DOTALL
    )
    if found is None or "data=data(...)" in found[1]:
        return notes
    tree = ast.parse(found[1], mode="eval").body
    assert isinstance(tree, ast.Call)
    drawn = [keyword for keyword in tree.keywords if keyword.arg not in parameters]
    written = ", ".join(ast.unparse(_Written().visit(keyword)) for keyword in drawn)
    return f"Add to the test: @example({written}){notes[found.end() :]}"
