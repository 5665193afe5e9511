"""``--report FILE`` of the commands that measure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sere.cli.output import say
from sere.files import check_writable, keep_other_files


def add_report_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--report``: the result as a page with plots, beside what the command prints."""
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write a page with plots (.html), as sere report does"
    )


def check_report(args: argparse.Namespace) -> None:
    """Check, before long work, that the report can be made and written.

    Raises:
        MissingDependency: The plotting library is not installed.
        OutputError: The file cannot be written, or another one is there.
    """
    if args.report is not None:
        from sere.report.plots import plotly

        plotly()
        check_page(args.report)


def check_page(path: Path, read: Sequence[Path] = ()) -> None:
    """Check that a page can be written.

    Args:
        path: Where.
        read: Files that the command reads.

    Raises:
        OutputError: It cannot be written, or another file is there.
    """
    keep_other_files(path, _holds_page, "an HTML page", read=read)
    check_writable(path)


def save_report(args: argparse.Namespace, records: Sequence[Any], table: Path | None = None) -> None:
    """Write the report that was asked for, if one was and anything was measured.

    Args:
        args: The command's arguments.
        records: What the command measured.
        table: The table that it used, or None.
    """
    if args.report is None or not records:
        return
    from sere.report.page import write_report
    from sere.report.read import read_sources, source_of

    of_table = [] if table is None else read_sources([table])
    write_report([*(source_of(record, "this run") for record in records), *of_table], args.report)
    say(f"wrote {args.report}")


def _holds_page(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(64).lstrip().lower().startswith(b"<!doctype html")
