"""``sere doctor``: what is installed, what can run here, and whether table and model fit."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sere.cli.explain import EXTRAS
from sere.cli.loading import (
    add_table_argument,
    add_trust_argument,
    checkpoint_path,
    identity_from_config,
    table_path,
)
from sere.cli.output import add_json_flag, emit, table
from sere.cli.parser import add_command
from sere.errors import SereError, how_to_install
from sere.identity import span

_DETAILS = """The exit code is 1 if the given model or table is broken, or if the table was not made for
the model. A missing optional package is not an error; its line says how to install it. An untested
release of Transformers or PyTorch is not an error either; its line says how to check that it works."""

_EXAMPLES = """
  sere doctor
  sere doctor --model MODEL --table cosine.sere
  sere doctor --model bundled --json
"""

_SERVER = "serving: vLLM loads the plug-in by itself"
# CUDA 13, which cuda-core and NVRTC are installed for.
_CUDA_OF_KERNEL = 13000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: Which group it belongs to.
        name: What was looked at.
        state: ``ok``, ``missing`` (nothing wrong), ``untested`` (may work, but nobody tried) or ``BROKEN``.
        detail: What was found, or what to do.
    """

    part: str
    name: str
    state: str
    detail: str


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Check what is installed, what can run here, and whether table and model fit."
    parser = add_command(subparsers, "doctor", summary, run, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("--model", metavar="MODEL", help="a checkpoint folder, a hub name, or 'bundled'")
    add_table_argument(parser, "the model's own; it is checked against the model")
    add_trust_argument(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Look at everything and print it."""
    from sere.provenance import provenance

    findings = [*_versions(), *_backends(), *_extras(), *_bundled(), *_asked(args)]
    passed = all(finding.state != "BROKEN" for finding in findings)
    value = {
        "passed": passed,
        "findings": [asdict(finding) for finding in findings],
        "provenance": provenance(),
    }
    emit(args, value, render)
    return 0 if passed else 1


def _versions() -> Iterator[Finding]:
    from sere.provenance import commit, cuda_driver, describe_machine, machine, versions

    for name, version in versions().items():
        yield _version(name, version)
    head, clean = commit()
    if head is not None:
        yield Finding("versions", "commit", "ok", f"{head[:12]}{'' if clean else ', tree changed'}")
    found = machine()
    yield Finding("machine", "cpu", "ok", describe_machine(found))
    yield Finding(
        "machine", "gpu", "ok" if found["gpu"] else "missing", found["gpu"] or "no GPU that PyTorch can use"
    )
    if (driver := cuda_driver()) is not None:
        yield _driver(driver)


def _driver(version: int) -> Finding:
    """Say which CUDA version a driver supports, and what runs if it is too old for the backend ``cuda``."""
    text, needed = f"supports CUDA {version // 1000}.{version % 1000 // 10}", _CUDA_OF_KERNEL // 1000
    if version >= _CUDA_OF_KERNEL:
        return Finding("machine", "driver", "ok", text)
    text += f", but the backend cuda needs {needed}: Triton runs instead; update the driver"
    return Finding("machine", "driver", "missing", text)


def _version(name: str, version: str) -> Finding:
    """Say whether a package's release is among those that sere is tested with, where that is known."""
    from sere.versions import TESTED, describe_range, why_outside

    if name not in TESTED:
        return Finding("versions", name, "ok", version)
    reason = why_outside(name, version)
    if reason is not None:
        return Finding("versions", name, "untested", reason)
    return Finding("versions", name, "ok", f"{version} (tested: {describe_range(name)})")


def _backends() -> Iterator[Finding]:
    import torch

    from sere.flatten import why_not
    from sere.reroute.backends.registry import BACKENDS, select

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, record in BACKENDS.items():
        reason = record.why_not(device)
        yield Finding("backends", name, "missing" if reason else "ok", reason or f"runs on {device} tensors")
    yield Finding("backends", "auto", "ok", f"chooses {select('auto', device)} for {device} tensors")
    reason = why_not()
    detail = reason or "on a CPU, slots without weight can be left out (setting flatten)"
    yield Finding("backends", "flatten", "missing" if reason else "ok", detail)


def _extras() -> Iterator[Finding]:
    from sere.provenance import installed_version

    for package, (extra, purpose) in EXTRAS.items():
        version = installed_version(package)
        detail = f"{purpose} ({version})" if version else f"{purpose}; {how_to_install(extra)}"
        yield Finding("extras", package, "ok" if version else "missing", detail)
    yield _vllm()
    yield from _plugin()


def _plugin() -> Iterator[Finding]:
    """Say what in this environment keeps vLLM from loading the plug-in, or an engine from using it."""
    from sere.integrations.vllm.plugin import DISABLE, is_disabled
    from sere.integrations.vllm.plugin_config import KEY

    value = os.environ.get(DISABLE)
    if is_disabled():
        yield Finding("serving", DISABLE, "missing", f"{value!r}: no engine re-routes; set it to 0")
    else:
        yield Finding("serving", DISABLE, "ok", "not set" if value is None else f"{value!r}: not disabled")
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is None:
        yield Finding("serving", "VLLM_PLUGINS", "ok", f"not set: all plug-ins, no routes; {KEY} adds them")
    elif KEY in plugins.split(","):
        yield Finding("serving", "VLLM_PLUGINS", "ok", f"{plugins!r}: names {KEY}")
    else:
        detail = f"{plugins!r}: vLLM does not load the plug-in, no engine re-routes; add {KEY}, or unset it"
        yield Finding("serving", "VLLM_PLUGINS", "missing", detail)


def _vllm() -> Finding:
    """Say which vLLM is there and whether re-routing knows it on the device that it was built for."""
    from sere.integrations.vllm.start.versions import (
        check_version,
        describe_versions,
        engine_device,
        engine_version,
    )

    version = engine_version()
    if version is None:
        return Finding("extras", "vllm", "missing", f"{_SERVER}, {describe_versions()}")
    try:
        check_version(version, device_type=engine_device(), allow_untested=False)
    except SereError as error:
        return Finding("extras", "vllm", "missing", str(error))
    return Finding("extras", "vllm", "ok", f"{_SERVER} ({version})")


def _bundled() -> Iterator[Finding]:
    from sere.bundled import model_path

    try:
        yield Finding("bundled model", "files", "ok", str(model_path()))
    except (SereError, ImportError, OSError) as error:
        yield Finding("bundled model", "files", "missing", str(error))


def _asked(args: argparse.Namespace) -> Iterator[Finding]:
    """Look at the model and the table that were named; every fault is a finding, not an error."""
    identity = None
    if args.model is not None:
        try:
            identity = identity_from_config(args)
        except (SereError, ImportError, OSError, ValueError) as error:
            yield Finding("model", args.model, "BROKEN", str(error))
        else:
            E, K = span(identity.experts.values()), span(identity.slots.values())
            shape = f"{len(identity.layer_names)} MoE layers, E={E}, K={K}"
            detail = f"{shape} (select_top_k < {identity.top_k} re-routes), digest {identity.digest[:12]}"
            yield Finding("model", identity.name, "ok", detail)
            yield _backend_of(identity)
            yield _weights(args)
    if args.model is None and args.table is None:
        return
    try:
        path = table_path(args)
    except SereError as error:
        yield Finding("table", args.table, "BROKEN", str(error))
        return
    if path is not None:
        yield from _table(str(path), identity)


def _backend_of(identity: Any) -> Finding:
    """Say which backend re-routes layers of the model's size here."""
    import torch

    from sere.reroute.backends.registry import select, why_not_fastest

    device, E, K = "cuda" if torch.cuda.is_available() else "cpu", identity.num_experts, identity.top_k
    name = select("auto", device, E, K)
    reason = why_not_fastest(name, torch.device(device), E, K)
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
        # Of a hub model, only the config is fetched to look at it.
        fetched = hub_name(path) is None or any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
        if fetched:
            return Finding("model", "weights", "BROKEN", str(error))
        return Finding(
            "model", "weights", "missing", "not downloaded; the first command that needs them downloads them"
        )
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
    return f"{table(rows, ['', 'what', 'state', 'found'])}\n\n{verdict}"
