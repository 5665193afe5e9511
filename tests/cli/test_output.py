"""The text tables that commands print."""

from __future__ import annotations

from sere.cli.output import case_table, table


def test_tables_align_numbers_right_and_show_what_is_missing() -> None:
    """Columns of numbers are aligned right, texts left and unchanged, None is a dash."""
    assert table([["1.50", "a"], ["12.00", None]], ["ms", "name"]) == (
        "   ms  name\n-----  ------\n 1.50  a\n12.00  -"
    )
    assert table([], ["a", "b"]) == "a    b\n---  ---"


def test_short_names_of_cases_are_a_column() -> None:
    """Names that leave room stand beside their numbers."""
    assert case_table(
        [("off", [8, "1.0"]), ("topk:select_top_k=2", [8, "2.0"])], ["B", "ms"]
    ).splitlines() == [
        "setting                B    ms",
        "-------------------  ---  ----",
        "off                    8   1.0",
        "topk:select_top_k=2    8   2.0",
    ]


def test_long_names_of_cases_have_a_line_of_their_own() -> None:
    """A table is as narrow as its numbers, however many options a setting has."""
    name = "sere:select_top_k=2,active_experts=32,use_scale=true"
    assert case_table([("off", [8, "1.0"]), (name, [8, "12.0"])], ["B", "ms"]).splitlines() == [
        "  B    ms",
        "---  ----",
        "off",
        "  8   1.0",
        name,
        "  8  12.0",
    ]


def test_the_table_of_no_case_has_its_titles() -> None:
    """A run that was ended before its first case prints no error."""
    assert case_table([], ["B", "ms"]).splitlines()[0].split() == ["setting", "B", "ms"]
