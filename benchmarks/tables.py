"""The documents' tables, each rendered from committed records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tabulate

from sere.provenance import describe_machine

# Headers need no room beside them: tables stay narrow.
tabulate.MIN_PADDING = 0

RESULTS = Path(__file__).resolve().parent / "results"

NOT_MEASURED = "*Not measured yet.*"

# Before the name of a setting: the same re-routed ids, put in place without the work.
REPLAY = "oracle "

Record = Mapping[str, Any]


# The setting that README.md recommends, for the bundled model.
RECOMMENDED = "sere:select_top_k=2,min_active=32,use_scale=true"

# Settings as older records spell them.
_LONG = {"S": "select_top_k", "rho": "threshold", "scale": "use_scale"}


def label(setting: str) -> str:
    """Return a setting with its options' long names, which older records abbreviate."""
    kind, colon, options = setting.partition(":")
    pairs = [option.partition("=") for option in options.split(",")] if colon else []
    return kind + colon + ",".join(f"{_LONG.get(name, name)}{equal}{value}" for name, equal, value in pairs)


def recommended() -> str:
    """The recommended setting beside the baseline, speed and answers of the same run: a row a batch size."""
    record = read_json("demo.json")
    rows = [
        [
            batch, *(f"{case['experts']:.0f}" for case in cases),
            *(f"{case['tpot_ms']['p50']:.1f}" for case in cases),
            f"{cases[1]['ratio_off_to_this']['p50']:.2f}x",
            *(f"{100 * case['share']['value']:.1f}" for case in cases), _points(cases[1]["difference"]),
        ]
        for batch, cases in recommended_cases(record).items()
    ]  # fmt: skip
    headers = [
        "batch", "experts", "with sere", "ms/token", "with sere", "faster",
        "right, %", "with sere", "difference, points",
    ]  # fmt: skip
    return _table(rows, headers) + _conditions([record])


def recommended_cases(record: Record) -> dict[int, tuple[Record, Record]]:
    """Return by batch size the demo's case without re-routing and that of the recommended setting."""
    found: dict[int, dict[str, Record]] = {}
    for case in record["cases"]:
        found.setdefault(case["batch_size"], {})[label(case["setting"])] = case
    return {batch: (cases["off"], cases[RECOMMENDED]) for batch, cases in found.items()}


def demo() -> str:
    """Experts, time and answers: a table per setting, a row a batch size."""
    record = read_json("demo.json")
    headers = ["batch", "experts", "TPOT, ms", "faster", "questions", "right, %", "vs baseline, points"]
    return _grouped(
        record["cases"], lambda case: f"`{label(case['setting'])}`", headers,
        lambda case: [
            case["batch_size"], f"{case['experts']:.1f}", f"{case['tpot_ms']['p50']:.1f}",
            f"{case['ratio_off_to_this']['p50']:.2f}x", case["n"],
            f"{100 * case['share']['value']:.1f}", _points(case.get("difference")),
        ],
    ) + _conditions([record])  # fmt: skip


def eval_overall() -> str:
    """Right answers of all tasks together, a table per batch size: SERE, its control, other methods."""
    records = [read_json("eval-small.json"), read_json("eval.json")]
    headers = ["setting", "experts", "right, %", "vs baseline, points", "tokens"]
    return _grouped(
        sorted(_cases(records), key=lambda case: int(case["batch_size"])),
        lambda case: f"Batch size {case['batch_size']}", headers,
        lambda case: [
            label(case["setting"]), _counts(case["experts"]), *_right(case), f"{case['answer_tokens']:.1f}",
        ],
    ) + _conditions(records)  # fmt: skip


def eval_text() -> str:
    """Perplexity and divergence on held-out English, of the cases that read some."""
    record = read_json("eval.json")
    rows = [
        [
            label(case["setting"]), f"{case['experts']['after']:.1f}",
            f"{case['text']['perplexity']:.3f}", f"{case['text']['kl']:.4f}",
        ]
        for case in record["cases"]
        if case["text"]
    ]  # fmt: skip
    return _table(rows, ["setting", "experts", "perplexity", "KL"]) + _conditions([record])


def eval_prompts() -> str:
    """What ``sere eval --prompts`` says of the bundled model: agreement, divergence, perplexity."""
    record = read_json("eval-prompts.json")
    rows = [
        [
            label(case["setting"]), _interval(case["agreement"], "{:.1f}", times=100),
            _interval(case["kl"], "{:.2g}"), f"{case['perplexity']['value']:.3f}",
        ]
        for case in record["cases"]
    ]  # fmt: skip
    return _table(rows, ["setting", "agree, %", "KL", "perplexity"]) + _conditions([record])


def eval_questions() -> str:
    """What ``sere eval --questions`` says of the bundled model: right answers."""
    record = read_json("eval-questions.json")
    rows = [[label(case["setting"]), _counts(case["experts"]), *_right(case)] for case in record["cases"]]
    headers = ["setting", "experts", "right, %", "vs baseline, points"]
    return _table(rows, headers) + _conditions([record])


