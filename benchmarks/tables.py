"""The documents' tables, each rendered from committed records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sere.provenance import describe_machine

RESULTS = Path(__file__).resolve().parent / "results"

NOT_MEASURED = "*Not measured yet.*"

Record = Mapping[str, Any]


def demo() -> str:
    """Batch size by setting: experts, time, answers."""
    record = read_json("demo.json")
    rows = [
        [
            case["batch_size"], f"`{case['setting']}`", f"{case['experts']:.1f}",
            f"{case['tpot_ms']['p50']:.1f}", f"{case['ratio_off_to_this']['p50']:.2f}x", case["n"],
            f"{100 * case['share']['value']:.1f}", _points(case.get("difference")),
        ]
        for case in record["cases"]
    ]  # fmt: skip
    headers = [
        "batch",
        "setting",
        "distinct experts",
        "TPOT, ms",
        "faster",
        "questions",
        "right, %",
        "to off, points",
    ]
    return _table(rows, headers) + _conditions([record])


def eval_overall() -> str:
    """All tasks together: SERE, its control and the rivals."""
    records = [read_json("eval-small.json"), read_json("eval.json")]
    rows = []
    for case in sorted(_cases(records), key=lambda case: case["batch_size"]):
        everything, experts, text = case["tasks"]["all"], case["experts"], case["text"]
        rows.append(
            [
                case["batch_size"], f"`{case['setting']}`",
                f"{experts['before']:.1f} → {experts['after']:.1f}",
                f"{100 * everything['share']['value']:.1f}", _points(everything.get("difference")),
                f"{case['answer_tokens']:.1f}",
                f"{text['perplexity']:.3f}" if text else "", f"{text['kl']:.4f}" if text else "",
            ]
        )  # fmt: skip
    headers = [
        "batch",
        "setting",
        "distinct experts",
        "right, %",
        "to off, points",
        "tokens",
        "perplexity",
        "KL",
    ]
    return _table(rows, headers) + _conditions(records)


def eval_metrics() -> str:
    """The same slots at B = 16 re-routed by similarities of several metrics, and by none: the control."""
    records = {"projection": read_json("eval.json")}
    records |= {metric: read_json(f"eval-{metric}.json") for metric in ("frobenius", "cosine")}
    rows = [
        [
            metric if kind == "sere" else "none", f"`{case['setting']}`", f"{case['experts']['after']:.1f}",
            f"{100 * everything['share']['value']:.1f}", _points(everything.get("difference")),
        ]
        for metric, record in records.items()
        for case in record["cases"]
        for kind, _, options in [case["setting"].partition(":")]
        if case["batch_size"] == 16 and kind in ("sere", "random") and "min_active" not in options
        for everything in [case["tasks"]["all"]]
    ]  # fmt: skip
    headers = ["similarity", "setting", "distinct experts", "right, %", "to off, points"]
    return _table(sorted(rows, key=lambda row: re.findall(r"S=\d+", row[1])), headers)


def eval_tasks() -> str:
    """Right answers by task, in per cent."""
    record = read_json("eval.json")
    names = [name for name in record["cases"][0]["tasks"] if name != "all"]
    rows = [
        [
            case["batch_size"],
            f"`{case['setting']}`",
            *(f"{100 * case['tasks'][name]['share']['value']:.1f}" for name in names),
        ]
        for case in sorted(record["cases"], key=lambda case: case["batch_size"])
    ]
    return _table(rows, ["batch", "setting", *names])


def eval_vllm() -> str:
    """On vLLM: a row a setting and a column a concurrency, first answers, then experts."""
    record = read_json("eval-vllm.json")
    sizes = record["plan"]["batch_sizes"]
    by_setting: dict[str, dict[int, Record]] = {}
    for case in record["cases"]:
        by_setting.setdefault(case["setting"], {})[case["batch_size"]] = case
    answers, experts = (
        [[f"`{name}`", *(cell(cases[B]) for B in sizes)] for name, cases in by_setting.items()]
        for cell in (_share_or_points, lambda case: f"{case['experts']['after']:.1f}")
    )
    rows = ["rows of a step, `off`", *(f"{by_setting['off'][B]['mean_rows']:.1f}" for B in sizes)]
    return (
        f"{_table(answers, ['right: off in %, others to off in points', *map(str, sizes)])}\n\n"
        f"{_table([*experts, rows], ['distinct experts', *map(str, sizes)])}{_conditions([record])}"
    )


def reroute() -> str:
    """Microseconds a call of re-routing with one primary slot a row; the record has S = 2 too."""
    records = [one for one in _lines("reroute.jsonl") if one["config"]["select_top_k"] == 1]
    rows = [
        [
            config["model"], config["E"], config["K"], config["T"], config["backend"],
            f"{record['median']:.1f}", f"{record['p20']:.1f} to {record['p80']:.1f}",
        ]
        for record in records
        for config in [record["config"]]
    ]  # fmt: skip
    headers = ["shape of", "E", "K", "rows", "backend", "median, µs", "p20 to p80"]
    return _table(rows, headers) + _conditions(records)


def bench() -> str:
    """Decoding at a real model's layer shape."""
    records = _lines("bench.jsonl")
    rows = [
        [
            record["subject"]["model"], record["batch_size"], f"`{record['setting']}`",
            f"{record['experts']['before']:.1f} → {record['experts']['after']:.1f}",
            f"{record['tpot_ms']['p50']:.1f}", f"{record['ratio_off_to_this']['p50']:.2f}x",
            "" if record["hook"] is None else f"{record['hook']['ms_per_step']:.2f}",
        ]
        for record in records
    ]  # fmt: skip
    headers = ["layers of", "batch", "setting", "distinct experts", "TPOT, ms", "faster", "in the hooks, ms"]
    return _table(rows, headers) + _conditions(records)


