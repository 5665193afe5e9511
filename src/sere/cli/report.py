"""``sere report``: records and a table as one HTML file."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, emit, say
from sere.cli.parser import add_command
from sere.cli.report_file import check_page

_DETAILS = """Reads records of sere eval and lm-eval --out, sere tune --record, sere bench and bench serve
--out and sere demo --out, and tables (*.sere), and writes one HTML page with plots: what is lost over
the experts that are read, speed over batch size, what each layer reads, similarity maps, right answers
by task, tasks of lm-eval, and where the numbers come from. The page needs nothing else, and no network.
What cannot be compared, because model, texts, machine or engine differ, is shown apart, with a warning.
Needs plotly: the extra "report"."""

_EXAMPLES = """
  sere report eval.json bench.jsonl similarity.sere --out report.html
  sere report tuning.json tuned.sere --layer 0 12 23 --out tuning.html
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Make one page with plots of records and a table."
    parser = add_command(subparsers, "report", summary, run, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument(
        "records", type=Path, nargs="+", metavar="RECORD", help="a record (.json, .jsonl) or a table (.sere)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: %(default)s)",
    )
    parser.add_argument(
        "--layer",
        type=whole(),
        nargs="+",
        metavar="N",
        help="layers whose similarity maps are shown (default: six, from the first to the last)",
    )
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page, say what is in it."""
    from sere.report.page import write_report
    from sere.report.read import read_sources

    check_page(args.out, args.records)
    sources = read_sources(args.records)
    parts = write_report(sources, args.out, layers=args.layer)
    warnings = [warning for part in parts for warning in part.warnings()]
    result = {
        "path": str(args.out),
        "models": [part.name for part in parts],
        "records": dict(Counter(source.kind for source in sources)),
        "warnings": warnings,
    }
    for warning in warnings:
        say(f"warning: {warning}")
    emit(args, result, _render)
    return 0


def _render(result: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in result["records"].items())
    return f"wrote {result['path']}: {', '.join(result['models'])} ({kinds})"
