"""``sere calibrate``: texts and a model in, a similarity table out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.cli.loading import add_trust_argument
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, emit, say, table
from sere.cli.parser import add_command
from sere.errors import ConfigError
from sere.files import check_writable, keep_other_files

if TYPE_CHECKING:
    from sere.table import SimilarityTable

_DETAILS = """Runs the texts through the model once and measures, in each layer, how well experts replace
each other. A checkpoint that does not fit the memory available is read layer by layer; an interrupted
run of that kind goes on where it was when the same command is given again."""

_EXAMPLES = """
  sere calibrate MODEL --texts notes.txt --out table.safetensors
  sere calibrate MODEL --texts data.jsonl --field content --metric projection --out table.safetensors
  sere calibrate MODEL --texts wikitext:wikitext-2-raw-v1 --metric frobenius,cosine --out tables/
  sere calibrate MODEL --metric cka --parameters '{"kernel": "rbf"}' --texts notes.txt --out table.safetensors
  sere calibrate MODEL --metric weights --out table.safetensors
  sere calibrate MODEL --texts notes.txt --low-memory --work-dir work --out table.safetensors
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "measure how well a model's experts replace each other"
    parser = add_command(subparsers, "calibrate", summary, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder, a hub name, or 'bundled'")
    text = "the table to write; a folder where several metrics are asked for"
    parser.add_argument("--out", required=True, metavar="TABLE", help=text)
    _add_data(parser)
    _add_metric(parser)
    _add_memory(parser)
    add_trust_argument(parser)
    add_json_flag(parser)
    parser.set_defaults(run=run)


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts")
    kinds = ".txt, .jsonl, .json or .parquet file, or a Hugging Face data set (name or name:config)"
    group.add_argument("--texts", metavar="FILE", help=kinds)
    text = "field or column of the text or conversation (default: text, or else messages or conversations)"
    group.add_argument("--field", default="text", help=text)
    group.add_argument("--split", default="train", help="part of a Hugging Face data set (default: train)")
    group.add_argument("--max-tokens", type=whole(1), default=51_200, metavar="N", help="(default: 51200)")
    group.add_argument(
        "--seq-len", type=whole(1), default=128, metavar="N", help="tokens a sequence (default: 128)"
    )
    group.add_argument(
        "--batch-size", type=whole(1), default=8, metavar="B", help="sequences a pass (default: 8)"
    )
    group.add_argument("--seed", type=whole(), default=0, help="seed of the documents' order (default: 0)")


def _add_metric(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("similarity")
    names = "frobenius, cosine, cka_linear, cka_rbf, cka_polynomial, cka, projection or weights"
    text = f"{names}; several are computed in one pass (default: frobenius)"
    group.add_argument("--metric", default="frobenius", metavar="NAME[,NAME...]", help=text)
    text = "the metric's parameters; for several metrics, an object by metric name"
    group.add_argument("--parameters", type=_json_object, default=None, metavar="JSON", help=text)


def _add_memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory and progress")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--low-memory", action="store_true", default=None, help="go layer by layer")
    how.add_argument("--whole", dest="low_memory", action="store_false", help="load the model whole")
    text = "where a layer-by-layer run keeps what it has finished (default: TABLE.work)"
    group.add_argument("--work-dir", metavar="DIR", help=text)
    text = "bound on the experts' outputs held at a time (default: 256)"
    group.add_argument("--chunk-mb", type=whole(1), default=256, metavar="MB", help=text)
    text = "show a progress bar; auto: on a terminal (default)"
    group.add_argument("--progress", choices=("auto", "always", "never"), default="auto", help=text)


def run(args: argparse.Namespace) -> int:
    """Calibrate and write the table or tables."""
    metrics = [name.strip() for name in args.metric.split(",") if name.strip()]
    single = len(metrics) == 1
    out = Path(args.out)
    places = _places(out, metrics)
    from sere.calibrate import calibrate

    tables: Any = calibrate(
        args.model, None, args.texts, metric=metrics[0] if single else metrics, **_options(args, out)
    )
    written = {places[name]: made for name, made in _named(tables).items()}
    for path, made in written.items():
        made.save(path)
    emit(args, {"tables": [_summary(path, made) for path, made in written.items()]}, _render)
    return 0


def _options(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    progress = {"auto": True, "always": "always", "never": False}[args.progress]
    work_dir = args.work_dir if args.work_dir is not None else out.with_name(f"{out.name}.work")
    same = (
        "field",
        "split",
        "max_tokens",
        "seq_len",
        "batch_size",
        "seed",
        "low_memory",
        "trust_remote_code",
    )
    return {name: getattr(args, name) for name in same} | {
        "metric_parameters": args.parameters,
        "chunk_bytes": args.chunk_mb * 2**20,
        "progress": progress,
        "work_dir": work_dir,
    }


def _places(out: Path, metrics: Sequence[str]) -> dict[str, Path]:
    """Return each metric's file; refuse what cannot be written before hours of work, not after."""
    single = len(metrics) == 1
    if single and out.is_dir():
        raise ConfigError(f"--out: expected a file, got the folder {out}; try {out / 'table.safetensors'}")
    if not single and out.exists() and not out.is_dir():
        raise ConfigError(f"--out: expected a folder for several metrics, got the file {out}")
    places = {name: out if single else out / f"{name}.safetensors" for name in metrics}
    from sere.table.storage import holds_table

    for path in places.values():
        keep_other_files(path, holds_table, "a similarity table")
        check_writable(path)
    return places


def _named(tables: Any) -> Mapping[str, SimilarityTable]:
    return tables if isinstance(tables, dict) else {tables.metric: tables}


def _summary(path: Path, made: SimilarityTable) -> dict[str, Any]:
    return {
        "table": str(path),
        "metric": made.metric,
        "metric_parameters": dict(made.metric_parameters),
        "model": made.identity.name,
        "layers": len(made.layers),
        "num_experts": made.identity.num_experts,
        "top_k": made.identity.top_k,
        "calibration_tokens": made.calibration_tokens,
        "data_digest": made.data_digest,
        "unknown_experts": sum(len(layer.unknown) for layer in made.layers.values()),
        "fingerprint": made.fingerprint,
    }


def _render(result: dict[str, Any]) -> str:
    columns = ("table", "metric", "layers", "num_experts", "top_k", "calibration_tokens", "unknown_experts")
    rows = [[*(str(made[name]) for name in columns), made["fingerprint"][:12]] for made in result["tables"]]
    say(f"next: sere table verify {result['tables'][0]['table']}")
    return table(rows, (*columns, "fingerprint"))


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value
