"""What commands print: results on stdout, for people or as JSON; progress, warnings and notes on stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO, TypeVar

from sere.cli.terminal import columns
from sere.errors import OutputError

_T = TypeVar("_T")


class ReaderLeft(Exception):
    """Nobody reads stdout any more, as after ``| head``: the command ends, and that is no error."""


# As wide as a table for people may be, if its cases' names can stand above their numbers.
_WIDEST = 100
# Up to here a case's name leaves room for its numbers beside it.
_SHORT_NAME = 20
# A column of texts that is at least so wide can be read; the texts of a narrower one are not wrapped.
_READABLE = 24
# Spaces between two columns.
_BETWEEN = 2


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``: the result as JSON instead of tables and text."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def emit(args: argparse.Namespace, value: _T, render: Callable[[_T], str]) -> None:
    """Print a command's result on stdout, as JSON or for people.

    Args:
        args: The command's arguments; ``args.json`` decides the form.
        value: The result; JSON-ready.
        render: Turns the result into the text for people.
    """
    show(json.dumps(value, allow_nan=False) if args.json else render(value))


def emit_lines(
    args: argparse.Namespace, records: Iterable[dict[str, Any]], render: Callable[[list[Any]], str]
) -> list[dict[str, Any]]:
    """Write records as they come, one JSON line each, show all of them at the end, and return them.

    Args:
        args: The command's arguments; each line is appended to ``args.out`` if that is given. On stdout,
            each line is printed with ``args.json``, else the rendering for people at the end.
        records: JSON-ready.
        render: Turns all records into the text for people.

    Raises:
        OutputError: ``args.out`` cannot be written, or holds something else; found before the first record
            is asked for.
    """
    from sere.files import append_json_line, check_writable, holds_json, keep_other_files
    from sere.interrupts import going_on

    if args.out is not None:
        keep_other_files(args.out, holds_json, "records in JSON lines")
        check_writable(args.out)
    found: list[dict[str, Any]] = []
    with going_on(lambda: f"{len(found)} finished cases are in {args.out}" if found and args.out else None):
        for record in records:
            found.append(record)
            if args.out is not None:
                append_json_line(args.out, record)
            if args.json:
                show(json.dumps(record))
    if not args.json:
        show(render(found))
    return found


def show(text: str, *, end: str = "\n") -> None:
    """Print a result on stdout.

    Args:
        text: Any.
        end: What follows it.

    Raises:
        ReaderLeft: Nobody reads stdout any more. A broken pipe elsewhere, such as to a server, is an error.
        OutputError: It cannot be written, as on a full disk.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError as error:
        raise ReaderLeft from error
    except OSError as error:
        raise OutputError(f"stdout: cannot be written: {error.strerror}") from error


def say(text: str) -> None:
    """Print a note on stderr: stdout has results only.

    Work goes on where nobody reads notes any more: from then on they go nowhere.
    """
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def settle() -> None:
    """Let go of what stdout cannot write, which Python would try once more at the very end."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    """Let what a stream still holds, and what is written to it from now on, go nowhere."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def spread_cell(spread: Mapping[str, float] | None, digits: int) -> str | None:
    """Return one cell of a table: the median, and in parentheses the 20th to the 80th percentile."""
    if spread is None:
        return None
    low, middle, high = (f"{spread[name]:.{digits}f}" for name in ("p20", "p50", "p80"))
    return f"{middle} ({low} to {high})"


def table(rows: Iterable[Sequence[Any]], headers: Sequence[str], *, keys: int = 1) -> str:
    """Return an aligned text table that fits the terminal; in a pipe or file, it is as wide as it is.

    Where there is too little room, the texts of the widest column are wrapped; if that is not enough, the
    columns are shown in several parts, one below the other.

    Args:
        rows: One sequence per row, as many cells as ``headers``; None shows as ``-``. Texts stay as they are.
        headers: The column titles.
        keys: How many of the first columns say which row it is: each part begins with them.
    """
    cells = [list(row) for row in rows]
    width = columns()
    whole = _aligned(cells, headers)
    if width is None or _widest(whole) <= width:
        return whole
    cells = _wrapped(cells, headers, width)
    return "\n\n".join(_part(cells, headers, part) for part in _parts(cells, headers, width, keys))


