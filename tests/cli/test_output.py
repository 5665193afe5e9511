"""The text tables that commands print."""

from __future__ import annotations

from sere.cli.output import table


def test_tables_align_numbers_right_and_show_what_is_missing() -> None:
    """Columns of numbers are aligned right, texts left and unchanged, None is a dash."""
    assert table([["1.50", "a"], ["12.00", None]], ["ms", "name"]) == (
        "   ms  name\n-----  ------\n 1.50  a\n12.00  -"
    )
    assert table([], ["a", "b"]) == "a    b\n---  ---"