def serve(name: str = "serve.jsonl") -> str:
    """A vLLM engine at real models' layer shapes, a row a batch size; not those with a floor."""
    records = [record for record in serve_records(name) if not started(record)]
    lines: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in records:
        lines.setdefault(_serve_line(record), {})[record["setting"]] = record
    rows = []
    for line, found in lines.items():
        off, untouched = found["off"], found.get("untouched")
        rows.append(
            [
                *line, f"{off['experts']['after']:.1f}", f"{off['tpot_ms']['p50']:.1f}",
                *_serve_cells(found, "sere:S=2"), *_serve_cells(found, "sere:S=1"),
                "" if untouched is None else f"{untouched['ratio_off_to_this']['p50']:.2f}x",
            ]
        )  # fmt: skip
    each = ["MB read", "TPOT, ms", "faster", "own cost, %", "to oracle, %"]
    headers = ["layers of", "mode", "threads", "requests", "off: experts", "TPOT, ms",
               "S = 2: experts", *each, "S = 1: experts", *each, "untouched"]  # fmt: skip
    return _table(rows, headers) + _conditions(records)


def _serve_cells(found: Mapping[str, Record], setting: str) -> list[str]:
    record, oracle = found.get(setting), found.get(f"oracle {setting}")
    if record is None:
        return [""] * 6
    tpot, cost = record["tpot_ms"]["p50"], record["own_cost"]
    return [
        f"{record['experts']['after']:.1f}", f"{record['expert_bytes_per_step'] / 1e6:.0f}", f"{tpot:.1f}",
        f"{record['ratio_off_to_this']['p50']:.2f}x",
        "" if cost is None else f"{100 * cost['ms_per_step'] / tpot:.1f}",
        "" if oracle is None else f"{100 * (tpot / oracle['tpot_ms']['p50'] - 1):+.1f}",
    ]  # fmt: skip


