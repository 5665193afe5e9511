"""The table that sets times at the share of experts of trained models' tiers against what was wanted."""

from __future__ import annotations

from cells import spread, table
from records import serve_records

# Times as fast as ``off`` that each tier was to decode, by rows.
WANTED = {
    "balanced": {8: 1.5, 16: 2.0, 32: 1.75, 64: 1.45, 128: 1.25},
    "fast": {8: 2.0, 16: 2.5, 32: 2.2, 64: 1.8, 128: 1.6},
}


def tier_targets(name: str = "serve_share.jsonl") -> str:
    """By tier and rows: wanted, measured with the fewest layers, and for one more layer, with spreads.

    The record has one setting for each tier, in their order.
    """
    records = [one for one in serve_records(name) if one["setting"].startswith("sere:")]
    tiers = dict(zip(dict.fromkeys(one["setting"] for one in records), WANTED, strict=True))
    fewest = min(one["subject"]["layers"] for one in records)
    found: dict[tuple[int, str], list[str]] = {}
    for one in records:
        cells = found.setdefault((int(one["batch_size"]), tiers[one["setting"]]), ["", ""])
        if one["subject"]["layers"] == fewest:
            cells[0] = spread(one["speedup"])
        if one["complete_model"] is not None:
            cells[1] = spread(one["complete_model"]["speedup_per_layer"])
    rows = [
        [B, f"`{tier}`", f"{by_rows[B]:g}x", *found[B, tier]]
        for tier, by_rows in WANTED.items()
        for B in sorted(by_rows)
        if (B, tier) in found
    ]
    return table(rows, ["B", "tier", "wanted", "has", "per layer"])
