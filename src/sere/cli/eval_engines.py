"""What ``sere eval`` decodes with: a model of Transformers, or engines of vLLM."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sere.cli.loading import load
from sere.cli.output import say
from sere.defaults import TABLE


def on_transformers(args: argparse.Namespace, plan: Any, partial: Path | None) -> dict[str, Any]:
    """Evaluate with a model of Transformers and return the record."""
    from sere.cli.progress_bar import bar
    from sere.eval.run import evaluate

    model, tokenizer = load(args)
    needed = any(setting.needs_table for setting in plan.settings)
    similarities = given_or_calibrated(args, model, tokenizer) if needed or args.table is not None else None
    return evaluate(model, tokenizer, plan, table=similarities, checkpoint=partial, progress=bar)


def on_vllm(
    args: argparse.Namespace, plan: Any, partial: Path | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Evaluate with engines of vLLM, started with the options that were given, and return the record.

    Their table is the file's, or made from the weights.
    """
    from tempfile import TemporaryDirectory

    from sere.cli.loading import dtype_name, engine_checkpoint, log_vllm_to_stderr, tokenizer_of
    from sere.cli.progress_bar import bar
    from sere.engines.in_process import in_process_engine
    from sere.engines.settings import start_settings
    from sere.eval.digests import files_digest
    from sere.eval.vllm import evaluate_engine
    from sere.integrations.vllm.start.versions import check_installed
    from sere.table import SimilarityTable

    check_installed()
    log_vllm_to_stderr()
    path = engine_checkpoint(args)
    tokenizer = tokenizer_of(path, args, any_type=True)
    dtype = dtype_name(path, args.dtype, trust_remote_code=args.trust_remote_code)
    options: dict[str, Any] = {
        "skip_tokenizer_init": True, "dtype": dtype, "enforce_eager": True, "disable_log_stats": True,
        "max_num_seqs": max(plan.batch_sizes), "enable_prefix_caching": False, "seed": args.seed,
        "trust_remote_code": args.trust_remote_code, **given,
    }  # fmt: skip
    with TemporaryDirectory(prefix="sere-eval-") as folder:
        place = args.table if args.table is not None else Path(folder) / TABLE
        if args.table is None:
            model, _ = load(args)
            given_or_calibrated(args, model, tokenizer).save(place)
            del model
        return evaluate_engine(
            lambda settings: in_process_engine(path, start_settings(place, settings), **options),
            tokenizer, plan, table=SimilarityTable.load(place), dtype=dtype, weights=files_digest(path),
            checkpoint=partial, progress=bar, engine_options=given,
        )  # fmt: skip


def given_or_calibrated(args: argparse.Namespace, model: Any, tokenizer: Any) -> Any:
    """Return the similarity table: the file's or, for a model with sere's own tasks, one calibrated now."""
    if args.table is not None:
        from sere.table import SimilarityTable

        return SimilarityTable.load(args.table)
    from sere.eval.calibration import calibrate_on_tasks
    from sere.similarity import DEFAULT_METRIC

    say(f"no --table: calibrating {args.model} on training texts of sere's own tasks")
    return calibrate_on_tasks(model, tokenizer, metric=args.metric or DEFAULT_METRIC, seed=args.seed)