def serve_floor() -> str:
    """Engines started with a floor or another such setting, beside those without, a row a setting."""
    everything = [record for record in serve_records() if record["experts"] is not None]
    lines = {_serve_line(record) for record in everything if started(record)}
    if not lines:
        return NOT_MEASURED
    records = [record for record in everything if _serve_line(record) in lines]
    records.sort(key=lambda record: (record["batch_size"], started(record)))
    rows = [
        [
            *_serve_line(record), started(record), f"`{record['setting']}`", _counts(record["experts"]),
            f"{record['expert_bytes_per_step'] / 1e6:.0f}", f"{record['tpot_ms']['p50']:.1f}",
            f"{record['ratio_off_to_this']['p50']:.2f}x",
        ]
        for record in records
    ]  # fmt: skip
    headers = ["layers of", "mode", "threads", "requests", "engine started with", "setting",
               "distinct experts", "MB read", "TPOT, ms", "faster"]  # fmt: skip
    return _table(rows, headers) + _conditions(records)


def serve_records(name: str = "serve.jsonl") -> list[Any]:
    """Return the newest record of each case, in the order in which the cases first came."""
    newest = {(_serve_line(one), started(one), one["setting"]): one for one in _lines(name)}
    return list(newest.values())


def started(record: Record) -> str:
    """Return what a served record's engine was started with, beside S, rho and the table."""
    return ", ".join(f"{name}={value}" for name, value in record["config"].get("start", {}).items())


def _serve_line(record: Record) -> tuple[Any, ...]:
    threads = record["provenance"]["machine"]["threads"]
    return record["subject"]["model"], _mode(record), threads, record["batch_size"]


def _mode(record: Record) -> str:
    """Return how an engine ran, as far as it is not what all did: in bfloat16, without options of vLLM."""
    dtype, config = record["subject"].get("dtype", "bfloat16"), record["config"]
    given = [f"{name}={value}" for name, value in config.get("engine_options", {}).items()]
    return ", ".join([config["mode"], *([] if dtype == "bfloat16" else [dtype]), *given])


def serve_online() -> str:
    """A real ``vllm serve`` under load, at a real model's layer shape."""
    newest = {
        (one["subject"]["model"], _mode(one), one["case"], started(one)): one
        for one in _lines("serve_online.jsonl")
    }
    records = list(newest.values())
    rows = [
        [
            record["subject"]["model"], _mode(record), record["case"].partition(",")[0],
            _served_setting(record), _counts(record["experts"]),
            "" if record["experts"] is None else f"{record['experts']['rows']:.1f}",
            "" if record["experts"] is None else f"{record['expert_bytes_per_step'] / 1e6:.0f}",
            f"{record['tpot_ms']['p50']:.1f}", f"{record['ratio_off_to_this']['p50']:.2f}x",
            f"{record['tokens_per_s']['p50']:.0f}", f"{record['requests_per_s']['p50']:.2f}",
            f"{record['ttft_ms']['p50']:.0f}", f"{record['ttft_ms']['p90']:.0f}",
            record["failed"],
        ]
        for record in records
    ]  # fmt: skip
    headers = ["layers of", "mode", "requests", "setting", "distinct experts", "rows", "MB read", "TPOT, ms",
               "faster", "tokens/s", "requests/s", "TTFT, ms", "p90", "failed"]  # fmt: skip
    return _table(rows, headers) + _conditions(records)


def _served_setting(record: Record) -> str:
    """Return a setting; where it does not say so itself, also what its server was started with."""
    start = "" if record["setting"].startswith("sere:") else started(record)
    return f"`{record['setting']}`" + (f" ({start})" if start else "")


def vllm_load() -> str:
    """What became of the requests of a load test."""
    records = _lines("vllm_load.jsonl")
    rows = [
        [
            record["config"]["mode"], name, record["config"]["requests"], f"{side['seconds']:.0f}",
            *(outcomes.get(end, 0) for end in ("answered", "protected", "aborted", "refused")),
            f"{outcomes['compared']} / {outcomes.get('other text', 0)}", side["least_margin"],
            " / ".join(str(outcomes.get(f"settings {status}", 0)) for status in (200, 400)),
            len(side["wrong"]), f"{side['resident_mb'][-1]:.0f}", f"{side['growth_mb']:+.0f}",
        ]
        for record in records
        for name, side in record["sides"].items()
        for outcomes in [side["outcomes"]]
    ]  # fmt: skip
    headers = ["mode", "server", "requests", "seconds", "answered", "protected", "aborted", "refused",
               "texts compared / other", "least margin", "settings changed / refused", "lost or wrong", "MB",
               "MB grown"]  # fmt: skip
    return _table(rows, headers) + _conditions(records)


