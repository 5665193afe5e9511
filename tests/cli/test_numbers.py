"""Numbers as people write them on a command line."""

from __future__ import annotations

import pytest

from sere.cli import main
from sere.cli.parser import build_parser


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
    expected = "argument --request-rate: expected a number above 0 (requests per second), got"
    assert f"{expected} {text!r}" in capsys.readouterr().err
