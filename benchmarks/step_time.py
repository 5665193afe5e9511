"""Compare the predicted time of a decode step with the records of timed engines.

Run ``python benchmarks/step_time.py`` (``--measure`` also measures this machine's ceilings, on an idle
machine). The newest record of each case of a re-routed engine on a CPU gives a measured ratio to ``off`` and,
from the experts and the slots with weight that it counted, a predicted one. Records of a processor whose
ceilings were measured are predicted from these. For other records of one processor, model, depth and mode,
the two ceilings are those that fit their times best: their errors say how right the form of the prediction
is, not how right the ceilings are.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from tabulate import tabulate

from sere.bench.replay import REPLAY
from sere.bench.shapes import shape_config
from sere.files import write_json
from sere.outlook import measure_here
from sere.provenance import describe_processor, provenance
from sere.report.former import modernize
from sere.step_time import Ceilings, StepWeights, step_seconds

RESULTS = Path("benchmarks/results")
RECORDS = (
    "serve.jsonl", "serve_emulated.jsonl", "serve_avx2.jsonl", "serve_engines.jsonl", "serve_gain.jsonl",
    "serve_share.jsonl", "serve_presets.jsonl",
)  # fmt: skip
DEFAULT_OUT = RESULTS / "step_time.json"
# Floating point operations per byte read: where the best fit is looked for.
_BALANCES = [10 ** (exponent / 50) for exponent in range(-50, 126)]

Record = Mapping[str, Any]


def read(files: Sequence[Path]) -> list[Record]:
    """Return the newest record of each case of decoding on a CPU whose experts were counted."""
    found: dict[Any, Record] = {}
    for file in filter(Path.exists, files):
        for line in file.read_text("utf-8").splitlines():
            one = modernize(json.loads(line))
            decodes = one.get("measure", "tpot") == "tpot" and one["experts"] is not None
            if decodes and not one["setting"].startswith((REPLAY, "vanilla")):
                case = one["batch_size"], one["setting"], json.dumps(one["config"].get("start", {}))
                found[file.name, key(one), case] = dict(one) | {"file": file.name}
    return list(found.values())


def key(record: Record) -> tuple[Any, ...]:
    """Return which records belong together: processor, threads, dtype, model, layers, mode, file."""
    subject, config = record["subject"], record["config"]
    machine = record["provenance"]["machine"]
    mode = ", ".join(
        [config["mode"], *(f"{name}={value}" for name, value in config.get("engine_options", {}).items())]
    )
    dtype = subject.get("dtype", "bfloat16")
    processor = describe_processor(machine)
    return processor, machine["threads"], dtype, subject["model"], subject["layers"], mode, record.get("file")


@cache
def weights_of(model: str, layers: int, dtype: str) -> StepWeights:
    """Return the weights of a preset with so many layers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        config = shape_config(model, layers=layers)
        return StepWeights.of(AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)))


def seconds(record: Record, ceilings: Ceilings, *, off: bool = False) -> float:
    """Return the predicted time of a record's step.

    Args:
        record: The record.
        ceilings: The machine's.
        off: Without re-routing.
    """
    subject, experts, rows = record["subject"], record["experts"], int(record["batch_size"])
    slots = rows * int(subject["top_k"])
    return step_seconds(
        weights_of(subject["model"], subject["layers"], subject.get("dtype", "bfloat16")),
        ceilings,
        rows=rows,
        experts=experts["distinct_before" if off else "distinct_after"],
        pairs=slots if off else slots * share_with_weight(record),
    )


def share_with_weight(record: Record) -> float:
    """Return the share of the slots that carry weight, which is what a prediction knows; 1 for older engines.

    The engine may have computed more: all slots of the steps in which pairs are slower. That is an error of
    the prediction, as it is for who asks ``sere doctor``.
    """
    # Records from before 2026-11-28 have no "flattening": their engines computed all slots.
    return float(record["experts"]["slots_computed"]) if record.get("flattening") else 1.0


def fit(records: Sequence[Record]) -> Ceilings:
    """Return the two ceilings at which predicted times differ least from measured ones, relatively."""
    best = (math.inf, Ceilings(1.0, 1.0))
    for balance in _BALANCES:
        unit = Ceilings(1.0, balance)
        # At a given balance, all times are in proportion to the bytes per second.
        logs = [math.log(seconds(one, unit) * 1e3 / one["tpot_ms"]["p50"]) for one in records]
        rate = math.exp(fmean(logs))
        worst = sum((one - fmean(logs)) ** 2 for one in logs)
        if worst < best[0]:
            best = (worst, Ceilings(rate, rate * balance))
    return best[1]