def bench_summary() -> str:
    """How much faster the paper's settings are at a real model's layer shape, a row a batch size."""
    records = [one for one in _lines("bench.jsonl") if one["setting"] in ("off", "sere:S=1", "sere:S=2")]
    by_batch: dict[int, dict[str, Any]] = {}
    for record in records:
        by_batch.setdefault(record["batch_size"], {})[record["setting"]] = record
    rows = [
        [
            batch, f"{found['off']['tpot_ms']['p50']:.0f}", f"{found['off']['experts']['after']:.0f}",
            *(
                text
                for name in ("sere:S=2", "sere:S=1")
                for text in (
                    f"{found[name]['experts']['after']:.0f}",
                    f"{found[name]['ratio_off_to_this']['p50']:.2f}x",
                )
            ),
        ]
        for batch, found in sorted(by_batch.items())
    ]  # fmt: skip
    headers = ["batch", "off: ms a token", "experts", "S = 2: experts", "faster", "S = 1: experts", "faster"]
    return _table(rows, headers) + _conditions(records)


def similarity() -> str:
    """The accumulators against plain pair loops."""
    records = _lines("similarity.jsonl")
    rows = [
        [
            record["metric"], record["E"], record["T"], record["H"],
            f"{record['pair_loop_ms']['median']:.0f}",
            f"{record['accumulator_ms']['median']:.1f}", f"{record['ratio']:.1f}x",
            f"{record['gram_ms']['median']:.1f}", f"{record['max_abs_error']:.1e}",
        ]
        for record in records
    ]  # fmt: skip
    headers = [
        "metric", "E", "T", "H", "pair loop, ms", "accumulator, ms", "faster", "Gram product alone, ms",
        "greatest difference",
    ]  # fmt: skip
    return _table(rows, headers) + _conditions(records)


def calibrate_large() -> str:
    """Peak resident memory of layer-by-layer calibration."""
    records = _lines("calibrate_large.jsonl")
    rows = [
        [
            f"{record['config']['checkpoint_bytes'] / 1e9:.1f}", record["config"]["tokens"],
            f"{record['peak_rss_bytes'] / 1e9:.2f}", f"{record['seconds']:.0f}",
        ]
        for record in records
    ]  # fmt: skip
    return _table(rows, ["checkpoint, GB", "tokens", "peak resident, GB", "seconds"]) + _conditions(records)


def _cases(records: Sequence[Record]) -> list[Any]:
    return [case for record in records for case in record["cases"]]


def read_json(name: str) -> Any:
    """Return a record that is a file of its own."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _lines(name: str) -> list[Any]:
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return str(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def _counts(experts: Mapping[str, float] | None) -> str:
    return "" if experts is None else f"{experts['before']:.1f} → {experts['after']:.1f}"


def _share_or_points(case: Record) -> str:
    everything = case["tasks"]["all"]
    return _points(everything.get("difference")) or f"{100 * everything['share']['value']:.1f}"


def _points(difference: Mapping[str, float] | None) -> str:
    if difference is None:
        return ""
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _conditions(records: Sequence[Record]) -> str:
    """Say on what machine, with which versions and at which commit the records were made."""
    found: dict[str, None] = {}
    for record in records:
        made = record.get("provenance", record)
        machine, versions = made["machine"], made["versions"]
        text = (
            f"{describe_machine(machine)}"
            f"{', ' + machine['gpu'] if machine['gpu'] else ''}; torch {versions['torch']}"
            f"{', transformers ' + versions['transformers'] if 'transformers' in versions else ''}; "
            f"commit {(made['commit'] or 'unknown')[:10]}{'' if made['clean_tree'] else ' with changes'}, "
            f"{made['utc'][:10]}"
        )
        found[text] = None
    return "\n\n" + "\n".join(f"*{text}.*" for text in found)
