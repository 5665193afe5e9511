"""``sere top``: what re-routing does in a running server, in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sere.cli.output import add_json_flag, emit, show
from sere.cli.parser import add_command

if TYPE_CHECKING:
    from rich.console import Console

_EVERY_S = 1.0

_DETAILS = """URL is the server's address, or that of its metrics_port. The server needs the routes of sere:
VLLM_PLUGINS=sere. If it asks for a key, set VLLM_API_KEY to that. On a terminal the figures are new each
second until Ctrl-C; elsewhere, with TERM=dumb and with --once, they are printed once. --json without --once
prints one line each second, with the points that are new since the line before. Colors follow NO_COLOR."""


def add(subparsers: Any) -> None:
    """Add ``sere top``."""
    parser = add_command(
        subparsers, "top", "Watch re-routing in a running vLLM server.", run, details=_DETAILS,
        examples="  sere top http://127.0.0.1:8000\n  sere top http://127.0.0.1:8000 --once --json",
    )  # fmt: skip
    parser.add_argument("url", metavar="URL", help="the server, such as http://127.0.0.1:8000")
    parser.add_argument("--once", action="store_true", help="print the figures once")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``sere top``."""
    from sere.integrations.vllm.live.fetch import API_KEY, LiveServer, live_url

    with LiveServer(live_url(args.url), os.environ.get(API_KEY)) as server:
        if args.json:
            for found in _lines(server.fetch, once=args.once):
                emit(args, found, str)
            return 0
        console = _console()
        # Elsewhere lines cannot be written over.
        if args.once or not console.is_terminal or console.is_dumb_terminal:
            show(_text(console, _once(server.fetch)), end="")
            return 0
        return _watch(console, server.fetch)


def _lines(ask: Callable[[float], dict[str, Any]], *, once: bool) -> Iterator[dict[str, Any]]:
    """Yield an answer each second, the first with all points and each later one with those that are new."""
    found, since = _once(ask), 0.0
    yield found
    while not once:
        since = found["points"][-1]["at"] if found["points"] else since
        time.sleep(_EVERY_S)
        earlier, found = found, _after(since, found, ask)
        if found["now"]["run"] != earlier["now"]["run"]:
            since = 0.0
        yield found


def _once(ask: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """Return one answer about the last seconds, for which an engine that nobody watched is asked twice."""
    found = ask(0.0)
    if found["now"]["recent"]["seconds"] is None:
        time.sleep(1.1 * _EVERY_S)
        found = ask(0.0)
    return found


def _console() -> Console:
    """Return the terminal or file behind stdout.

    Raises:
        MissingDependency: There is no rich.
    """
    from sere.errors import MissingDependency, how_to_install

    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingDependency(
            f"sere top needs rich ({how_to_install('terminal')}); --json works without it"
        ) from error
    return Console(file=sys.stdout, highlight=False)


def _text(console: Console, found: dict[str, Any]) -> str:
    from sere.cli.top_view import view

    with console.capture() as captured:
        console.print(view(found, console))
    return captured.get()


def _watch(console: Console, ask: Callable[[float], dict[str, Any]]) -> int:
    """Show new figures each second until Ctrl-C, which is how this ends well."""
    from rich.live import Live

    from sere.cli.top_view import lost, view
    from sere.errors import ServerError

    found = ask(0.0)
    try:
        with Live(view(found, console, fit=True), console=console, screen=True, auto_refresh=False) as shown:
            while True:
                time.sleep(_EVERY_S)
                try:
                    found = _newer(found, ask)
                except ServerError as error:
                    shown.update(lost(error, found, console), refresh=True)
                    continue
                shown.update(view(found, console, fit=True), refresh=True)
    except KeyboardInterrupt:
        return 0


def _newer(found: dict[str, Any], ask: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """Return the next figures, with the points before them unless the server was started again."""
    points = found["points"]
    new = _after(points[-1]["at"] if points else 0.0, found, ask)
    if new["now"]["run"] != found["now"]["run"]:
        return new
    oldest = new["now"]["at"] - new["now"]["kept_s"]
    return new | {"points": [one for one in points if one["at"] >= oldest] + new["points"]}


def _after(since: float, found: dict[str, Any], ask: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """Return the figures after others, with the points after a moment, or all if the server started again."""
    new = ask(since)
    return new if new["now"]["run"] == found["now"]["run"] else ask(0.0)
