"""Ceilings that were measured on this machine, kept for servers, which must not measure any."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sere.errors import SereError
from sere.files import cache_folder, write_json
from sere.provenance import describe_processor, machine
from sere.step_time.ceilings import Ceilings

_NAME = "ceilings.json"


def remember(ceilings: Ceilings) -> None:
    """Keep ceilings in sere's cache folder; of one machine, device and dtype, the last ones count.

    If the folder cannot be written, nothing is kept.
    """
    with suppress(SereError, OSError, RuntimeError):
        path = cache_folder() / _NAME
        write_json(path, _read(path) | {_key(ceilings.device, ceilings.dtype): asdict(ceilings)})


def known_ceilings(device: str, dtype: str) -> Ceilings | None:
    """Return the ceilings that were measured on this machine last, or None.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        dtype: Of the weights, such as ``"bfloat16"``.
    """
    with suppress(OSError, RuntimeError, TypeError):
        found = _read(cache_folder() / _NAME).get(_key(device, dtype))
        return None if found is None else Ceilings(**found)
    return None


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _key(device: str, dtype: str) -> str:
    """Return what ceilings hold for: the same home folder may be on several machines."""
    here = machine()
    return f"{describe_processor(here) if device == 'cpu' else here['gpu']}, {device}, {dtype}"
