"""What ``sere tune`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.cli.output import table
from sere.cli.terminal import paragraph

_NOTES = """M: experts that a layer reads in a step of B rows, mean over layers. experts: distinct per layer
and step, before > after; fewer: their ratio. bytes: how many times fewer bytes of weights a step reads.
time: how many times faster a step should be on this machine, predicted, not timed. KL: from the unmodified
model, nats per token, on prompts that were not tuned on, with its 95 % interval over prompts. agree: tokens
where both have the same most likely token. One row always reads its own K experts."""

# Layers whose M is printed.
_MOST_LAYERS = 10

_SIMULATED_NOTES = """M: experts that a layer reads in a step of B rows. error: expected error of a layer's
output, relative to dropping all of it, mean over the layers. pairs: slots that keep weight, per layer and
step. The columns of min_gain say error and pairs if slots that give less are left out. How much of an error
a model bears only the model can tell: sere tune without --simulate-only measures it."""


def render(record: Mapping[str, Any]) -> str:
    """Return the tiers of a tuning as one table, with the meaning of its columns and remarks."""
    headers = ["tier", "B", "M", "experts", "fewer", "bytes", "time", "KL", "95 %", "agree %"]
    rows = [
        [name if first else "", *_row(B, cell)]
        for name, tier in record["tiers"].items()
        for first, (B, cell) in _numbered(tier["evidence"]["by_batch_size"])
    ]
    parts = [table(rows, headers, keys=2), paragraph(_NOTES)]
    for name, tier in record["tiers"].items():
        parts += _remarks(name, tier)
    return "\n".join(parts)


def render_simulated(result: Mapping[str, Any]) -> str:
    """Return what the table alone says, and what it does not."""
    gains = result["by_min_gain"]
    rows = [
        [
            B if first else "",
            M,
            f"{cell['before']:.1f} > {cell['after']:.1f}",
            *(f"{at[B][M]['error']:.3f} {at[B][M]['pairs']:.1f}" for at in gains.values()),
        ]
        for B, cells in result["simulated"].items()
        for first, (M, cell) in _numbered(cells)
    ]
    headers = [f"min_gain {gain}" if gain != "0" else "error pairs" for gain in gains]
    shown = table(rows, ["B", "M", "experts", *headers], keys=2)
    return f"{shown}\n{paragraph(_SIMULATED_NOTES)}"


def _numbered(cells: Mapping[str, Any]) -> list[tuple[bool, tuple[str, Any]]]:
    return [(index == 0, item) for index, item in enumerate(cells.items())]


def _row(rows: str, cell: Mapping[str, Any]) -> list[Any]:
    before, after, kl = cell["experts_before"], cell["experts_after"], cell["kl"]
    bounds = None if kl["low"] is None else f"{kl['low']:.4f} to {kl['high']:.4f}"
    return [
        rows,
        cell["active_experts"],
        f"{before:.1f} > {after:.1f}",
        f"{before / after:.2f}x" if after else None,
        f"{cell['bytes_ratio']:.2f}x",
        f"{cell['predicted']['ratio']:.2f}x" if "predicted" in cell else None,
        f"{kl['value']:.4f}",
        bounds,
        f"{100 * cell['agreement']['value']:.1f}",
    ]


def _remarks(name: str, tier: Mapping[str, Any]) -> list[str]:
    evidence = tier["evidence"]
    points = " ".join(f"{rows}:{most}" for rows, most in tier["active_experts"])
    goal = evidence["accepted_kl"]
    wanted = "" if goal is None else f", accepts a KL of {goal:.2g}"
    found = [f"{name}: M by rows {points}{wanted}."]
    found += _gain_remarks(tier["min_gain"], evidence)
    found += _layer_remarks(evidence)
    if evidence["simulated_rows"]:
        rows = ", ".join(map(str, evidence["simulated_rows"]))
        found.append(f"  M for {rows} rows is predicted from the simulated error, not measured.")
    for B, cell in evidence["by_batch_size"].items():
        if cell["raised_from"] is not None:
            found.append(
                f"  B={B}: raised from {cell['raised_from']}, which lost more on the held-out prompts."
            )
        if "answers" in cell:
            lost = {key: -100 * value for key, value in cell["answers"]["difference"].items()}
            found.append(
                f"  B={B}: {lost['value']:z.1f} points of right answers lost ({lost['high']:z.1f} to "
                f"{lost['low']:z.1f}, {cell['answers']['questions']} questions)."
            )
    return found


def _gain_remarks(min_gain: float, evidence: Mapping[str, Any]) -> list[str]:
    """Say the least gain that was chosen, and what each one that was tried would save."""
    tried = [one for one in evidence["min_gains"] if one["min_gain"]]
    if not tried:
        return []
    said = ", ".join(
        f"{one['min_gain']:g}: {one['time']:.3f}{'' if one['measured'] else ' (not measured)'}"
        for one in tried
    )
    return [f"  min_gain={min_gain:g}. Predicted time within the accepted KL, relative to 0: {said}."]


def _layer_remarks(evidence: Mapping[str, Any]) -> list[str]:
    """Say whether the layers have numbers of their own, what that gained, and what they are."""
    compared = evidence["per_layer"]
    if compared is None or compared["ratio"] is None:
        return []
    ratio = compared["ratio"]
    bounds = "" if ratio["high"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    verdict = "kept" if compared["kept"] else "not kept"
    lines = [f"  per layer: {ratio['value']:.2f} of uniform's KL at equal experts{bounds}, {verdict}."]
    plans = {B: cell["by_layer"] for B, cell in evidence["by_batch_size"].items() if cell["by_layer"]}
    return lines + [f"  B={B}: M by layer {_layers_text(plan)}." for B, plan in plans.items()]


def _layers_text(plan: Sequence[int]) -> str:
    """Return each layer's M; of many layers, the range and the first ones."""
    if len(plan) <= _MOST_LAYERS:
        return " ".join(map(str, plan))
    first = " ".join(map(str, plan[:_MOST_LAYERS]))
    return f"{first} ... ({len(plan)} layers, {min(plan)} to {max(plan)})"
