"""Write the documents' tables and pictures from the committed records: no number in them is typed by hand.

Run ``python docs/build/documents.py``. A block of a document between ``<!-- record: NAME -->`` and
``<!-- end -->`` is replaced by what the function of that name renders; ``--check`` only compares. Pictures
are drawn beside the documents; of them ``--check`` compares the words alone, for matplotlib's versions
draw differently.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import answer_tables as answers
import architecture_table
import counting_table
import fill_tables as fill
import harness_table
import http_tables
import machine_tables
import pictures
import policy_table
import records
import rule_tables
import serving_tables as serving
import speed_tables as speed
import step_time_table
import target_table
import tune_tables as tune
import viewer_table
from sere.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    "README.md",
    "docs/architectures.md",
    "docs/evaluating.md",
    "docs/measurements.md",
    "docs/method.md",
    "docs/operations.md",
)
BLOCK = re.compile(r"(<!-- record: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "recommended": answers.recommended,
    "demo": answers.demo,
    "rules": rule_tables.rules,
    "tiers": answers.tiers,
    "gain": answers.gain,
    "tuned": tune.tuned,
    "tuned-gains": tune.tuned_gains,
    "tuned-layers": tune.tuned_layers,
    "own-texts": tune.own_texts,
    "eval-prompts": answers.eval_prompts,
    "eval-questions": answers.eval_questions,
    "eval-metrics": answers.eval_metrics,
    "eval-tasks": answers.eval_tasks,
    "eval-vllm": answers.eval_vllm,
    "eval-vllm-tiers": lambda: answers.eval_vllm("eval-vllm-tiers.json"),
    "harness": harness_table.harness,
    "fill-choices": fill.fill_choices,
    "fill-targets": fill.fill_targets,
    "fill-cells": fill.fill_cells,
    "fill-rivals": fill.fill_rivals,
    "fill-gain": fill.fill_gain,
    "fill-tails": fill.fill_tails,
    "fill-answers": fill.fill_answers,
    "reroute": speed.reroute,
    "row-budgets": speed.row_budgets,
    "bench": speed.bench,
    "bench-share": lambda: speed.bench("bench_share.jsonl"),
    "bench-depths": lambda: speed.bench("bench_depths.jsonl"),
    "bench-one-row": lambda: speed.bench("bench_one_row.jsonl"),
    "flatten": speed.flatten,
    "flat-steps": speed.flat_steps,
    "flat-bits": speed.flat_bits,
    "serve": serving.serve,
    "serve-emulated": lambda: serving.serve("serve_emulated.jsonl"),
    "serve-engines": serving.serve_engines,
    "serve-gain": lambda: serving.serve_engines("serve_gain.jsonl"),
    "serve-emulated-tiers": lambda: serving.serve_engines("serve_avx2.jsonl"),
    "serve-share": lambda: serving.serve_engines("serve_share.jsonl"),
    "tier-targets": target_table.tier_targets,
    "serve-presets": lambda: serving.serve_engines("serve_presets.jsonl"),
    "serve-counting": counting_table.serve_counting,
    "serve-machines": machine_tables.machines,
    "serve-loads": serving.serve_loads,
    "than-vanilla": serving.than_vanilla,
    "exact-steps": serving.exact_steps,
    "routing": serving.routing,
    "serve-online": serving.serve_online,
    "vllm-load": serving.vllm_load,
    "viewers": viewer_table.viewers,
    "fuzz-http": http_tables.fuzz_http,
    "soak": http_tables.soak,
    "similarity": speed.similarity,
    "step-time": step_time_table.step_time,
    "step-time-machines": step_time_table.step_time_machines,
    "step-time-cells": step_time_table.step_time_cells,
    "calibrate-large": speed.calibrate_large,
    "calibrate-in-vllm": speed.calibrate_in_vllm,
    "calibrate-emulated": speed.calibrate_float32,
    "architectures": architecture_table.architectures,
    "policies": policy_table.policies,
}


PICTURES: Mapping[str, Callable[[], str]] = {
    "docs/recommended.svg": lambda: pictures.recommended(
        records.recommended_cases(records.read_json("demo.json"))
    ),
    "docs/serve.svg": lambda: pictures.serve(records.serve_records()),
    "docs/rules.svg": lambda: pictures.rules(rule_tables.beds()),
}


def render(document: str) -> str:
    """Return a document's text with every block written again."""

    def replace(match: re.Match[str]) -> str:
        try:
            text = BLOCKS[match.group("name")]()
        except FileNotFoundError:
            text = records.NOT_MEASURED
        return f"{match.group(1)}\n{text}\n\n{match.group(3)}"

    return BLOCK.sub(replace, document)


def main() -> int:
    """Rewrite the documents, or with ``--check`` name those that are out of date and return 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new == old:
            continue
        stale.append(name)
        if not check:
            with atomic_path(path) as temporary:
                temporary.write_text(new, encoding="utf-8")
    for name, draw in PICTURES.items():
        picture = draw()
        if not check:
            with atomic_path(ROOT / name) as temporary:
                temporary.write_text(picture, encoding="utf-8")
        elif _texts(picture) != _texts((ROOT / name).read_text(encoding="utf-8")):
            stale.append(name)
    print(f"{'out of date' if check else 'written'}: {', '.join(stale) or 'none'}")
    return int(check and bool(stale))


def _texts(picture: str) -> list[str]:
    """Return the words of an SVG: they name settings, models and sizes."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


if __name__ == "__main__":
    sys.exit(main())
