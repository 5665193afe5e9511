"""All routing rules over distinct experts: a table for each test bed, and the picture's cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cells import conditions, counts, points, right, table
from records import NOT_MEASURED, RESULTS, Record, read_json
from sere.eval.statistics.by_question import paired_difference

BEDS: Mapping[str, str] = {"abacus": "frontier-abacus.json", "suanpan": "frontier-suanpan.json"}
"""The record of each test bed, whose model has the same name."""

AGAIN = " (again)"
"""What the setting of a case ends with if an earlier run has it, too."""


def rules() -> str:
    """For each bed and each number of experts that SERE leaves: the rules that leave about as many."""
    found = beds()
    if not found:
        return NOT_MEASURED
    blocks = [_block(bed, record) for bed, record in found.items()]
    return "\n\n".join(blocks) + conditions(list(found.values()))


def beds() -> dict[str, Record]:
    """Return the records of the beds that were measured, with the cases of later runs of the same questions.

    Raises:
        ValueError: A later run has other answers of the unmodified model, so that nothing can be paired.
    """
    found = {bed: read_json(name) for bed, name in BEDS.items() if (RESULTS / name).is_file()}
    for bed, record in found.items():
        name = BEDS[bed].replace(".json", "-more.json")
        if (RESULTS / name).is_file():
            off, *more = read_json(name)["cases"]
            if off["tasks"]["all"]["marks"] != record["cases"][0]["tasks"]["all"]["marks"]:
                raise ValueError(f"{name}: off has other answers than in {BEDS[bed]}")
            known = {case["setting"] for case in record["cases"]}
            more = [
                case | ({"setting": case["setting"] + AGAIN} if case["setting"] in known else {})
                for case in more
            ]
            found[bed] = {**record, "cases": [*record["cases"], *more]}
    return found


def _block(bed: str, record: Record) -> str:
    off, *cases = record["cases"]
    steps = [case for case in cases if _is_sere(case)]
    steps.sort(key=_experts)
    model = record["model"]
    parts = [
        f"**{bed}** (E={model['num_experts']}, K={model['top_k']}), B={off['batch_size']}, off: "
        f"{_experts(off):.1f} experts, {right(off)[0]} % right of {off['tasks']['all']['n']}"
    ]
    for step in steps:
        near = [case for case in cases if min(steps, key=lambda one: _apart(one, case)) is step]
        near.sort(key=lambda case: case is not step)
        rows = [
            [case["setting"], counts(case["experts"]), *right(case), points(against(case, step))]
            for case in near
        ]
        parts.append(table(rows, ["setting", "experts", "right, %", "vs off, points", "vs sere, points"]))
    return "\n\n".join(parts)


def against(case: Record, other: Record) -> dict[str, float] | None:
    """Return the paired difference of right answers to another case of the record; None to itself."""
    if case is other:
        return None
    mine, base = ([mark == "1" for mark in one["tasks"]["all"]["marks"]] for one in (case, other))
    return asdict(paired_difference(mine, base))


def _is_sere(case: Record) -> bool:
    """Say whether a case is SERE with a number of experts, not the published preset."""
    setting = str(case["setting"])
    return setting.startswith("sere:active_experts=") and not setting.endswith(AGAIN)


def _experts(case: Record) -> float:
    return float(case["experts"]["distinct_after"])


def _apart(step: Record, case: Record) -> Any:
    return abs(_experts(step) - _experts(case))
