"""Records of all formats, read with today's names: older ones name the same things differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sere.bench.replay import REPLAY
from sere.policies.former_labels import normalize_label

# Keys of older records.
_KEYS = {
    "ratio_off_to_this": "speedup",
    "loss_to_off": "loss_vs_baseline",
    "hook": "overhead",
    "own_cost": "overhead",
    "num_tokens": "calibration_tokens",
}
_SHAPE = {"E": "num_experts", "K": "top_k"}
_COUNTERS = {"before": "distinct_before", "after": "distinct_after", "moved": "slots_rerouted"}


def modernize(value: Any) -> Any:
    """Return a record, or a part of one, with today's keys, counters and names of settings.

    Args:
        value: JSON as it was read.
    """
    if isinstance(value, list):
        return [modernize(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {_KEYS.get(str(key), str(key)): modernize(one) for key, one in value.items()}
    experts = found.get("experts")
    for part in ("subject", "model"):
        if isinstance(found.get(part), Mapping):
            found[part] = {_SHAPE.get(key, key): one for key, one in found[part].items()}
    if isinstance(experts, Mapping):
        found["experts"] = _rename(experts)
    elif isinstance(experts, int | float):
        found["distinct_after"] = found.pop("experts")
    if isinstance(found.get("setting"), str):
        found["setting"] = label(found["setting"])
    if isinstance(found.get("case"), str):
        found["case"] = found["case"].replace(" a second", " per second")
    return found


def _rename(experts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _COUNTERS.get(key, key): [_rename(one) for one in value] if key == "layers" else value
        for key, value in experts.items()
    }


def label(setting: str) -> str:
    """Return a setting's name as it is spelled today, whichever way it was recorded."""
    if setting == "untouched":
        return "vanilla"
    if setting.startswith("oracle "):
        return REPLAY + label(setting.removeprefix("oracle "))
    return normalize_label(setting)
