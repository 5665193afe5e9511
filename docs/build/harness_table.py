"""What lm-eval's own command printed for sere's tasks: values side by side, and its tables as they are."""

from __future__ import annotations

from statistics import fmean
from textwrap import fill

from cells import conditions, counts, table
from records import Record, read_json

_ENGINES = {"transformers": "Transformers", "vllm": "vLLM"}


def harness() -> str:
    """A row per task, a column per run; then lm-eval's own table of each run."""
    record = read_json("harness.json")
    runs = record["runs"]
    names = [f"{_ENGINES[one['engine']]}, {one['setting']}" for one in runs]
    engines = {one["engine"] for one in runs}
    tasks = list(runs[0]["values"])
    rows = [[task, *(_cell(one["values"][task]) for one in runs)] for task in tasks]
    means = [f"{fmean(found['value'] for found in one['values'].values()):.4f}" for one in runs]
    rows += [["mean", *means], ["experts", *(counts(one["experts"]) for one in runs)]]
    side_by_side = table(rows, ["exact_match", *names])
    printed = [_printed(name, one) for name, one in zip(names, runs, strict=True)]
    missing = [f"*Not measured yet: {_ENGINES[name]}.*" for name in sorted(_ENGINES.keys() - engines)]
    return "\n\n".join([side_by_side, *missing, *printed]) + conditions([record])


def _printed(name: str, run: Record) -> str:
    said = "" if run["log"] is None else f"\n\nThe engine's log:\n\n```\n{fill(run['log'], 100)}\n```"
    return f"**{name}**\n\n" + "\n".join(run["table"]) + said


def _cell(found: Record) -> str:
    return f"{found['value']:.2f} ± {found['stderr']:.4f}"