def compare(records: Sequence[Record], measured: Mapping[Any, Ceilings]) -> list[dict[str, Any]]:
    """Return a group for each machine, model, depth and mode, with its cells; JSON-ready.

    Args:
        records: What `read` returned.
        measured: Ceilings by processor, threads and dtype.
    """
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    found = []
    for own, members in groups.items():
        processor, threads, dtype, model, layers, mode, file = own
        known = measured.get((processor, threads, dtype))
        ceilings = known or replace(fit(members), dtype=dtype, threads=threads)
        cells = [_cell(one, ceilings) for one in members if one["setting"] != "off"]
        if not cells:
            continue
        found.append({
            "processor": processor, "threads": threads, "dtype": dtype, "model": model, "layers": layers,
            "mode": mode, "file": file, "ceilings": asdict(ceilings), "measured": known is not None,
            "cells": cells,
        } | errors(cells))  # fmt: skip
    return found


def errors(cells: Sequence[Record]) -> dict[str, float | int]:
    """Return the median and the largest relative error of predicted ratios, and the number of cells."""
    all_of_them = [abs(one["error"]) for one in cells]
    return {
        "cells_compared": len(cells),
        "median_error": median(all_of_them),
        "largest_error": max(all_of_them),
    }


def _cell(record: Record, ceilings: Ceilings) -> dict[str, Any]:
    predicted, off = seconds(record, ceilings), seconds(record, ceilings, off=True)
    ratio = record["speedup"]["p50"]
    return {
        "rows": record["batch_size"],
        "setting": record["setting"],
        "experts_before": record["experts"]["distinct_before"],
        "experts_after": record["experts"]["distinct_after"],
        "measured_ratio": ratio,
        "predicted_ratio": off / predicted,
        "error": off / predicted / ratio - 1,
        "measured_ms": record["tpot_ms"]["p50"],
        "predicted_ms": predicted * 1e3,
    }


def main() -> None:
    """Compare, print a line for each group, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measure", action="store_true", help="measure this machine's ceilings, and keep them"
    )
    parser.add_argument("--threads", type=int, help="for --measure: threads of the CPU (default: PyTorch's)")
    parser.add_argument("--records", type=Path, nargs="*", default=[RESULTS / name for name in RECORDS])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    args = parser.parse_args()
    kept = json.loads(args.out.read_text("utf-8"))["ceilings"] if args.out.exists() else []
    if args.measure:
        kept = [*kept, ceilings_here(args.threads)]
    measured = {
        (one["processor"], one["ceilings"]["threads"], one["ceilings"]["dtype"]): Ceilings(**one["ceilings"])
        for one in kept
    }
    groups = compare(read(args.records), measured)
    headers = ["processor", "threads", "model", "layers", "mode", "ceilings", "cells", "median", "largest"]
    print(tabulate([_row(one) for one in groups], headers))
    for name, known in (("FITTED", False), ("MEASURED", True)):
        cells = [cell for group in groups if group["measured"] is known for cell in group["cells"]]
        values = ", ".join(f"{value:.3g}" for value in errors(cells).values()) if cells else None
        print(f"{name} of src/sere/step_time/accuracy.py: {values and f'Errors({values})'}")
    value = {
        "format": "sere-step-time-1",
        "ceilings": list({(one["processor"], one["ceilings"]["threads"]): one for one in kept}.values()),
        "groups": groups,
        "provenance": provenance(),
    }
    write_json(args.out, value)


def ceilings_here(threads: int | None) -> dict[str, Any]:
    """Return this machine's processor and ceilings, JSON-ready."""
    ceilings = measure_here("cpu", torch.bfloat16, threads)
    made = provenance()
    return {
        "processor": describe_processor(made["machine"]),
        "ceilings": asdict(ceilings),
        "provenance": made,
    }


def _row(group: Mapping[str, Any]) -> list[Any]:
    return [
        group["processor"][:40], group["threads"], group["model"], group["layers"], group["mode"],
        "measured" if group["measured"] else "fitted", group["cells_compared"],
        f"{100 * group['median_error']:.0f} %", f"{100 * group['largest_error']:.0f} %",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
