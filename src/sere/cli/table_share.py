"""``sere table push`` and ``sere table pull``: share tables on the hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sere.cli.loading import quiet_hub, table_of
from sere.cli.output import emit, say
from sere.cli.parser import add_command
from sere.defaults import TABLE, table_here
from sere.errors import OutputError

_PUSH = """Uploads the table and a card that says what it is, as one commit. The repository is created if it
does not exist. A card there that sere did not write stays: so a table can go beside a model's own weights.
Log in first, with hf auth login or HF_TOKEN."""

_PULL = """Engines and commands take the repository's name wherever they take a table, and download it by
themselves: "table": "owner/name". This command is for machines without a network, and to keep a copy."""


def add_push(commands: Any) -> argparse.ArgumentParser:
    """Add ``sere table push``."""
    summary = "Upload a table to a repository on the Hugging Face hub."
    examples = "  sere table push similarity.sere owner/name\n  sere table push MODEL owner/name --pr"
    parser = add_command(commands, "push", summary, _push, details=_PUSH, examples=examples)
    parser.add_argument("path", type=Path, metavar="TABLE", help="a table, or a model that was calibrated")
    parser.add_argument("repository", metavar="REPOSITORY", help="owner/name")
    parser.add_argument(
        "--revision",
        metavar="BRANCH",
        help="branch to commit to; created if it does not exist (default: main)",
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--message", metavar="TEXT", help="the commit's message")
    text = "the model's name on the hub, if it is not the table's own name for it"
    parser.add_argument("--base-model", metavar="OWNER/NAME", help=text)
    return parser


def add_pull(commands: Any) -> argparse.ArgumentParser:
    """Add ``sere table pull``."""
    summary = "Download a table from a repository on the Hugging Face hub."
    examples = "  sere table pull owner/name\n  sere table pull owner/name --revision v2 --out moe.sere"
    parser = add_command(commands, "pull", summary, _pull, details=_PULL, examples=examples)
    parser.add_argument("repository", metavar="REPOSITORY", help="owner/name, or owner/name@revision")
    parser.add_argument("--revision", metavar="REVISION", help="branch, tag or commit (default: main)")
    text = "the file to write (default: the model's name with .sere in the current folder, where it is found)"
    parser.add_argument("--out", type=Path, metavar="TABLE", help=text)
    text = "replace the table that is in the default place (one that --out names is replaced anyway)"
    parser.add_argument("--force", action="store_true", help=text)
    return parser


def _push(args: argparse.Namespace) -> int:
    from sere.table import SimilarityTable

    quiet_hub()
    table = SimilarityTable.load(table_of(args.path))
    done = table.push_to_hub(
        args.repository, revision=args.revision, private=args.private, create_pr=args.pr,
        commit_message=args.message, base_model=args.base_model,
    )  # fmt: skip
    name, commit = done.repository
    emit(args, {"repository": name, "commit": None if args.pr else commit, "url": done.url}, _address)
    if not args.pr:
        branch = "" if args.revision is None else f"@{args.revision}"
        say(f'use it with: sere.apply(model, "{name}{branch}"), or "table": "{name}{branch}" in vLLM')
    return 0


def _address(value: dict[str, Any]) -> str:
    return str(value["url"])


def _pull(args: argparse.Namespace) -> int:
    from sere.hub import fetch_file
    from sere.table import SimilarityTable
    from sere.table.sharing import find_repository
    from sere.table.storage import holds_table

    quiet_hub()
    repository = find_repository(args.repository, args.revision)
    table = SimilarityTable.load(fetch_file(repository, TABLE))
    # Where commands look for the table of this model.
    out = table_here(table.identity.name) if args.out is None else args.out
    if args.out is None and not args.force and out.is_file() and holds_table(out):
        raise OutputError(
            f"{out}: is there already and would be lost; replace it with --force, or write another file with "
            "--out FILE"
        )
    table.save(out)
    value = {"repository": repository.name, "revision": repository.revision, "table": str(out)}
    emit(args, value | {"model": table.identity.name, "fingerprint": table.fingerprint}, _written)
    say(f"next: sere table verify {out} --model MODEL")
    return 0


def _written(value: dict[str, Any]) -> str:
    return f"{value['table']}: the table of {value['model']}, fingerprint {value['fingerprint'][:12]}"
