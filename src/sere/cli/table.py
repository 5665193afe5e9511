"""``sere table``: look at similarity tables."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sere.cli.loading import add_trust_argument, identity_from_config, table_of
from sere.cli.numbers import at_least
from sere.cli.output import add_json_flag, emit, say, table
from sere.cli.parser import add_command
from sere.cli.table_share import add_pull, add_push
from sere.errors import ConfigError

_EXAMPLES = """
  sere table show similarity.sere --threshold 0.5
  sere table verify similarity.sere --model MODEL
  sere table diff frobenius.sere projection.sere
  sere table plot similarity.sere --out table.png
  sere table import similarity_matrices.pt --model MODEL --out similarity.sere
  sere table push similarity.sere owner/name
  sere table pull owner/name
"""


_TABLE_HELP = "a table, a model that was calibrated, or a table on the hub (owner/name)"


def add(subparsers: Any) -> None:
    """Add ``sere table`` with its subcommands."""
    summary = "Show, verify, compare, draw or share similarity tables."
    parser = add_command(subparsers, "table", summary, examples=_EXAMPLES)
    commands = parser.add_subparsers(title="what to do", metavar="WHAT", required=True)
    for one in (_add_show, _add_verify, _add_diff, _add_plot, _add_import, add_push, add_pull):
        add_json_flag(one(commands))


def _add_show(commands: Any) -> argparse.ArgumentParser:
    summary = "Show what a table holds, where it comes from, and what to expect of it."
    parser = add_command(commands, "show", summary, _show, examples="  sere table show similarity.sere")
    parser.add_argument("path", type=Path, metavar="TABLE", help=_TABLE_HELP)
    parser.add_argument(
        "--threshold", type=at_least(0, "a similarity"), default=0.5, metavar="RHO",
        help="count experts without another expert of at least this similarity (default: %(default)s)",
    )  # fmt: skip
    return parser


def _add_verify(commands: Any) -> argparse.ArgumentParser:
    examples = "  sere table verify similarity.sere --model MODEL"
    parser = add_command(
        commands, "verify", "Check a table; exit code 1 if a check failed.", _verify, examples=examples
    )
    parser.add_argument("path", type=Path, metavar="TABLE", help=_TABLE_HELP)
    parser.add_argument("--model", metavar="MODEL", help="also check that the table belongs to this model")
    add_trust_argument(parser)
    return parser


def _add_diff(commands: Any) -> argparse.ArgumentParser:
    examples = "  sere table diff old.sere new.sere"
    parser = add_command(
        commands, "diff", "Compare two tables; exit code 1 if they differ.", _diff, examples=examples
    )
    parser.add_argument("path", type=Path, metavar="TABLE", help=_TABLE_HELP)
    parser.add_argument("other", type=Path, metavar="OTHER", help="another one")
    return parser


def _add_plot(commands: Any) -> argparse.ArgumentParser:
    summary = "Draw a table: heat maps, spread, critical experts."
    examples = "  sere table plot similarity.sere --out table.png"
    parser = add_command(commands, "plot", summary, _plot, examples=examples)
    parser.add_argument("path", type=Path, metavar="TABLE", help=_TABLE_HELP)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the picture: .png, .svg or .pdf (default: TABLE with .png)"
    )
    return parser


def _add_import(commands: Any) -> argparse.ArgumentParser:
    summary = "Make a table from the reference implementation's similarity_matrices.pt."
    examples = "  sere table import similarity_matrices.pt --model MODEL --out similarity.sere"
    parser = add_command(commands, "import", summary, _import, examples=examples)
    parser.add_argument("path", type=Path, metavar="FILE")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="the model that FILE was calibrated on"
    )
    add_trust_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE")
    return parser


def _show(args: argparse.Namespace) -> int:
    from sere.cli.table_show import describe, render
    from sere.table import SimilarityTable

    path = table_of(args.path)
    emit(args, describe(path, SimilarityTable.load(path), args.threshold), render)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from sere.table import verify_file

    path = table_of(args.path)
    checks = verify_file(path, None if args.model is None else identity_from_config(args))
    passed = all(check.passed for check in checks)
    value = {"path": str(path), "passed": passed, "checks": [asdict(check) for check in checks]}
    emit(args, value, _render_verify)
    return 0 if passed else 1


def _render_verify(value: dict[str, Any]) -> str:
    rows = [
        [check["name"], "ok" if check["passed"] else "FAILED", check["detail"]] for check in value["checks"]
    ]
    return table(rows, ["check", "result", "detail"])


def _diff(args: argparse.Namespace) -> int:
    from sere.table import SimilarityTable, compare

    path, other = table_of(args.path), table_of(args.other)
    result = compare(SimilarityTable.load(path), SimilarityTable.load(other))
    for warning in result.warnings:
        say(f"warning: {warning}")
    emit(args, {"path": str(path), "other": str(other), **asdict(result)}, _render_diff)
    return 0 if result.equal else 1


def _render_diff(value: dict[str, Any]) -> str:
    if value["equal"]:
        return "equal: all similarities and scales are bit-identical"
    rows = [
        [
            layer["layer"],
            f"{layer['max_difference']:.3g}",
            f"{layer['mean_difference']:.3g}",
            f"{100 * layer['choices_changed']:.1f} %",
            layer["known_in_one"],
        ]
        for layer in value["layers"]
    ]
    headers = ["layer", "largest difference", "mean difference", "changed best expert", "known in only one"]
    return table(rows, headers)


def _plot(args: argparse.Namespace) -> int:
    from sere.table import SimilarityTable
    from sere.table.plot import plot

    path = table_of(args.path)
    out: Path = args.out or path.with_suffix(".png")
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--out: expected a picture file (.png, .svg, .pdf), got {str(out)!r}")
    plot(SimilarityTable.load(path), out)
    emit(args, {"picture": str(out)}, lambda value: f"wrote {value['picture']}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from sere.table import import_reference_table

    imported = import_reference_table(args.path, identity_from_config(args))
    imported.save(args.out)
    value = {
        "path": str(args.out),
        "layers": len(imported.layers),
        "fingerprint": imported.fingerprint,
        "notes": list(imported.provenance.get("notes", [])),
    }
    emit(args, value, _render_import)
    return 0


def _render_import(value: dict[str, Any]) -> str:
    return "\n".join([f"wrote {value['path']}: {value['layers']} layers", *value["notes"]])
