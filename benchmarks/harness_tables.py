"""What lm-eval's own command prints for sere's ten tasks: off and the default settings, in both engines.

    python benchmarks/harness_tables.py --out benchmarks/results/harness.json
    python benchmarks/harness_tables.py --per-task 2 --engine transformers

Calibrates the bundled model on the training texts of its tasks, and writes held-out questions of these tasks
as lm-eval's YAML files. Then it runs `python -m sere.eval.harness` once per engine and setting, at most 16
rows per decode step, in float32: with the model `sere-hf` for Transformers, and with lm-eval's `vllm`. The
record has lm-eval's printed table of each run, its values with their standard errors, and what sere says of
the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sere.eval.harness.tasks import GENERATED, write_tasks
from sere.files import write_json
from sere.provenance import installed_version, provenance
from sere.summaries import summarize_table
from sere.table import SimilarityTable

ROWS = 16
SETTINGS = ("off", "sere")
ENGINES = ("transformers", "vllm")
METRIC = "exact_match,answer"


def main(argv: Sequence[str] | None = None) -> None:
    """Run lm-eval, and write one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--per-task", type=int, default=10, help="questions of each task (default: 10)")
    parser.add_argument("--engine", choices=ENGINES, nargs="+", default=list(ENGINES))
    parser.add_argument("--table", type=Path, metavar="FILE", help="similarities (default: calibrated now)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write the record to")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="sere-harness-") as name:
        folder = Path(name)
        write_tasks(folder / "tasks", per_task=args.per_task)
        table = args.table or save_table(folder / "similarity.sere")
        runs = [
            run(engine, setting, folder, table.absolute()) for engine in args.engine for setting in SETTINGS
        ]
        used = summarize_table(SimilarityTable.load(table))
    record = {
        "format": "sere-harness-1",
        "rows": ROWS,
        "per_task": args.per_task,
        "table": used,
        "runs": runs,
        "lm_eval": installed_version("lm_eval"),
        "provenance": provenance(),
    }
    if args.out is not None:
        write_json(args.out, record)


def save_table(path: Path) -> Path:
    """Write the bundled model's similarities, with estimated tiers, and return where they are."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sere.bundled import model_path
    from sere.eval.calibration import calibrate_on_tasks

    place = model_path()
    model = AutoModelForCausalLM.from_pretrained(place)
    calibrate_on_tasks(model, AutoTokenizer.from_pretrained(place), progress=False).save(path)
    return path


def run(engine: str, setting: str, folder: Path, table: Path) -> dict[str, Any]:
    """Run lm-eval's command and return its part of the record; its table is printed."""
    out = folder / f"{engine}-{setting}"
    words = words_of(engine, setting, folder / "tasks", table, out)
    environment = {
        "VLLM_LOGGING_LEVEL": "INFO", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", **os.environ,
    }  # fmt: skip
    print(f"{engine}, {setting}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "sere.eval.harness", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"lm-eval ended with {done.returncode}:\n{done.stderr[-4000:]}")
    (written,) = out.rglob("results_*.json")
    found = read_run(json.loads(written.read_text(encoding="utf-8")), done.stdout, done.stderr)
    print("\n".join(found["table"]), flush=True)
    return {"engine": engine, "setting": setting} | found


def words_of(engine: str, setting: str, tasks: Path, table: Path, out: Path) -> list[str]:
    """Return what follows ``python -m sere.eval.harness``."""
    from sere.bundled import model_path

    model: dict[str, Any] = {"pretrained": str(model_path()), "dtype": "float32"}
    if engine == "transformers":
        name, size = "sere-hf", str(ROWS)
        model |= {"sere": "off"} if setting == "off" else {"table": str(table)}
    else:
        name, size = "vllm", "auto"
        model |= {"max_num_seqs": ROWS, "enforce_eager": True}
        model |= {} if setting == "off" else {"additional_config": {"sere": {"table": str(table)}}}
    return [
        "--model", name, "--model_args", json.dumps(model), "--batch_size", size, "--tasks", GENERATED,
        "--include_path", str(tasks), "--output_path", str(out),
    ]  # fmt: skip


def read_run(results: dict[str, Any], printed: str, log: str) -> dict[str, Any]:
    """Return a run's part of the record.

    Args:
        results: What lm-eval wrote.
        printed: What it printed: a table.
        log: Its other output, with the lines of sere.
    """
    values = {
        task: {"value": one[METRIC], "stderr": one[METRIC.replace(",", "_stderr,")]}
        for task, one in sorted(results["results"].items())
        if METRIC in one
    }
    said = results["config"].get("sere", {}).get("requests", {}).get("generate_until")
    lines = re.findall(r"sere: [1-9]\d* steps re-routed.*", printed + log)
    return {
        "table": [line.rstrip() for line in printed.splitlines() if line.startswith("|")],
        "values": values,
        "experts": None if said is None else {k: v for k, v in said["experts"].items() if k != "layers"},
        "log": lines[-1] if lines else None,
    }


if __name__ == "__main__":
    main()