def eval_metrics() -> str:
    """The same slots at B = 16 re-routed by similarities of several metrics, and by none: the control."""
    records = {"projection": read_json("eval.json")}
    records |= {metric: read_json(f"eval-{metric}.json") for metric in ("frobenius", "cosine")}
    rows = [
        [
            metric if kind == "sere" else "none", label(case["setting"]),
            f"{case['experts']['after']:.1f}", *_right(case),
        ]
        for metric, record in records.items()
        for case in record["cases"]
        for kind, _, options in [case["setting"].partition(":")]
        if case["batch_size"] == 16 and kind in ("sere", "random") and "min_active" not in options
    ]  # fmt: skip
    headers = ["similarity", "setting", "experts", "right, %", "vs baseline, points"]
    return _table(sorted(rows, key=lambda row: re.findall(r"select_top_k=\d+", row[1])), headers)


def eval_tasks() -> str:
    """Right answers by task, in per cent: a table for every four tasks."""
    record = read_json("eval.json")
    names = [name for name in record["cases"][0]["tasks"] if name != "all"]
    return "\n\n".join(_task_table(record, names[at : at + 4]) for at in range(0, len(names), 4))


def _task_table(record: Record, names: Sequence[str]) -> str:
    rows = [
        [label(case["setting"]), *(f"{100 * case['tasks'][name]['share']['value']:.0f}" for name in names)]
        for case in record["cases"]
    ]
    return _table(rows, ["setting", *names])


def eval_vllm() -> str:
    """On vLLM, a table per concurrency and a row a setting: answers, the difference, experts."""
    record = read_json("eval-vllm.json")
    return _grouped(
        sorted(record["cases"], key=lambda case: int(case["batch_size"])),
        lambda case: f"{case['batch_size']} request{'s' * (case['batch_size'] > 1)}",
        ["setting", "experts", "rows", "right, %", "vs baseline, points"],
        lambda case: [
            label(case["setting"]), f"{case['experts']['after']:.1f}", f"{case['mean_rows']:.1f}",
            *_right(case),
        ],
    ) + _conditions([record])  # fmt: skip


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
            record["batch_size"], label(record["setting"]), _counts(record["experts"]), *_time(record),
            "" if record["hook"] is None else f"{record['hook']['ms_per_step']:.2f}",
        ]
        for record in records
    ]  # fmt: skip
    headers = ["batch", "setting", "experts", "TPOT, ms", "faster", "in the hooks, ms"]
    return _shapes(records) + _table(rows, headers) + _conditions(records)


def serve(name: str = "serve.jsonl") -> str:
    """A vLLM engine at real models' layer shapes, a table per engine; not those with a floor."""
    records = [record for record in serve_records(name) if not started(record)]
    replays = {
        (_serve_line(one), one["setting"].removeprefix(REPLAY)): one for one in records if _replay(one)
    }
    headers = [
        "requests",
        "setting",
        "experts",
        "MB read",
        "TPOT, ms",
        "faster",
        "overhead, %",
        "vs replay, %",
    ]
    return _grouped(
        sorted((one for one in records if not _replay(one)), key=lambda one: int(one["batch_size"])),
        _engine, headers,
        lambda record: [
            record["batch_size"], _served(record), *_reads(record), *_time(record),
            *_costs(record, replays.get((_serve_line(record), record["setting"]))),
        ],
    ) + _conditions(records)  # fmt: skip


def _replay(record: Record) -> bool:
    return str(record["setting"]).startswith(REPLAY)


def _engine(record: Record) -> str:
    model, mode, threads, _ = _serve_line(record)
    return f"Layers of {model}, {mode}, {threads} thread{'s' * (threads > 1)}"


def _reads(record: Record) -> list[str]:
    """Return the distinct experts that ran and the MB of their weights; empty where nothing was counted."""
    if record["experts"] is None:
        return ["", ""]
    return [f"{record['experts']['after']:.1f}", f"{record['expert_bytes_per_step'] / 1e6:.0f}"]


def _time(record: Record) -> list[str]:
    return [f"{record['tpot_ms']['p50']:.1f}", f"{record['ratio_off_to_this']['p50']:.2f}x"]


def _costs(record: Record, replay: Record | None) -> list[str]:
    tpot, cost = record["tpot_ms"]["p50"], record.get("own_cost")
    return [
        "" if cost is None else f"{100 * cost['ms_per_step'] / tpot:.1f}",
        "" if replay is None else f"{100 * (tpot / replay['tpot_ms']['p50'] - 1):+.1f}",
    ]


