"""``--setting``: the help of the commands that take it lists what can be written."""

from __future__ import annotations

import pytest

from sere.cli import main
from sere.policies import POLICIES


@pytest.mark.parametrize(
    "command",
    [["eval"], ["bench", "run"], ["bench", "serve"], ["generate"]],
    ids=["eval", "bench", "serve", "generate"],
)
def test_every_rule_is_in_the_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each rule of the registry, with its options, before the examples."""
    assert main([*command, "--help"]) == 0
    listed, _, _ = capsys.readouterr().out.partition("policies and their options:\n")[2].partition("\n\n")
    lines = [line[2:] for line in listed.splitlines()]
    assert [line.partition(":")[0] for line in lines if line[:1] != " "] == list(POLICIES)
    assert "lynx:drop_share=X" in lines
