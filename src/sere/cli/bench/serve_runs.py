"""What ``sere bench serve`` runs: the engines that it starts, and the model and table that they load."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.cli.bench.serve_tables import pairs
from sere.cli.loading import dtype_name, engine_checkpoint, log_vllm_to_stderr, needed_table
from sere.cli.output import say
from sere.cli.server_logs import Logs
from sere.cli.settings import DEFAULT
from sere.defaults import TABLE

if TYPE_CHECKING:
    from sere.bench.vllm.serve_plan import ServePlan

BATCH_SIZES = (8, 16, 32)


def online_records(args: argparse.Namespace, logs: Logs) -> Iterator[dict[str, Any]]:
    """Yield the records of a server under load as they are measured."""
    from sere.bench.vllm.engine_options import OF_SERVER, as_arguments, parse_engine_options, start_options
    from sere.bench.vllm.load_generator import Load
    from sere.bench.vllm.over_http import SERVED, OverHttpPlan, bench_over_http
    from sere.engines.server import Server, serve
    from sere.integrations.vllm.start.versions import check_installed, check_routes

    sizes = args.batch_size or ([] if args.request_rate else BATCH_SIZES)
    plan = OverHttpPlan(
        loads=[
            *(Load(concurrency=B) for B in dict.fromkeys(sizes)),
            *(Load(request_rate=rate) for rate in dict.fromkeys(args.request_rate or ())),
        ],
        requests=32 if args.requests is None else args.requests,
        **_common(args, parse_engine_options(args.engine_option, OF_SERVER)),
    )
    check_routes(check_installed())
    most = max(plan.count(load) if load.concurrency is None else load.concurrency for load in plan.loads)
    with _model(args, plan) as (path, similarities, subject):
        options = start_options(plan, most, dtype=subject["dtype"], trust_remote_code=args.trust_remote_code)
        options |= {"served_model_name": SERVED, "disable_uvicorn_access_log": True}
        arguments = as_arguments(options)

        def start(settings: Mapping[str, Any]) -> AbstractContextManager[Server]:
            say(", ".join(["starting vllm serve", *pairs(settings)]))
            return serve(path, _reroute(similarities, settings), logs.file("server"), *arguments)

        with ExitStack() as stack:
            vanilla = None
            if args.vanilla:
                say("starting vllm serve without sere")
                vanilla = stack.enter_context(serve(path, None, logs.file("vanilla"), *arguments))
            yield from bench_over_http(start, vanilla, subject, plan)


def records(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the records of an engine in this process as they are measured."""
    from sere.bench.vllm.engine_options import IN_PROCESS, parse_engine_options, start_options
    from sere.bench.vllm.in_process import InProcessPlan, bench_in_process
    from sere.engines.in_process import in_process_engine
    from sere.integrations.vllm.start.versions import check_installed

    plan = InProcessPlan(
        batch_sizes=list(dict.fromkeys(args.batch_size or BATCH_SIZES)),
        **_common(args, parse_engine_options(args.engine_option, IN_PROCESS)),
    )
    check_installed()
    log_vllm_to_stderr()
    with _model(args, plan) as (path, similarities, subject):
        options = start_options(
            plan, max(plan.batch_sizes), dtype=subject["dtype"], trust_remote_code=args.trust_remote_code
        )
        options |= {"async_scheduling": False, "disable_log_stats": True}

        def start(settings: Mapping[str, Any]) -> AbstractContextManager[Any]:
            say(", ".join(["starting an engine", *pairs(settings)]))
            return in_process_engine(path, _reroute(similarities, settings), threads=args.threads, **options)

        yield from bench_in_process(start, subject, plan)


def _common(args: argparse.Namespace, engine_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both plans hold."""
    from sere.cli.progress_bar import bar
    from sere.policies.spec import parse_specs

    return {
        "settings": parse_specs(args.setting or [DEFAULT]), "prompt": args.prompt,
        "steps": args.steps, "rounds": args.rounds, "compiled": args.compile, "seed": args.seed,
        "engine_options": engine_options, "progress": bar,
    }  # fmt: skip


def _reroute(similarities: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of re-routing that an engine starts with."""
    return {"table": str(similarities), "select_top_k": 1, "log_seconds": 0} | dict(settings)


@contextmanager
def _model(args: argparse.Namespace, plan: ServePlan) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """Give the checkpoint's folder, its table and what a reader must know of both.

    A preset's are made for the time of the run.

    Raises:
        ConfigError: A setting needs what the table lacks.
    """
    with ExitStack() as stack:
        if args.preset is None:
            path, similarities = engine_checkpoint(args), needed_table(args)
        else:
            path, similarities = stack.enter_context(_random(args))
        yield path, similarities, _subject(args, plan, path, similarities)


@contextmanager
def _random(args: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Make a preset's checkpoint and its table."""
    import torch

    from sere.bench.target import random_model, random_table

    layers = args.layers if args.layers is not None else 2 if args.preset == "tiny" else 4
    dtype = torch.bfloat16 if args.dtype == "auto" else getattr(torch, args.dtype)
    say(f"making {args.preset} with {layers} layers and random weights")
    with tempfile.TemporaryDirectory(prefix="sere-bench-") as folder:
        model = random_model(args.preset, layers=layers, dtype=dtype, seed=args.seed)
        path, similarities = Path(folder) / "model", Path(folder) / TABLE
        model.save_pretrained(path)
        random_table(model, seed=args.seed).save(similarities)
        del model
        yield path, similarities


def _subject(args: argparse.Namespace, plan: ServePlan, path: Path, similarities: Path) -> dict[str, Any]:
    """Say what is timed, as far as checkpoint and table tell."""
    from sere.checkpoints import load_config
    from sere.engines.transformers import check_settings
    from sere.table import SimilarityTable

    table, trusted = SimilarityTable.load(similarities), args.trust_remote_code
    config = load_config(path, trust_remote_code=trusted).get_text_config()
    check_settings(plan.settings, table)
    return {
        "model": args.preset or table.identity.name,
        "weights": "random" if args.preset is not None else "checkpoint",
        "layers": config.num_hidden_layers,
        "num_experts": table.identity.num_experts,
        "top_k": table.identity.top_k,
        "vocab_size": config.vocab_size,
        "dtype": dtype_name(path, args.dtype, trust_remote_code=trusted),
        "similarity": table.metric,
    }
