"""Say which known architectures the installed Transformers lacks, so that nobody takes them for tested."""

from __future__ import annotations

import pytest
import transformers

from tests.support.architectures.build import folders
from tests.support.architectures.expected import NEWER


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    absent = sorted(set(NEWER) - set(folders()))
    if absent:
        release = transformers.__version__
        terminalreporter.write_line(
            f"not collected, as Transformers {release} lacks them: {', '.join(absent)}"
        )
