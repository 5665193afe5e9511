"""Tables of what ``sere tune`` found: tiers on their held-out half, and an M for each layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cells import conditions, interval, points, table
from records import Record, read_json, read_lines

MODELS = ("abacus", "suanpan")


def tuned() -> str:
    """The tiers by batch size: a table per model."""
    headers = ["tier", "τ", "B", "M", "experts", "fewer", "predicted", "KL, held-out", "vs off, points"]
    tables = []
    for model in MODELS:
        rows = [
            [
                name, tier.get("min_gain", 0), B, case["active_experts"],
                f"{case['experts_before']:.1f} → {case['experts_after']:.1f}",
                f"{case['experts_before'] / case['experts_after']:.2f}x",
                f"{case['predicted']['ratio']:.2f}x", interval(case["kl"], "{:.2g}"),
                points(case["answers"]["difference"]),
            ]
            for name, tier in _record(model)["tiers"].items()
            for B, case in tier["evidence"]["by_batch_size"].items()
        ]  # fmt: skip
        tables.append(f"**{model}**\n\n{table(rows, headers)}")
    return "\n\n".join(tables) + conditions([_record(model) for model in MODELS])


def tuned_gains() -> str:
    """The least gains that were tried for each tier: the predicted time, and which was kept."""
    rows = [
        [
            model, tier, found["min_gain"], f"{found['time']:.3f}" if found["measured"] else "not measured",
            "kept" if found["kept"] else "",
        ]
        for model in MODELS
        for tier, evidence in _evidence(_record(model))
        for found in evidence["min_gains"]
    ]  # fmt: skip
    return table(rows, ["model", "tier", "τ", "predicted time over that of τ = 0", ""])


def tuned_layers() -> str:
    """Divergence of tiers with an M for each layer, over that of one M for all, at equal mean experts."""
    rows = [
        [name, tier, interval(found["ratio"], "{:.2f}"), "kept" if found["kept"] else ""]
        for name in MODELS
        for tier, evidence in _evidence(_record(name))
        for found in [evidence["per_layer"]]
        if found is not None
    ]
    return table(rows, ["model", "tier", "KL over that of uniform M", ""])


def _record(name: str) -> Record:
    record: Record = read_json(f"tune-{name}.json")
    return record


def _evidence(record: Record) -> Iterator[tuple[str, Any]]:
    return ((name, tier["evidence"]) for name, tier in record["tiers"].items())


def own_texts() -> str:
    """The expected error of the same settings, by given texts and by texts that the model wrote."""
    records = read_lines("own_texts.jsonl")
    rows = [
        [
            record["config"]["model"], cell["batch_size"], cell["active_experts"],
            f"{cell['given']:.3f}", f"{cell['own']:.3f}", f"{cell['own'] / cell['given']:.2f}",
        ]
        for record in records
        for cell in record["cells"]
    ]  # fmt: skip
    return table(rows, ["model", "B", "experts", "given texts", "own texts", "ratio"]) + conditions(records)
