"""Tables of answers: what re-routing costs, per setting and batch size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cells import conditions, counts, grouped, interval, points, right, table
from records import Record, read_json, recommended_cases


def recommended() -> str:
    """The recommended setting beside the baseline, speed and answers of one run: a row per batch size."""
    record = read_json("demo.json")
    rows = [
        [
            batch, *(f"{case['distinct_after']:.0f}" for case in cases),
            *(f"{case['tpot_ms']['p50']:.1f}" for case in cases),
            f"{cases[1]['speedup']['p50']:.2f}x",
            *(f"{100 * case['share']['value']:.1f}" for case in cases), points(cases[1]["difference"]),
        ]
        for batch, cases in recommended_cases(record).items()
    ]  # fmt: skip
    headers = [
        "batch", "experts", "with sere", "ms/token", "with sere", "faster",
        "right, %", "with sere", "difference, points",
    ]  # fmt: skip
    return table(rows, headers) + conditions([record])


def demo() -> str:
    """Experts, time and answers: a table per setting, one row per batch size."""
    record = read_json("demo.json")
    headers = ["batch", "experts", "TPOT, ms", "faster", "questions", "right, %", "vs baseline, points"]
    return grouped(
        record["cases"], lambda case: f"`{case['setting']}`", headers,
        lambda case: [
            case["batch_size"], f"{case['distinct_after']:.1f}", f"{case['tpot_ms']['p50']:.1f}",
            f"{case['speedup']['p50']:.2f}x", case["n"],
            f"{100 * case['share']['value']:.1f}", points(case.get("difference")),
        ],
    ) + conditions([record])  # fmt: skip


def tiers() -> str:
    """What tiers lose in right answers: a table per model, a row per tier and size, of what was measured."""
    tables, used = [], []
    for model in ("abacus", "suanpan"):
        rows = []
        for how in ("estimated", "tuned"):
            try:
                record = read_json(f"tiers-{how}-{model}.json")
            except FileNotFoundError:
                continue
            used.append(record)
            cases = [case for case in record["cases"] if case["setting"] != "off"]
            rows += [
                [
                    how, re.sub(r".*tier=", "", case["setting"]) if "=" in case["setting"] else "balanced",
                    case["batch_size"], counts(case["experts"]), _fewer(case["experts"]),
                    f"{100 * case['experts']['slots_computed']:.0f}", *right(case),
                ]
                for case in sorted(cases, key=lambda case: (case["setting"], case["batch_size"]))
            ]  # fmt: skip
        if rows:
            headers = ["tiers", "tier", "B", "experts", "fewer", "slots, %", "right, %", "vs off, points"]
            tables.append(f"**{model}**\n\n{table(rows, headers)}")
    if not used:
        raise FileNotFoundError("no record of tiers")
    return "\n\n".join(tables) + conditions(used)


def gain() -> str:
    """What a least gain costs at the default tier: a table per model, a row per setting and size."""
    records = {name: read_json(f"gain-{name}.json") for name in ("abacus", "suanpan")}
    headers = ["B", "setting", "experts", "slots computed, %", "right, %", "vs off, points"]
    tables = [
        f"**{name}**\n\n" + table([
            [
                case["batch_size"], case["setting"], counts(case["experts"]),
                f"{100 * case['experts']['slots_computed']:.0f}", *right(case),
            ]
            for case in sorted(record["cases"], key=lambda case: case["batch_size"])
        ], headers)
        for name, record in records.items()
    ]  # fmt: skip
    return "\n\n".join(tables) + conditions(list(records.values()))


def _fewer(experts: Record) -> str:
    return f"{experts['distinct_before'] / experts['distinct_after']:.2f}x"


def eval_prompts() -> str:
    """What ``sere eval --prompts`` says of the bundled model: agreement, divergence, perplexity."""
    record = read_json("eval-prompts.json")
    rows = [
        [
            case["setting"],
            interval(case["agreement"], "{:.1f}", times=100),
            interval(case["kl"], "{:.2g}"),
            f"{case['perplexity']['value']:.3f}",
        ]
        for case in record["cases"]
    ]
    return table(rows, ["setting", "agree, %", "KL", "perplexity"]) + conditions([record])


def eval_questions() -> str:
    """What ``sere eval --questions`` says of the bundled model: right answers."""
    record = read_json("eval-questions.json")
    rows = [[case["setting"], counts(case["experts"]), *right(case)] for case in record["cases"]]
    headers = ["setting", "experts", "right, %", "vs baseline, points"]
    return table(rows, headers) + conditions([record])


def eval_metrics() -> str:
    """The same slots at B = 16 re-routed by similarities of several metrics, and by none, per model."""
    tables: list[str] = []
    used: list[Record] = []
    for model, end in (("abacus", ""), ("suanpan", "-suanpan")):
        records = {"projection": read_json("eval.json" if not end else f"eval-projection{end}.json")}
        records |= {metric: read_json(f"eval-{metric}{end}.json") for metric in ("frobenius", "cosine")}
        tables.append(f"**{model}**\n\n{_metric_table(records)}")
        used += records.values()
    return "\n\n".join(tables) + conditions(used)


def _metric_table(records: Mapping[str, Record]) -> str:
    rows = [
        [
            metric if kind == "sere" else "none", case["setting"],
            f"{case['experts']['distinct_after']:.1f}", *right(case),
        ]
        for metric, record in records.items()
        for case in record["cases"]
        for kind, _, options in [case["setting"].partition(":")]
        if case["batch_size"] == 16 and kind in ("sere", "random") and "min_active" not in options
    ]  # fmt: skip
    headers = ["similarity", "setting", "experts", "right, %", "vs baseline, points"]
    rows.sort(key=lambda row: re.findall(r"select_top_k=\d+", row[1]))
    return table(rows, headers)


def eval_tasks() -> str:
    """Right answers by task, in percent: for each model a table for every four tasks."""
    records = {model: read_json(f"frontier-{model}.json") for model in ("abacus", "suanpan")}
    tables = []
    for model, record in records.items():
        names = [name for name in record["cases"][0]["tasks"] if name != "all"]
        tables += [f"**{model}**", *(_task_table(record, names[i : i + 4]) for i in range(0, len(names), 4))]
    return "\n\n".join(tables) + conditions(list(records.values()))


def _task_table(record: Record, names: Sequence[str]) -> str:
    rows = [
        [case["setting"], *(f"{100 * case['tasks'][name]['share']['value']:.0f}" for name in names)]
        for case in record["cases"]
    ]
    return table(rows, ["right, %", *names])


def eval_vllm(name: str = "eval-vllm.json") -> str:
    """On vLLM, a table per concurrency, one row per setting: answers, the difference, experts.

    Args:
        name: The record's.
    """
    record = read_json(name)
    return grouped(
        sorted(record["cases"], key=lambda case: int(case["batch_size"])),
        lambda case: f"{case['batch_size']} request{'s' * (case['batch_size'] > 1)}",
        ["setting", "experts", "rows", "right, %", "vs baseline, points"],
        lambda case: [
            case["setting"], f"{case['experts']['distinct_after']:.1f}", f"{case['mean_rows']:.1f}",
            *right(case),
        ],
    ) + conditions([record])  # fmt: skip
