"""Texts that a model writes itself beside given ones: the expected error of the same settings by both.

    python benchmarks/own_texts.py --out benchmarks/results/own_texts.jsonl
    python benchmarks/own_texts.py benchmarks/models/suanpan --out benchmarks/results/own_texts.jsonl

The model is calibrated twice, on equally many tokens: of training texts of sere's ten tasks, and of texts
that it writes itself. At the experts that the tier ``balanced`` of given texts reads, the routing samples of
both tables say what error to expect. Printed is one line a batch size. With --out, one JSON line is appended.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean, geometric_mean

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer

from sere import calibrate
from sere.bundled import model_path
from sere.eval.calibration import MAX_TOKENS, calibrate_on_tasks
from sere.files import append_json_line
from sere.provenance import provenance
from sere.reroute.limits import active_by_rows
from sere.table import SimilarityTable
from sere.table.expected_loss import expected_error
from sere.table.tiers import DEFAULT_TIER

FORMAT = "sere-own-texts-1"
ROWS = (4, 8, 16, 32, 64, 128)


def error(table: SimilarityTable, B: int, M: int) -> float:
    """Return the mean expected error of the layers."""
    sample = table.routing
    assert sample is not None
    return fmean(expected_error(sample, table.layers[i], i, [M], [B])[B, M].error for i in sample.ids)


def main() -> None:
    """Calibrate twice, compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="model folder (default: the bundled one)")
    parser.add_argument("--tokens", type=int, default=MAX_TOKENS, help="of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="append the record to this file of JSON lines")
    args = parser.parse_args()
    folder = args.model or model_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = calibrate_on_tasks(model, tokenizer, max_tokens=args.tokens)
    own = calibrate(model, tokenizer, max_tokens=args.tokens)
    E, K = max(given.identity.experts.values()), max(given.identity.slots.values())
    most = active_by_rows(given.tiers[DEFAULT_TIER].active_experts, E, K)
    cells = [
        {"batch_size": B, "active_experts": M, "given": error(given, B, M), "own": error(own, B, M)}
        for B, M in ((B, most[B - 1]) for B in ROWS)
    ]
    ratios = [cell["own"] / cell["given"] for cell in cells]
    print(tabulate([[*cell.values(), ratio] for cell, ratio in zip(cells, ratios, strict=True)],
                   headers=["B", "M", "given texts", "own texts", "ratio"], floatfmt=".3f"))  # fmt: skip
    print(f"ratio, geometric mean: {geometric_mean(ratios):.2f}")
    if args.out is not None:
        config = {"model": folder.name, "tokens": args.tokens}
        append_json_line(args.out, {"format": FORMAT, "config": config, "cells": cells} | provenance())


if __name__ == "__main__":
    main()
