"""What ``sere lm-eval`` decodes with: a model of Transformers, or engines of vLLM."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def on_transformers(args: argparse.Namespace, plan: Any, found: Any, partial: Path | None) -> dict[str, Any]:
    """Evaluate with a model of Transformers and return the record."""
    from sere.cli.eval_engines import given_or_calibrated
    from sere.cli.loading import load
    from sere.engines.transformers import check_settings
    from sere.eval.digests import weights_digest
    from sere.eval.harness.model import models_of
    from sere.eval.harness.run import evaluate_tasks
    from sere.eval.record import header_of_model

    model, tokenizer = load(args)
    needed = any(setting.needs_table for setting in plan.settings)
    table = given_or_calibrated(args, model, tokenizer) if needed or args.table is not None else None
    check_settings(plan.settings, table)
    return evaluate_tasks(
        plan, found,
        lambda settings, B: models_of(
            model, tokenizer, settings, B, table=table, phases=plan.phases, seed=plan.seed
        ),
        header_of_model(model, plan, table), weights=weights_digest(model), checkpoint=partial,
    )  # fmt: skip


def on_vllm(
    args: argparse.Namespace, plan: Any, found: Any, partial: Path | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Evaluate with engines of vLLM, started with the options that were given, and return the record."""
    from sere.cli.loading import dtype_name, engine_checkpoint, log_vllm_to_stderr
    from sere.engines.in_process import in_process_engine
    from sere.engines.settings import start_settings
    from sere.eval.digests import files_digest
    from sere.eval.harness.run import evaluate_tasks
    from sere.eval.harness.scored import DECODE
    from sere.eval.harness.vllm import engine_models
    from sere.eval.record import make_header
    from sere.integrations.vllm.start.versions import check_installed
    from sere.table import SimilarityTable

    check_installed()
    log_vllm_to_stderr()
    path, table = engine_checkpoint(args), SimilarityTable.load(args.table)
    dtype = dtype_name(path, args.dtype, trust_remote_code=args.trust_remote_code)
    options: dict[str, Any] = {
        "dtype": dtype, "enforce_eager": True, "disable_log_stats": True, "enable_prefix_caching": False,
        "seed": args.seed, "trust_remote_code": args.trust_remote_code, **given,
    }  # fmt: skip
    decode = plan.phases == DECODE
    if decode:
        from sere.engines.forced_tokens import PROCESSOR

        options["logits_processors"] = [PROCESSOR]
    return evaluate_tasks(
        plan, found,
        lambda settings, B: engine_models(
            lambda own: in_process_engine(path, start_settings(args.table, own), max_num_seqs=B, **options),
            settings, str(path), dtype=dtype, seed=plan.seed, trust_remote_code=args.trust_remote_code,
            rows=B if decode else None,
        ),
        make_header(
            plan, table.identity, table, dtype=dtype, experts_implementation="vllm", engine_options=given
        ),
        weights=files_digest(path), checkpoint=partial,
    )  # fmt: skip
