"""``sere doctor``: what is installed, what can run here, and whether table and model fit."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sere.cli.doctor_installed import engine_dtypes, installed_findings
from sere.cli.doctor_model import (
    calibration_findings,
    dtype_to_measure,
    engine_findings,
    measure_ceilings,
    model_value,
    render_steps,
    steps_value,
)
from sere.cli.finding import Finding
from sere.cli.loading import (
    add_table_argument,
    add_trust_argument,
    checkpoint_path,
    pick_device,
    quiet_transformers,
    table_path,
)
from sere.cli.output import add_json_flag, emit, table
from sere.cli.parser import add_command
from sere.errors import ConfigError, SereError
from sere.identity import span

if TYPE_CHECKING:
    from sere.identity import ModelIdentity
    from sere.outlook import Unprepared, Way
    from sere.step_time import Ceilings
    from sere.table import SimilarityTable

_DETAILS = """With a model, it says which engines take it, which way of calibrating fits this machine, and
which speedup to expect at 1 to 128 rows a step. It reads the config only; weights are not needed. It measures
this machine for about two seconds. Times are estimates.

The exit code is 1 if the given model or table is broken, or if the table was not made for
the model. A missing optional package is not an error; its line says how to install it. An untested
release of Transformers or PyTorch is not an error either; its line says how to check that it works."""

_EXAMPLES = """
  sere doctor
  sere doctor MODEL
  sere doctor MODEL --table cosine.sere
  sere doctor bundled --no-measure --json
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Check what is installed, what can run here, and whether table and model fit."
    parser = add_command(subparsers, "doctor", summary, run, details=_DETAILS, examples=_EXAMPLES)
    text = "a checkpoint folder, a hub name, or 'bundled'"
    parser.add_argument("named", metavar="MODEL", nargs="?", help=text)
    parser.add_argument("--model", metavar="MODEL", help="the same")
    add_table_argument(parser, "the model's own; it is checked against the model")
    text = "do not measure this machine: bytes are compared, no times are predicted"
    parser.add_argument("--no-measure", action="store_true", help=text)
    add_trust_argument(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Look at everything and print it."""
    from sere.provenance import provenance

    if None not in (args.named, args.model) and args.named != args.model:
        raise ConfigError(f"MODEL: expected one model, got {args.named} and --model {args.model}")
    args.model = args.named or args.model
    asked, expected = _asked(args)
    findings = [*installed_findings(), *asked]
    passed = all(finding.state != "BROKEN" for finding in findings)
    value = {
        "passed": passed,
        "findings": [asdict(finding) for finding in findings],
        "provenance": provenance(),
    } | expected
    emit(args, value, render)
    return 0 if passed else 1


def _asked(args: argparse.Namespace) -> tuple[list[Finding], dict[str, Any]]:
    """Look at the model and the table that were named; every fault is a finding, not an error."""
    found, broken = _look(args)
    findings = broken
    identity = None
    if found is not None:
        identity = found.identity
        findings += [*_model(args, found), *engine_findings(found)]
    similarities = None
    if args.model is not None or args.table is not None:
        more, similarities = _find_table(args, identity)
        findings += more
    if found is None or not found.has_experts:
        return findings, {}
    device = pick_device(None)
    ways = _ways(found, device)  # first, because what is measured takes memory of a GPU
    ceilings = measure_ceilings(args, found, device, dtype_to_measure(found))
    passes, writing = _ceilings_used(args, found, ways, ceilings, device)
    findings += calibration_findings(
        found, ways, passes, writing, has_gpu=device != "cpu", has_table=similarities is not None
    )
    return findings, {
        "model": model_value(found, ways),
        "expected": steps_value(found, similarities, ceilings),
    }


def _look(args: argparse.Namespace) -> tuple[Unprepared | None, list[Finding]]:
    """Return what the named model's config says, or what is wrong with it."""
    from sere.outlook import look_at

    if args.model is None:
        return None, []
    try:
        path = checkpoint_path(args, weights=False)
        quiet_transformers()
        return look_at(path, trust_remote_code=args.trust_remote_code), []
    except (SereError, ImportError, OSError, ValueError) as error:
        return None, [Finding("model", args.model, "BROKEN", str(error))]


def _ways(found: Unprepared, device: str) -> list[Way]:
    from sere.outlook import ways_to_calibrate

    return ways_to_calibrate(found, device=device)


def _ceilings_used(
    args: argparse.Namespace, found: Unprepared, ways: list[Way], ceilings: Ceilings | None, device: str
) -> tuple[Ceilings | None, Ceilings | None]:
    """Return the ceilings for the passes of the best way to calibrate, and for texts that the model writes.

    It may compute on another device than ``device``, and its passes in another dtype than the model's: see
    `sere.calibrate.float32_products`.
    """
    import torch

    from sere.calibrate.float32_products import multiplies_in_float32
    from sere.outlook import best_way

    def on_cpu(dtype: torch.dtype) -> Ceilings | None:
        return measure_ceilings(args, found, "cpu", dtype, what="this machine's CPU")

    best, own = best_way(ways), dtype_to_measure(found)
    writing = ceilings if best is None or best.device == device else on_cpu(own)
    if best is None or best.name == "vllm" or not multiplies_in_float32(best.device, own):
        return writing, writing
    return on_cpu(torch.float32), writing


def _model(args: argparse.Namespace, found: Unprepared) -> Iterator[Finding]:
    """Say what a model is; it is broken if no engine is known to take it."""
    E, K = (
        span(column)
        for column in ([one.num_experts for one in found.shapes], [one.top_k for one in found.shapes])
    )
    shape = f"{len(found.shapes)} MoE layers, E={E}, K={K}"
    if found.identity is not None:
        identity = found.identity
        detail = f"{shape} (select_top_k < {identity.top_k} re-routes), digest {identity.digest[:12]}"
        yield Finding("model", identity.name, "ok", detail)
        yield _backend_of(identity, found.dtype)
        yield _weights(args)
    elif found.may_be_served:
        yield Finding(
            "model", args.model, "ok", f"{shape}, as config.json says; Transformers cannot build it"
        )
    else:
        yield Finding("model", args.model, "BROKEN", str(found.transformers))


def _find_table(
    args: argparse.Namespace, identity: ModelIdentity | None
) -> tuple[list[Finding], SimilarityTable | None]:
    """Return what is to be said of the table, and the table if it is there and fits."""
    from sere.table import SimilarityTable

    try:
        path = table_path(args)
    except SereError as error:
        return [Finding("table", args.table, "BROKEN", str(error))], None
    if path is None:
        return [], None
    findings = list(_table(str(path), identity))
    fits = identity is not None and all(one.state == "ok" for one in findings)
    return findings, SimilarityTable.load(path) if fits else None


def _backend_of(identity: Any, dtype: str | None) -> Finding:
    """Say which backend re-routes layers of the model's size and dtype here."""
    import torch

    from sere.reroute.backends.registry import select, why_not_fastest

    device, E, K = "cuda" if torch.cuda.is_available() else "cpu", identity.num_experts, identity.top_k
    dtypes = engine_dtypes(dtype)
    name = select("auto", device, E, K, dtypes)
    reason = why_not_fastest(name, torch.device(device), E, K, dtypes)
    detail = f"{name} for E={E}, K={K} on {device}{f': {reason}' if reason else ''}"
    return Finding("model", "backend", "missing" if reason else "ok", detail)


def _weights(args: argparse.Namespace) -> Finding:
    """Say whether a model's weights are all there, from the headers of their files."""
    from sere.checkpoints import check_weights, find_weights, hub_name

    path = checkpoint_path(args, weights=False)
    try:
        found = find_weights(path)
        unused = check_weights(path, trust_remote_code=args.trust_remote_code)
    except (SereError, OSError) as error:
        if any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
            return Finding("model", "weights", "BROKEN", str(error))
        # Of a hub model, only what describes it is fetched to look at it.
        why = "not downloaded; the first command that needs them downloads them"
        why = "not in the folder; all other commands need them" if hub_name(path) is None else why
        return Finding("model", "weights", "missing", why)
    size = f"{found.num_bytes / 2**30:.2f} GiB, files: {len(found.names)}"
    if unused is None:
        return Finding("model", "weights", "ok", f"{size}; loading them shows whether they are complete")
    left = f"; tensors that the model does not use: {len(unused)}" if unused else ""
    return Finding("model", "weights", "ok", f"{size}; complete{left}")


def _table(path: str, identity: Any) -> Iterator[Finding]:
    from sere.table import verify_file

    try:
        checks = verify_file(path, identity)
    except SereError as error:
        yield Finding("table", path, "BROKEN", str(error))
        return
    for check in checks:
        yield Finding("table", check.name, "ok" if check.passed else "BROKEN", check.detail)
    if all(check.passed for check in checks):
        yield from _defaults(path)


def _defaults(path: str) -> Iterator[Finding]:
    """Say which tiers a table has, and what an engine does with it that is given no settings."""
    from sere.config import RerouteConfig
    from sere.policies.base import LayerShape
    from sere.policies.how_many import how_many
    from sere.policies.sere import Sere
    from sere.table import SimilarityTable

    found = SimilarityTable.load(path)
    names = (
        ", ".join(found.tiers)
        or "none; M grows with the rows of a step, by a formula (sere tune makes tiers)"
    )
    yield Finding("table", "tiers", "ok", names)
    shapes = [
        LayerShape(index, layer.num_experts, found.identity.slots[index])
        for index, layer in found.layers.items()
    ]
    rule = Sere(found.layers, found.settings(RerouteConfig()))
    yield Finding("table", "defaults", "ok", how_many(rule, shapes))


def render(value: Mapping[str, Any]) -> str:
    """Return the findings as a table."""
    rows, last = [], ""
    for finding in value["findings"]:
        part = finding["part"] if finding["part"] != last else ""
        last = finding["part"]
        rows.append([part, finding["name"], finding["state"], " ".join(finding["detail"].split())])
    verdict = "no problems found" if value["passed"] else "problems found: see the lines with BROKEN"
    expected = value.get("expected")
    below = "" if expected is None else f"{render_steps(expected)}\n\n"
    return f"{table(rows, ['', 'what', 'state', 'found'])}\n\n{below}{verdict}"