def serve_floor() -> str:
    """Engines started with a floor or another such setting, beside those without, a row a setting."""
    everything = [record for record in serve_records() if record["experts"] is not None]
    lines = {_serve_line(record) for record in everything if started(record)}
    if not lines:
        return NOT_MEASURED
    records = [record for record in everything if _serve_line(record) in lines]
    records.sort(key=lambda record: (record["batch_size"], started(record)))
    headers = ["requests", "started with", "setting", "experts", "MB read", "TPOT, ms", "faster"]
    return _grouped(
        records, _engine, headers,
        lambda record: [
            record["batch_size"], started(record), _served(record), *_reads(record), *_time(record),
        ],
    ) + _conditions(records)  # fmt: skip


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
    """A real ``vllm serve`` under load: what a step is, then what a client sees."""
    newest = {
        (one["subject"]["model"], _mode(one), one["case"], started(one)): one
        for one in _lines("serve_online.jsonl")
    }
    records = list(newest.values())
    cases = [(record["case"].partition(",")[0], _served_setting(record), record) for record in records]
    steps = [
        [
            case, setting, _counts(record["experts"]),
            "" if record["experts"] is None else f"{record['experts']['rows']:.1f}", _reads(record)[1],
            *_time(record),
        ]
        for case, setting, record in cases
    ]  # fmt: skip
    clients = [
        [
            case, setting, f"{record['tokens_per_s']['p50']:.0f}", f"{record['requests_per_s']['p50']:.2f}",
            f"{record['ttft_ms']['p50']:.0f}", f"{record['ttft_ms']['p90']:.0f}", record["failed"],
        ]
        for case, setting, record in cases
    ]  # fmt: skip
    before = ["requests", "setting"]
    return (
        f"{_shapes(records)}"
        f"{_table(steps, [*before, 'experts', 'rows', 'MB read', 'TPOT, ms', 'faster'])}\n\n"
        f"{_table(clients, [*before, 'tokens/s', 'requests/s', 'TTFT, ms: median', 'p90', 'failed'])}"
        f"{_conditions(records)}"
    )


def _served(record: Record) -> str:
    """Return a served setting's name; older records call the engine without sere ``untouched``."""
    return "vanilla" if record["setting"] == "untouched" else label(record["setting"])


def _served_setting(record: Record) -> str:
    """Return a setting; where it does not say so itself, also what its server was started with."""
    start = "" if record["setting"].startswith("sere:") else started(record)
    return _served(record) + (f" ({start})" if start else "")


def _shapes(records: Sequence[Record]) -> str:
    """Return a line that names the models whose layers ran, and how."""
    names = dict.fromkeys(
        ", ".join([record["subject"]["model"], *([_mode(record)] if "mode" in record["config"] else [])])
        for record in records
    )
    return f"**Layers of {'; '.join(names)}**\n\n"


def vllm_load() -> str:
    """What became of the requests of a load test, then of texts, settings and memory."""
    records = _lines("vllm_load.jsonl")
    sides = [
        (record["config"]["mode"], name, record["config"]["requests"], side, side["outcomes"])
        for record in records
        for name, side in record["sides"].items()
    ]
    requests = [
        [
            mode, name, count, f"{side['seconds']:.0f}",
            *(outcomes.get(end, 0) for end in ("answered", "protected", "aborted", "refused")),
            len(side["wrong"]),
        ]
        for mode, name, count, side, outcomes in sides
    ]  # fmt: skip
    others = [
        [
            mode, name, f"{outcomes['compared']} / {outcomes.get('other text', 0)}", side["least_margin"],
            " / ".join(str(outcomes.get(f"settings {status}", 0)) for status in (200, 400)),
            f"{side['resident_mb'][-1]:.0f}", f"{side['growth_mb']:+.0f}",
        ]
        for mode, name, _, side, outcomes in sides
    ]  # fmt: skip
    before = ["mode", "server"]
    ends = ["requests", "seconds", "answered", "protected", "aborted", "refused", "lost or wrong"]
    kinds = ["texts compared / different", "least margin", "settings changed / refused", "MB", "MB grown"]
    return f"{_table(requests, before + ends)}\n\n{_table(others, before + kinds)}{_conditions(records)}"


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
        "metric", "E", "T", "H", "pair loop, ms", "accumulator, ms", "faster", "Gram only, ms",
        "difference",
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
    return str(tabulate.tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def _grouped(
    records: Sequence[Record],
    heading: Callable[[Record], str],
    headers: Sequence[str],
    row: Callable[[Record], list[Any]],
) -> str:
    """Return a table under each heading, in the order in which the headings first come."""
    groups: dict[str, list[list[Any]]] = {}
    for record in records:
        groups.setdefault(heading(record), []).append(row(record))
    return "\n\n".join(f"**{name}**\n\n{_table(rows, headers)}" for name, rows in groups.items())


def _interval(found: Mapping[str, float], form: str, *, times: float = 1) -> str:
    value, low, high = (form.format(times * found[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _right(case: Record) -> list[str]:
    """Return the share of right answers, and its paired difference to the baseline."""
    everything = case["tasks"]["all"]
    return [f"{100 * everything['share']['value']:.1f}", _points(everything.get("difference"))]


def _counts(experts: Mapping[str, float] | None) -> str:
    return "" if experts is None else f"{experts['before']:.1f} → {experts['after']:.1f}"


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
