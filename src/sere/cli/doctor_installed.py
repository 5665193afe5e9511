"""What ``sere doctor`` says of this environment: versions, machine, backends, extras, serving."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sere.cli.explain import EXTRAS
from sere.cli.finding import Finding
from sere.errors import SereError, how_to_install

if TYPE_CHECKING:
    from sere.reroute.batch import StepDtypes

_SERVER = "serving: vLLM loads the plug-in by itself"
# CUDA 13, which cuda-core and NVRTC are installed for.
_CUDA_OF_KERNEL = 13000


def installed_findings() -> Iterator[Finding]:
    """Look at what is installed and what can run here."""
    yield from _versions()
    yield from _backends()
    yield from _extras()
    yield from _bundled()


def _versions() -> Iterator[Finding]:
    from sere.provenance import commit, cuda_driver, describe_machine, machine, versions

    for name, version in versions().items():
        yield _version(name, version)
    head, clean = commit()
    if head is not None:
        yield Finding("versions", "commit", "ok", f"{head[:12]}{'' if clean else ', tree changed'}")
    found = machine()
    yield Finding("machine", "cpu", "ok", describe_machine(found))
    if not found["gpu"]:
        yield from _emulated()
    yield Finding(
        "machine", "gpu", "ok" if found["gpu"] else "missing", found["gpu"] or "no GPU that PyTorch can use"
    )
    if (driver := cuda_driver()) is not None:
        yield _driver(driver)


def _emulated() -> Iterator[Finding]:
    """Say that PyTorch and vLLM emulate bfloat16 on this CPU, and what to do about it."""
    from sere.calibrate.float32_products import emulates_bfloat16

    if emulates_bfloat16():
        detail = (
            "PyTorch and vLLM emulate it on this CPU. vllm serve and sere tune, eval and generate take "
            "--dtype float32: weights take twice the memory, and steps of many rows less time "
            '(docs/measurements.md, "A CPU without bfloat16 instructions"). sere calibrate multiplies in '
            "float32 by itself"
        )
        yield Finding("machine", "bfloat16", "missing", detail)


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


def engine_dtypes(dtype: str | None = None) -> tuple[StepDtypes, ...]:
    """Return the dtypes of the steps that engines route.

    vLLM gives float32 weights, with ids of either kind; Transformers int64 ids, with float32 weights or with
    weights of the model's dtype.

    Args:
        dtype: The model's, such as ``"float16"``; None for bfloat16, which most models have.
    """
    import torch

    from sere.reroute.batch import StepDtypes
    from sere.reroute.checks import ID_DTYPES, WEIGHT_DTYPES

    own = getattr(torch, dtype or "bfloat16")
    found = [StepDtypes(ids, torch.float32) for ids in ID_DTYPES]
    return tuple(dict.fromkeys([*found, StepDtypes(torch.int64, own)] if own in WEIGHT_DTYPES else found))


def _backends() -> Iterator[Finding]:
    import torch

    from sere.flatten import why_not
    from sere.reroute.backends.registry import BACKENDS, select

    device, dtypes = "cuda" if torch.cuda.is_available() else "cpu", engine_dtypes()
    for name, record in BACKENDS.items():
        reason = record.why_not(device, dtypes=dtypes)
        yield Finding("backends", name, "missing" if reason else "ok", reason or f"runs on {device} tensors")
    chosen = select("auto", device, dtypes=dtypes)
    yield Finding("backends", "auto", "ok", f"chooses {chosen} for {device} tensors")
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
