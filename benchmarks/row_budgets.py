"""Time what a step costs on the host before the model runs: ``python benchmarks/row_budgets.py``.

It announces steps to two layers of a tiny model, as the model runner of vLLM does, without vLLM: which rows
decode, what their requests ask for, budgets, limits and counts of steps. On a GPU the copy of budgets that
differ from the step before is added. Each step has lists of its own; ``other process`` means that names and
numbers are objects of their own, too, as in a worker that a scheduler of another process feeds. The time is
the thread's own processor time. It writes one line to ``benchmarks/results/row_budgets.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sere.bench.target import random_table
from sere.bench.timing import spread, turns
from sere.integrations.vllm.worker.steps import Steps
from sere.provenance import provenance
from tests.support.tiny import tiny_model
from tests.support.vllm.standins import CPUUnquantizedExperts, SmallEngine, new, prepared, step

REQUESTS = (64, 256, 512)
PROMPT = 3
LOADS = ("decode", "decode, other process", "decode, half ask for their own S", "decode, and one prompt")
MOST_US = 20.0
"""What a step of ``REQUESTS[-1]`` requests that all decode may cost."""


class Load:
    """One engine with requests that decode, and its next steps.

    Args:
        table: Similarities of a tiny model.
        kind: One of ``LOADS``.
        requests: How many.
    """

    def __init__(self, table: Any, kind: str, requests: int) -> None:
        self.kind, self.names = kind, [f"chatcmpl-{index:032x}" for index in range(requests)]
        kernel = CPUUnquantizedExperts()
        state = prepared(table, {}, torch.nn.Module, kernel=kernel, rows=2 * requests, active_experts=8)
        self.steps: Steps = SmallEngine(state).steps
        asked = {"select_top_k": 2} if "half" in kind else None
        news = [new(name, PROMPT, asked if index % 2 else None) for index, name in enumerate(self.names)]
        if "prompt" in kind:
            news[-1].prompt_token_ids = [0] * 10**6
        self.steps.book.update(step(news=tuple(news)))
        self.computed = PROMPT

    def next_steps(self, count: int) -> list[tuple[Any, list[str], Any]]:
        """Return what the model runner announces in the next steps."""
        found = []
        for _ in range(count):
            output: Any = step(cached=dict.fromkeys(self.names, self.computed))
            if "process" in self.kind:
                output = SimpleNamespace(
                    scheduled_cached_reqs=SimpleNamespace(**_other(vars(output.scheduled_cached_reqs))),
                    scheduled_spec_decode_tokens={},
                )
            counts = np.ones(len(self.names), dtype=np.int32)
            found.append((output, self.names[:], counts))
            self.computed += 1
        return found

    def time_block(self, count: int) -> float:
        """Return the mean microseconds of a step."""
        steps = self.next_steps(count)
        started = time.thread_time()
        for one in steps:
            self.steps._announce(*one)
        return (time.thread_time() - started) / count * 1e6


def _other(values: dict[str, Any]) -> Any:
    return pickle.loads(pickle.dumps(values))


def measure(requests: Sequence[int], *, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Return of each load and number of requests the microseconds of a step."""
    table = random_table(tiny_model("qwen3_moe"))
    loads = {(kind, count): Load(table, kind, count) for kind in LOADS for count in requests}
    times: dict[tuple[str, int], list[float]] = {case: [] for case in loads}
    for round_number in range(rounds + 1):
        for case in turns(list(loads), round_number):
            took = loads[case].time_block(steps)
            # The first round warms up.
            if round_number > 0:
                times[case].append(took)
    rows = []
    for (kind, count), values in times.items():
        found, state = spread(values), loads[kind, count].steps.state
        if state.counts.rerouted != steps * (rounds + 1):
            raise RuntimeError(f"{kind}, {count}: expected only steps that re-route, got {state.counts}")
        rows.append(
            {"load": kind, "requests": count, "p20": found.p20, "median": found.p50, "p80": found.p80}
        )
    return rows


def main() -> None:
    """Time the loads in turns, print a table, append the record; 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/row_budgets.jsonl"))
    parser.add_argument("--requests", type=int, nargs="+", default=list(REQUESTS))
    parser.add_argument("--steps", type=int, default=400, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = measure(options.requests, steps=options.steps, rounds=options.rounds)
    record = {
        "format": "sere-row-budgets-1",
        "unit": "us_per_step",
        "config": {"steps": options.steps, "rounds": options.rounds, "target_us": MOST_US},
        "cases": cases,
        "provenance": provenance(),
    }
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    shown = [[*one.values()] for one in cases]
    print(tabulate(shown, ["load", "requests", "p20", "median, us per step", "p80"], floatfmt=".1f"))
    slow = [one for one in cases if one["load"] in LOADS[:2] and one["median"] > MOST_US]
    print(f"at most {MOST_US:g} us where all decode: {'missed' if slow else 'met'}")
    raise SystemExit(1 if slow else 0)


if __name__ == "__main__":
    main()
