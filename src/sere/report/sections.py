"""The parts of a report below the first screen: plots, their numbers, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.provenance import describe_machine
from sere.report.cases import Key, Quality, Timing
from sere.report.curves import draw_frontier, draw_speed, interval, rule_names
from sere.report.html import DARKEST, Page, Shaded, table
from sere.report.layers import draw_layer_use, draw_maps, draw_tiers, draw_tuning
from sere.report.lm_eval import add_scores, by_run
from sere.report.models import NAMES, ModelPart, layers_of
from sere.report.read import Source

_KINDS = {
    "sere-eval": "evaluation",
    "sere-lm-eval": "tasks of lm-eval",
    "sere-tune": "tuning",
    "sere-demo": "demo",
    "sere-bench": "times in Transformers",
    "sere-bench-serve": "times in vLLM",
    "sere-bench-serve-online": "times of vllm serve over HTTP",
    "table": "similarity table",
}


def add_model(page: Page, part: ModelPart, layers: Sequence[int] | None) -> None:
    """Add all plots of a model.

    Args:
        page: The page.
        part: The model's part.
        layers: The layers whose similarity maps are shown; None for some.
    """
    for (measure, key), cases in part.answers.items():
        _add_answers(page, measure, key, cases)
    for run, groups in by_run(part.scores).items():
        add_scores(page, _about(run), groups)
    for source in part.tunings:
        _add_tuning(page, source)
    for (measure, key), times in part.times.items():
        _add_times(page, measure, key, times)
    _add_layers(page, part)
    for name, similarities in part.tables:
        page.heading(
            3,
            "Similarity maps",
            (
                f"{name}, metric {similarities.metric}, "
                f"{similarities.calibration_tokens:,} calibration tokens. "
                "Bright: one expert can stand in for the other. "
                "Alike experts are side by side. Empty cells are not known; the diagonal is left out."
            ),
        )
        page.plot(draw_maps(similarities, layers), "similarity of experts, one map per layer")


def _about(key: Key) -> str:
    return f"{key.texts}; {key.way}; {key.machine}."


def _add_answers(page: Page, measure: str, key: Key, cases: Sequence[Quality]) -> None:
    right = measure == "right"
    better = "up and to the left" if right else "down and to the left"
    page.heading(
        3,
        f"The frontier: {NAMES[measure]} over experts",
        (
            f"{_about(key)} Better is {better}: fewer experts are read for the same result. "
            "Bars are 95 % intervals. "
            "Point at a marker to see the setting."
        ),
    )
    page.plot(draw_frontier(cases), f"{NAMES[measure]} over distinct experts, one line per rule")
    page.numbers(
        (
            [
                case.setting,
                case.table or None,
                case.batch_size,
                f"{case.before:.1f} > {case.after:.1f}",
                interval(case.value, 100 if right else 1),
                (case.difference and interval(case.difference, 100, "{:+.1f}"))
                if right
                else case.agreement and interval(case.agreement, 100),
                case.note,
                case.source,
            ]
            for case in cases
        ),
        [
            "setting",
            "table",
            "rows",
            "experts",
            "right, %" if right else "KL",
            "points against off" if right else "same token, %",
            "note",
            "file",
        ],
    )
    if any(len(case.tasks) > 1 for case in cases):
        _add_tasks(page, cases)


def _add_tasks(page: Page, cases: Sequence[Quality]) -> None:
    """Add a table of right answers by task for each batch size, the largest open."""
    page.heading(
        3, "By task", "Right answers, %. The darker, the more was lost against off at the same rows."
    )
    sizes = sorted({case.batch_size for case in cases}, reverse=True)
    for size in sizes:
        mine = [case for case in cases if case.batch_size == size and case.tasks]
        tasks = list(dict.fromkeys(name for case in mine for name in case.tasks))
        off = next((case for case in mine if case.setting == "off"), None)
        names = rule_names(mine)
        rows = [
            [
                case.setting if "(" not in names[id(case)] else f"{case.setting} ({case.table})",
                f"{case.after:.1f}",
                _percent(case.value, off.value if off else None),
                *(
                    _percent(case.tasks[name]["share"], off.tasks[name]["share"] if off else None)
                    if name in case.tasks
                    else None
                    for name in tasks
                ),
            ]
            for case in mine
        ]
        text = table(rows, ["setting", "experts", "all", *tasks])
        state = " open" if size == sizes[0] else ""
        page.add(f"<details{state}><summary>steps of {size} rows</summary>{text}</details>")


def _percent(share: Mapping[str, Any], off: Mapping[str, Any] | None) -> Shaded:
    lost = 0.0 if off is None else share["value"] - off["value"]
    return Shaded(f"{100 * share['value']:.0f}", lost / DARKEST)


def _add_tuning(page: Page, source: Source) -> None:
    record = source.record
    texts = record["texts"]
    counts = ", ".join(
        f"{half}: {one['prompts']} prompts, {one['tokens']} tokens" for half, one in texts.items()
    )
    page.heading(
        3,
        "The tuning: loss over experts",
        (f"{counts}. Dotted lines across: the loss that a tier accepts. Bars are 95 % intervals."),
    )
    page.plot(draw_tuning(record), "measured divergence over experts, and experts over rows by tier")
    rows = [
        [
            name,
            B,
            cell["active_experts"],
            f"{cell['experts_before']:.1f} > {cell['experts_after']:.1f}",
            f"{cell['bytes_ratio']:.2f}x" if "bytes_ratio" in cell else None,
            interval(cell["kl"]),
        ]
        for name, tier in record["tiers"].items()
        for B, cell in tier["evidence"]["by_batch_size"].items()
    ]
    page.numbers(
        rows, ["tier", "rows", "M", "experts", "fewer bytes", "KL, held-out prompts"], "The tiers in numbers"
    )


def _add_times(page: Page, measure: str, key: Key, cases: Sequence[Timing]) -> None:
    what = {"tpot": "time per output token", "ttft": "time to the first token"}.get(measure, measure)
    random = " Weights are random: times are those of the published layer shapes; answers mean nothing."
    page.heading(
        3,
        f"Speed: {what}",
        (
            f"{key.model}; {_about(key)} Medians, with bars from the 20th to the 80th percentile."
            f"{random if any(case.random for case in cases) else ''}"
        ),
    )
    drawn = [case for case in cases if case.rows is not None]
    if drawn:
        page.plot(draw_speed(drawn), f"{what} and speedup over batch size, one line per setting")
    page.numbers(
        (
            [
                case.setting,
                case.load,
                *(f"{case.ms[name]:.2f}" for name in ("p20", "p50", "p80")),
                *(case.speedup and f"{case.speedup[name]:.3f}" for name in ("p20", "p50", "p80")),
                None
                if case.before is None or case.after is None
                else f"{case.before:.1f} > {case.after:.1f}",
                case.source,
            ]
            for case in cases
        ),
        [
            "setting",
            "load",
            "ms: 20 %",
            "median",
            "80 %",
            "times as fast: 20 %",
            "median",
            "80 %",
            "experts",
            "file",
        ],
    )


def _add_layers(page: Page, part: ModelPart) -> None:
    experts, slots = layers_of(part)
    if part.tiers and experts:
        sensitivities = part.tunings[-1].record["layers"].get("sensitivities") if part.tunings else None
        page.heading(
            3,
            "Layers: what each may read",
            (
                "M is the number of experts that a layer may read in a step. A layer that is more sensitive "
                "loses "
                "more per expert that it does not read."
            ),
        )
        page.plot(
            draw_tiers(part.tiers, experts, slots, sensitivities), "M by layer and rows; sensitivity by layer"
        )
    seen: list[list[Quality]] = []
    for cases in part.answers.values():
        if any(case.layers for case in cases):
            seen.append(cases)
    for cases in seen[:1] if not part.tiers else []:
        page.heading(3, "Layers: what each read", f"{_about(cases[0].key)}")
        page.plot(draw_layer_use(cases), "distinct experts by layer and setting")


def add_sources(page: Page, sources: Sequence[Source]) -> None:
    """Add where all numbers come from."""
    page.heading(2, "Where the numbers come from")
    kept: dict[tuple[Any, ...], int] = {}
    for source in sources:
        file, _, _ = source.name.partition(", line ")
        row = (file, _KINDS[source.kind], *_made(source))
        kept[row] = kept.get(row, 0) + 1
    heads = ["file", "what", "made (UTC)", "commit", "machine", "versions", "records"]
    page.add(table(([*row, number] for row, number in _by_file(kept)), heads))


def _by_file(kept: Mapping[tuple[Any, ...], int]) -> list[tuple[list[Any], int]]:
    """Join the rows of one file that differ in their times only."""
    joined: dict[tuple[Any, ...], tuple[list[str], int]] = {}
    for (file, what, utc, *others), number in kept.items():
        times, count = joined.get((file, what, *others), ([], 0))
        joined[file, what, *others] = ([*times, utc], count + number)
    return [
        ([file, what, " to ".join(dict.fromkeys([min(times), max(times)])), *others], count)
        for (file, what, *others), (times, count) in joined.items()
    ]


def _made(source: Source) -> tuple[str, str, str, str]:
    made = dict(source.record.get("provenance") or (source.table.provenance if source.table else {}))
    commit = str(made.get("commit") or "unknown")[:10]
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    machine = made.get("machine")
    changed = " with changes" if made.get("clean_tree") is False else ""
    where = describe_machine(machine) if machine and "threads" in machine else "unknown"
    gpu = f", {machine['gpu']}" if machine and machine.get("gpu") else ""
    return str(made.get("utc", "unknown"))[:16], commit + changed, where + gpu, versions or "unknown"
