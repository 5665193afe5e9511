"""The models and tables that ``sere bench serve`` times."""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.cli.bench.arguments import depths_of
from sere.cli.loading import dtype_name, engine_checkpoint, needed_table, quiet_transformers
from sere.cli.output import say
from sere.defaults import TABLE

if TYPE_CHECKING:
    from sere.bench.vllm.engine_groups import Target
    from sere.bench.vllm.serve_plan import ServePlan


@contextmanager
def targets(args: argparse.Namespace, plan: ServePlan) -> Iterator[list[Target]]:
    """Give the checkpoints with their tables: that of MODEL, or those of the preset, the shallower first.

    A preset's are made for the time of the run.

    Raises:
        ConfigError: A setting needs what the table lacks.
    """
    from sere.bench.vllm.engine_groups import Target

    with ExitStack() as stack:
        if args.preset is None:
            paths = [(engine_checkpoint(args), needed_table(args))]
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sere-bench-")))
            paths = [_make(args, layers, folder / str(layers)) for layers in depths_of(args)]
        yield [Target(path, table, _subject(args, plan, path, table)) for path, table in paths]


def _make(args: argparse.Namespace, layers: int, folder: Path) -> tuple[Path, Path]:
    """Make a preset's checkpoint with so many layers, and its table."""
    import torch

    from sere.bench.target import random_model, random_table

    dtype = torch.bfloat16 if args.dtype == "auto" else getattr(torch, args.dtype)
    say(f"making {args.preset} with {layers} layers and random weights")
    quiet_transformers()
    model = random_model(args.preset, layers=layers, dtype=dtype, seed=args.seed)
    path, table = folder / "model", folder / TABLE
    model.save_pretrained(path)
    random_table(model, seed=args.seed, factors=True).save(table)
    del model
    gc.collect()
    return path, table


def _subject(args: argparse.Namespace, plan: ServePlan, path: Path, similarities: Path) -> dict[str, Any]:
    """Say what is timed, as far as checkpoint and table tell."""
    from sere.bench.shapes import SHAPES
    from sere.checkpoints import load_config
    from sere.engines.transformers import check_settings
    from sere.table import SimilarityTable

    table, trusted = SimilarityTable.load(similarities), args.trust_remote_code
    config = load_config(path, trust_remote_code=trusted).get_text_config()
    check_settings(plan.settings, table)
    layers = config.num_hidden_layers
    return {
        "model": args.preset or table.identity.name,
        "weights": "random" if args.preset is not None else "checkpoint",
        "layers": layers,
        "published_layers": layers if args.preset is None else SHAPES[args.preset].layers,
        "num_experts": table.identity.num_experts,
        "top_k": table.identity.top_k,
        "vocab_size": config.vocab_size,
        "dtype": dtype_name(path, args.dtype, trust_remote_code=trusted),
        "similarity": table.metric,
    }
