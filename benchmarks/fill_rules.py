"""Which experts should a step read, and what should replace the others? Rules compared at equal numbers.

    python benchmarks/fill_rules.py --cells 16:24,32:32 --rules 'w1/similar w3/similar'    # bundled model
    python benchmarks/fill_rules.py --model FOLDER --name suanpan --cells 16:12
    python benchmarks/fill_rules.py --answers --per-task 50 --cells 16:32 --rules 'off w3/similar'

A cell is B:M, rows of a step and experts that a layer may read. Held-out worked solutions are fed token by
token in decode steps; measured is KL(unmodified ‖ rule) per solution in nats, or with ``--answers`` which
answers are right. Each measured rule is one line of ``benchmarks/results/fill_rules.jsonl``; what is there
already is not measured again. Rules are written FILL/TARGET, as in ``fill_choices.py`` and
``fill_targets.py``, or rival/SPEC for a rule that comes with sere, such as rival/pool:size=40, whose own
options say how many experts are read. A forward pass has ROWS rows, cut into steps of B rows, each with its
own choice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fill_bed import Bed
from sere.bundled import NAME, model_path
from sere.files import append_json_line
from sere.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "fill_rules.jsonl"
PER_TASK, SEED = 12, 11
_KEY = ("model", "measure", "batch_size", "active_experts", "rule", "seed", "per_task")


def finished(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records that are there."""
    if path.is_file():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a measurement from others."""
    return tuple(record[name] for name in _KEY)


def line(record: Mapping[str, Any]) -> str:
    """Return what is printed of a measurement."""
    value = (
        f"right {record['right'].count('1')} of {len(record['right'])}"
        if record["measure"] == "answers"
        else f"KL {sum(record['kl']) / sum(record['tokens']):.5f}"
    )
    return (
        f"{record['model']} B={record['batch_size']} M={record['active_experts']} {record['rule']:<32} "
        f"{value}  experts {record['experts'].get('distinct_after', '')}  {record['seconds']} s"
    )


def main() -> int:
    """Measure what is asked for and not yet there."""
    parser = argparse.ArgumentParser(description="Compare rules at equal numbers of experts.")
    parser.add_argument("--model", type=Path, default=None, help="model folder (default: the bundled one)")
    parser.add_argument("--name", default=NAME, help="what records call it (default: %(default)s)")
    parser.add_argument("--cells", default="16:24", help="B:M,B:M,... (default: %(default)s)")
    parser.add_argument("--rules", default="w1/similar w3/similar", help="rules, separated by spaces")
    parser.add_argument("--answers", action="store_true", help="right answers instead of the divergence")
    parser.add_argument("--per-task", type=int, default=PER_TASK, help="questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the questions (default: %(default)s)")
    parser.add_argument("--facts", type=Path, default=None, help="file that keeps the calibration")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    bed = Bed(args.name, args.model or model_path(), args.facts, args.per_task, args.seed)
    done = {key_of(one): one for one in finished(args.results)}
    for B, M in (map(int, cell.split(":")) for cell in args.cells.split(",")):
        for rule in args.rules.split():
            head = {
                "benchmark": "fill_rules", "model": args.name,
                "measure": "answers" if args.answers else "divergence", "batch_size": B,
                "active_experts": M, "rule": rule, "seed": args.seed, "per_task": args.per_task,
            }  # fmt: skip
            key = key_of(head)
            if key not in done:
                measure = bed.answers if args.answers else bed.divergence
                done[key] = head | measure(rule, B, M) | {"provenance": provenance()}
                append_json_line(args.results, done[key])
            print(line(done[key]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