def case_table(
    cases: Iterable[tuple[str, Sequence[Any]]],
    headers: Sequence[str],
    title: str = "setting",
    *,
    keys: int = 1,
) -> str:
    """Return a table with one row per case, which stays narrow whatever the cases are called.

    Args:
        cases: What each case is called, and its cells. If all names are short, they are the first column,
            unless the table would be wider than the terminal, or 100 columns where there is none; else each
            has a line of its own above its row. Names are never cut.
        headers: The column titles, without that of the names.
        title: The title of the names, where they are a column.
        keys: As for `table`.
    """
    named, width = list(cases), columns()
    beside = _aligned([[name, *row] for name, row in named], [title, *headers])
    short = all(len(name) <= _SHORT_NAME for name, _ in named)
    if short and _widest(beside) <= (width or _WIDEST):
        return beside
    names, rows = [name for name, _ in named], [list(row) for _, row in named]
    parts = [[*range(len(headers))]] if width is None else _parts(rows, headers, width, keys)
    shown = []
    for part in parts:
        head, rule, *lines = _part(rows, headers, part).splitlines()
        shown.append("\n".join([head, rule, *chain.from_iterable(zip(names, lines, strict=True))]))
    return "\n\n".join(shown)


def reasons(cases: Iterable[tuple[str, str | None]]) -> str:
    """Return a paragraph for below a table: why a case re-routed nothing, one line for each that did not.

    Args:
        cases: What a case is called, and the reason; None where there is no reason to give one.
    """
    return "".join(f"\n{name}: {reason}" for name, reason in cases if reason is not None)


def _aligned(cells: list[list[Any]], headers: Sequence[str]) -> str:
    from tabulate import tabulate

    return str(
        tabulate(cells, headers=list(headers), tablefmt="simple", missingval="-", disable_numparse=True,
                 colalign=_alignment(cells, len(headers)))
    )  # fmt: skip


def _part(cells: list[list[Any]], headers: Sequence[str], part: Sequence[int]) -> str:
    """Return the table of some columns."""
    return _aligned([[row[i] for i in part] for row in cells], [headers[i] for i in part])


def _parts(cells: list[list[Any]], headers: Sequence[str], width: int, keys: int) -> list[list[int]]:
    """Return which columns stand side by side: the keys, and as many others as fit, at least one."""
    parts = [[*range(keys)]]
    for column in range(keys, len(headers)):
        wider = [*parts[-1], column]
        if len(parts[-1]) > keys and _widest(_part(cells, headers, wider)) > width:
            wider = [*range(keys), column]
            parts.append(wider)
        parts[-1] = wider
    return parts


def _wrapped(cells: list[list[Any]], headers: Sequence[str], width: int) -> list[list[Any]]:
    """Return the cells, the texts of the widest column in lines if the other columns leave it room."""
    lengths = [max([len(str(row[i])) for row in cells], default=0) for i in range(len(headers))]
    widest = lengths.index(max(lengths))
    others = [i for i in range(len(headers)) if i != widest]
    room = width - _BETWEEN - (_widest(_part(cells, headers, others)) if others else 0)
    if room < _READABLE:
        return cells

    def lines(cell: Any) -> Any:
        if not isinstance(cell, str):
            return cell
        return textwrap.fill(cell, room, break_long_words=False, break_on_hyphens=False)

    return [[lines(cell) if i == widest else cell for i, cell in enumerate(row)] for row in cells]


def _widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def _alignment(rows: list[list[Any]], width: int) -> list[str]:
    """Align a column right where all its cells begin like a number, else left."""
    if not rows:
        return ["left"] * width
    return ["right" if all(_numeric(row[i]) for row in rows) else "left" for i in range(width)]


def _numeric(cell: Any) -> bool:
    text = str(cell).lstrip("+-±")
    return cell is None or text == "" or text[0].isdigit()
