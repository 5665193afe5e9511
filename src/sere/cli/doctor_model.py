"""What ``sere doctor MODEL`` says of a model that nobody has prepared, from its config alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sere.cli.finding import Finding
from sere.cli.output import say, table
from sere.cli.terminal import paragraph

if TYPE_CHECKING:
    import torch

    from sere.outlook import Unprepared, Way
    from sere.step_time import Ceilings
    from sere.table import SimilarityTable

_GIB = 2**30
_WIDTH = 100
_DEQUANTIZED = "as config.json says; loaded whole on a CPU, it counts with weights in bfloat16"


def engine_findings(found: Unprepared) -> Iterator[Finding]:
    """Say which engines take a model."""
    if found.transformers is None:
        yield Finding("engines", "Transformers", "ok", "knows the model, and sere finds its experts")
    else:
        yield Finding("engines", "Transformers", "missing", found.transformers)
    state = {True: "ok", False: "missing", None: "missing"}[found.vllm]
    yield Finding("engines", "vLLM", state, found.vllm_detail)
    if found.quantization is not None:
        yield Finding("engines", "quantization", "ok", f"{found.quantization}, {_DEQUANTIZED}")


def calibration_findings(
    found: Unprepared,
    ways: list[Way],
    passes: Ceilings | None,
    writing: Ceilings | None,
    *,
    has_gpu: bool,
    has_table: bool,
) -> Iterator[Finding]:
    """Say which ways of calibrating fit this machine, where they compute, and what the best one takes.

    Args:
        found: The model.
        ways: All ways.
        passes: Ceilings of what the best way computes on; None if they were not measured.
        writing: The same, for texts that the model writes.
        has_gpu: Whether this machine has one, so that it is said where a way computes.
        has_table: Whether the model has a table.
    """
    from sere.outlook import best_way
    from sere.outlook.calibration import TOKENS, here, seconds_to_calibrate, seconds_to_write_texts

    best = best_way(ways)
    for way in ways:
        state = "ok" if way.is_open else "missing"
        yield Finding("calibrating", way.name, state, _describe(way, _place(way) if has_gpu else ""))
    if best is None:
        detail = "no way fits this machine; take one with more memory"
        yield Finding("calibrating", "command", "missing", detail)
    else:
        command = " ".join(["sere calibrate", here(found.folder), *([best.options] if best.options else [])])
        yield Finding("calibrating", "command", "ok", f"{command}{' (it has a table)' if has_table else ''}")
    seconds = None if passes is None else seconds_to_calibrate(found, passes)
    if seconds is None:
        return
    own = None if writing is None else seconds_to_write_texts(found, writing)
    devices = 1 if best is None else best.devices
    where = _place(best) if has_gpu and best is not None else ""
    further = (
        "" if own is None else f", and {_duration(own / devices)} more if the model writes its own texts"
    )
    yield Finding(
        "calibrating", "time", "ok",
        f"estimate: at least {_duration(seconds / devices)}{where} for {TOKENS:,} tokens{further}; reading "
        "the weights and gradients come on top",
    )  # fmt: skip


def steps_value(
    found: Unprepared, similarities: SimilarityTable | None, ceilings: Ceilings | None
) -> dict[str, Any] | None:
    """Return the decode steps to expect, JSON-ready; None if the MoE layers are not known."""
    from sere.outlook import expect_steps
    from sere.step_time.accuracy import describe_accuracy

    if not found.shapes:
        return None
    steps = expect_steps(found.shapes, found.weights, ceilings, table=similarities)
    sampled = similarities is not None and similarities.routing is not None
    return {
        "routing": "table" if sampled else "chance",
        "ceilings": None if ceilings is None else asdict(ceilings),
        "steps": [asdict(step) | {"ratio": step.ratio} for step in steps],
        "accuracy": describe_accuracy(),
    }


def model_value(found: Unprepared, ways: list[Way]) -> dict[str, Any]:
    """Return what is known of a model, JSON-ready."""
    return {
        "folder": str(found.folder),
        "transformers": found.transformers,
        "vllm": found.vllm,
        "quantization": found.quantization,
        "num_bytes": found.num_bytes,
        "exact_bytes": found.exact,
        "weights": None if found.weights is None else asdict(found.weights),
        "ways_to_calibrate": [asdict(way) for way in ways],
    }


def measure_ceilings(
    args: argparse.Namespace,
    found: Unprepared,
    device: str,
    dtype: torch.dtype,
    *,
    what: str = "this machine",
) -> Ceilings | None:
    """Measure a device's ceilings for a model, unless that is not wanted or its sizes are not known.

    Args:
        args: Arguments of the command.
        found: The model.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: Of the arithmetic.
        what: Is measured, for the note.
    """
    from sere.outlook import measure_here
    from sere.step_time import remember

    if args.no_measure or found.weights is None:
        return None
    other = "" if dtype is dtype_to_measure(found) else f" in {str(dtype).removeprefix('torch.')}"
    say(f"measuring how fast {what} reads and computes{other}, about 2 seconds (--no-measure skips it)")
    found_here = measure_here(device, dtype)
    remember(found_here)
    return found_here


def dtype_to_measure(found: Unprepared) -> torch.dtype:
    """Return the dtype of a model's arithmetic: of quantized weights, that of the others."""
    import torch

    dtype = getattr(torch, found.dtype or "bfloat16")
    return dtype if dtype in (torch.bfloat16, torch.float16, torch.float32) else torch.bfloat16


