"""``sere calibrate``: texts and a model in, a similarity table out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.bundled import BUNDLED
from sere.cli.engine_options import add_engine_option, engine_options
from sere.cli.loading import add_trust_argument, pick_device
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, case_table, emit, say
from sere.cli.parser import add_command
from sere.cli.serve_line import say_how_to_serve
from sere.cli.terminal import paragraph, writes_over
from sere.defaults import SUFFIX, TABLE, table_here
from sere.errors import ConfigError, OutputError
from sere.files import check_writable, keep_other_files

if TYPE_CHECKING:
    from sere.table import SimilarityTable

_DETAILS = f"""Runs texts through the model once and measures, in each layer, how well experts replace
each other. Without --texts, the model writes its own, sampled at temperature 1. The table is written as
{TABLE} to the model's folder, where sere.apply, vLLM and the other commands find it. For a model on
the hub or in a read-only folder, it is written as NAME{SUFFIX} to the current folder, where they look next.
A checkpoint that does not fit into memory is read layer by layer, with --texts. With --engine vllm, vLLM
runs the texts: any model and quantization that it serves. If a run is interrupted, the same command
continues it."""

_EXAMPLES = """
  sere calibrate MODEL
  sere calibrate MODEL --texts notes.txt
  sere calibrate MODEL --texts requests.jsonl
  sere calibrate MODEL --texts data.jsonl --field content --metric frobenius
  sere calibrate MODEL --texts wikitext:wikitext-2-raw-v1 --metric projection,cosine --out tables/
  sere calibrate MODEL --metric cka --parameters '{"kernel": "rbf"}' --texts notes.txt --out cka.sere
  sere calibrate MODEL --metric weights
  sere calibrate MODEL --device cuda
  sere calibrate MODEL --texts notes.txt --low-memory --work-dir work
  sere calibrate MODEL --engine vllm --engine-option tensor_parallel_size=2
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Measure how well a model's experts replace each other, and write the table."
    parser = add_command(subparsers, "calibrate", summary, run, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder, a hub name, or 'bundled'")
    text = f"the table to write (default: {TABLE} in the model's folder), or a folder for several metrics"
    parser.add_argument("--out", metavar="TABLE", help=text)
    text = "replace the table that is in the default place (one that --out names is replaced anyway)"
    parser.add_argument("--force", action="store_true", help=text)
    _add_data(parser)
    _add_metric(parser)
    _add_engine(parser)
    _add_memory(parser)
    add_trust_argument(parser)
    add_json_flag(parser)


# An argument that is not given is None and left out, so that the defaults of `sere.calibrate` hold.
def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts")
    kinds = (
        "texts, chats or logged requests: a .txt, .jsonl, .json or .parquet file, or a Hugging Face data set "
        "(name or name:config); default: the model writes its own"
    )
    group.add_argument("--texts", metavar="FILE", help=kinds)
    text = "field or column of the text (default: text, or else messages, conversations or prompt)"
    group.add_argument("--field", help=text)
    group.add_argument("--split", help="split of a Hugging Face data set (default: train)")
    group.add_argument("--max-tokens", type=whole(1), metavar="N", help="total tokens (default: 51200)")
    group.add_argument("--seq-len", type=whole(1), metavar="N", help="tokens per sequence (default: 128)")
    group.add_argument(
        "--batch-size", type=whole(1), metavar="B", help="sequences per forward pass (default: 8)"
    )
    group.add_argument("--seed", type=whole(), metavar="N", help="seed of the documents' order (default: 0)")


def _add_metric(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("similarity")
    text = "see sere list metrics; several are computed in one pass (default: projection)"
    group.add_argument("--metric", default="projection", metavar="NAME[,NAME...]", help=text)
    text = "the metric's parameters; for several metrics, an object with one entry per metric name"
    group.add_argument("--parameters", type=_json_object, metavar="JSON", help=text)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    text = "what runs the model (default: transformers)"
    group.add_argument("--engine", choices=("transformers", "vllm"), default="transformers", help=text)
    text = "where Transformers computes: cpu, cuda, cuda:1, ... (default: cpu)"
    group.add_argument("--device", help=text)
    add_engine_option(group)


def _add_memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory and progress")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--low-memory", action="store_true", default=None, help="read layer by layer")
    how.add_argument("--whole", dest="low_memory", action="store_false", help="load the complete model")
    text = "where a run keeps what is done, for the same command to continue (default: TABLE.work)"
    group.add_argument("--work-dir", metavar="DIR", help=text)
    text = "do not measure, by gradients, how much losing each expert costs"
    group.add_argument("--no-sensitivity", dest="sensitivity", action="store_false", help=text)
    text = "memory limit for the experts' outputs held at a time (default: 256)"
    group.add_argument("--chunk-mb", type=whole(1), metavar="MB", help=text)
    text = "show progress; auto: a bar on a terminal, elsewhere a line a minute (default)"
    group.add_argument("--progress", choices=("auto", "always", "never"), default="auto", help=text)


def run(args: argparse.Namespace) -> int:
    """Calibrate and write the table or tables."""
    metrics = [name.strip() for name in args.metric.split(",") if name.strip()]
    if not metrics:
        raise ConfigError(f"--metric: expected at least one name, got {args.metric!r}; see sere list metrics")
    single = len(metrics) == 1
    out = _out(args, single)
    paths = _paths(out, metrics)
    from sere.calibrate import calibrate
    from sere.calibrate.run_folder import deleted_when_saved

    options = _options(args, metrics, out)
    if args.texts is None and metrics != ["weights"]:
        say(f"no --texts: {args.model} writes its own, sampled at temperature 1")
    with deleted_when_saved(options["work_dir"]):
        tables = calibrate(args.model, None, args.texts, metric=metrics, **options)
        written = {paths[name]: made for name, made in tables.items()}
        for path, made in written.items():
            made.save(path)
    emit(args, {"tables": [_summary(path, made) for path, made in written.items()]}, _render)
    _say_without_tiers(written)
    say(f"next: sere table verify {next(iter(written))}")
    if len(written) == 1:
        say_how_to_serve(args.model, *written)
    return 0


def _say_without_tiers(written: Mapping[Path, SimilarityTable]) -> None:
    """Say of each table that estimates no settings why, and what the defaults are then."""
    from sere.table.regime import why_no_loss

    for path, made in written.items():
        if not made.tiers and (why := why_no_loss(made)) is not None:
            say(
                f"{path}: estimates no settings: {why}; the defaults follow a formula that does not know "
                "the model"
            )


def _out(args: argparse.Namespace, single: bool) -> Path:
    """Return where to write: what was asked for, else the model's folder, else the current one.

    Raises:
        ConfigError: Several metrics have no default.
        OutputError: A table is in the default place, and nobody said that it may be replaced.
    """
    if args.out is not None:
        return Path(args.out)
    if not single:
        raise ConfigError(
            "--out: expected a folder for the tables of several metrics; give one with --out DIR"
        )
    from sere.table.storage import holds_table

    place = _default_place(args.model)
    if not args.force and place.is_file() and holds_table(place):
        raise OutputError(
            f"{place}: is there already and would be lost; replace it with --force, or write another file "
            "with --out FILE"
        )
    return place


def _default_place(model: str) -> Path:
    folder = Path(model)
    if model == BUNDLED or not folder.is_dir():
        return table_here(model)
    try:
        check_writable(folder / TABLE)
    except OutputError:
        return table_here(model)
    return folder / TABLE


def _options(args: argparse.Namespace, metrics: Sequence[str], out: Path) -> dict[str, Any]:
    """Return the keyword arguments of `sere.calibrate`: those that were given."""
    from sere.cli.progress_bar import bar

    names = ("field", "split", "max_tokens", "seq_len", "batch_size", "seed", "low_memory")
    options: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    # A terminal gets calibration's own bar, which counts tokens.
    auto = True if writes_over(sys.stderr) else bar
    options["progress"] = {"auto": auto, "always": "always", "never": False}[args.progress]
    # "." and ".." are no names that something could be appended to.
    beside = out if out.name.strip(".") else out / "calibration"
    options["work_dir"] = args.work_dir or beside.with_name(f"{beside.name}.work")
    options |= {"trust_remote_code": args.trust_remote_code, "sensitivity": args.sensitivity}
    options |= _engine(args)
    if args.parameters is not None:
        options["metric_parameters"] = {metrics[0]: args.parameters} if len(metrics) == 1 else args.parameters
    if args.chunk_mb is not None:
        options["chunk_bytes"] = args.chunk_mb * 2**20
    return options


def _engine(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments that choose the engine and its device."""
    from sere.calibrate.vllm.options import FIXED

    given = engine_options(args, FIXED, command="sere calibrate")
    if args.engine == "transformers":
        return {} if args.device is None else {"device": pick_device(args.device)}
    if args.device is not None:
        raise ConfigError(
            "--device: only applies to --engine transformers, because vLLM places the model itself; leave it "
            "out, or choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    from sere.cli.loading import log_vllm_to_stderr
    from sere.integrations.vllm.start.versions import check_installed

    check_installed()
    log_vllm_to_stderr()
    return {"engine": "vllm", "engine_options": given}


def _paths(out: Path, metrics: Sequence[str]) -> dict[str, Path]:
    """Return each metric's file; refuse what cannot be written before hours of work, not after."""
    single = len(metrics) == 1
    if single and out.is_dir():
        raise ConfigError(f"--out: expected a file, got the folder {out}; try {out / TABLE}")
    if not single and out.exists() and not out.is_dir():
        raise ConfigError(f"--out: expected a folder for several metrics, got the file {out}")
    paths = {name: out if single else out / f"{name}{SUFFIX}" for name in metrics}
    from sere.table.storage import holds_table

    for path in paths.values():
        keep_other_files(path, holds_table, "a similarity table")
        check_writable(path)
    return paths


def _summary(path: Path, made: SimilarityTable) -> dict[str, Any]:
    from sere.table.calibration_report import calibration_report, never_routed, skipped_rows, stability_of

    stability, rows = stability_of(made), skipped_rows(made)
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
        "skipped_rows": 0 if rows is None else rows["skipped"],
        "unknown_experts": sum(len(layer.unknown) for layer in made.layers.values()),
        "never_routed": None if made.routing is None else sum(never_routed(made).values()),
        "stability": None if stability is None else dict(stability),
        "report": list(calibration_report(made)),
        "fingerprint": made.fingerprint,
    }


def _render(result: dict[str, Any]) -> str:
    columns = {
        "metric": "metric", "layers": "layers", "num_experts": "experts", "top_k": "top_k",
        "calibration_tokens": "tokens", "unknown_experts": "not known",
    }  # fmt: skip
    rows = [
        (made["table"], [*(str(made[name]) for name in columns), made["fingerprint"][:12]])
        for made in result["tables"]
    ]
    reports = [
        "\n".join([f"\n{made['metric']}:", *map(paragraph, made["report"])]) for made in result["tables"]
    ]
    return "\n".join([case_table(rows, [*columns.values(), "fingerprint"], title="table"), *reports])


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value