def render_steps(value: Mapping[str, Any]) -> str:
    """Return the decode steps to expect as a table, with what the estimate leaves out."""
    ceilings = value["ceilings"]
    source = {
        "table": "the table's sample of routing, at the table's settings",
        "chance": "rows that choose their experts by chance, at the default settings",
    }[value["routing"]]
    steps = value["steps"]
    headers = ["rows", "M", "experts", "pairs", "fewer bytes"]
    rows = [
        [
            step["rows"], f"{step['most']:.0f}", f"{step['before']:.1f} -> {step['after']:.1f}",
            f"{step['pairs_before']:.0f} -> {step['pairs_after']:.0f}", _times(step["fewer_bytes"]),
        ]
        for step in steps
    ]  # fmt: skip
    if ceilings is None:
        timed = "Times are not predicted: this machine was not measured."
    else:
        headers += ["off, ms", "re-routed, ms", "faster"]
        for row, step in zip(rows, steps, strict=True):
            row += [
                f"{1e3 * step['seconds_before']:.1f}",
                f"{1e3 * step['seconds_after']:.1f}",
                _times(step["ratio"]),
            ]
        where = f"{ceilings['dtype']}, " + (
            "GPU" if ceilings["device"] == "cuda" else f"{ceilings['threads']} threads"
        )
        timed = (
            f"Measured here: {ceilings['bytes_per_s'] / 1e9:.0f} GB/s, {ceilings['flops_per_s'] / 1e9:.0f} "
            f"GFLOP/s ({where}). {value['accuracy']}"
        )
    notes = (
        f"{timed} The KV cache, attention, communication and the host are left out. Measure with: sere bench"
    )
    return (
        f"Estimate of decode steps, from {source}:\n\n{table(rows, headers)}\n\n"
        f"{paragraph(notes, elsewhere=_WIDTH)}"
    )


def _place(way: Way) -> str:
    """Return where a way computes, in words."""
    if way.device == "cpu":
        return " on the CPU"
    return " on one GPU" if way.devices == 1 else f" on {way.devices} GPUs"


def _describe(way: Way, where: str) -> str:
    if way.why_not is not None:
        return way.why_not
    if way.needs is None:
        return "memory needed: not known"
    fits = {True: "fits", False: "does not fit", None: "memory of this machine not known"}[way.fits]
    size = f"{way.needs / _GIB:.1f} GiB" if way.needs >= 0.05 * _GIB else f"{way.needs / 2**20:.0f} MiB"
    return f"needs about {size}{where}: {fits}"


def _times(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.2f}x"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"
