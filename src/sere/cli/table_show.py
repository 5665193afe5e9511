"""What ``sere table show`` says of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sere.cli.output import table
from sere.cli.terminal import paragraph
from sere.config import RerouteConfig
from sere.identity import span
from sere.table import SimilarityTable, Tier, describe_unknown, off_diagonal
from sere.table.estimated_tiers import OWN_TEXTS_SHARE
from sere.table.neighbors import describe_regime, neighbors
from sere.table.regime import expected_losses, mean_of, why_no_loss
from sere.table.tier_rows import LOSSES, TIER_HEADS, tier_rows

_LOSS = """expected loss at the default settings ({settings}), in steps of B rows: the share of the routed
output's energy that is lost, and experts per layer before > after. An estimate of the layers' outputs"""
_OWN = """,
from texts that the model wrote itself: on other texts expect more, about 1 / {share} of it"""


def describe(path: Path, loaded: SimilarityTable, threshold: float) -> dict[str, Any]:
    """Return all that is shown of a table, JSON-ready.

    Args:
        path: Where it is.
        loaded: The table.
        threshold: The ρ for which critical experts are counted.
    """
    identity = loaded.identity
    found = neighbors([layer.similarity for layer in loaded.layers.values()])
    settled = loaded.settings(RerouteConfig())
    return {
        "path": str(path),
        "model": identity.name,
        "model_digest": identity.digest,
        "num_experts": identity.num_experts,
        "top_k": identity.top_k,
        "metric": loaded.metric,
        "metric_parameters": dict(loaded.metric_parameters),
        "calibration_tokens": loaded.calibration_tokens,
        "data_digest": loaded.data_digest,
        "seed": loaded.seed,
        "fingerprint": loaded.fingerprint,
        "provenance": dict(loaded.provenance),
        "threshold": threshold,
        "unknown": describe_unknown(loaded.layers, loaded.metric),
        "regime": {
            "best": None if found is None else asdict(found),
            "meaning": describe_regime(loaded.layers, loaded.metric),
        },
        "layers": [_layer(loaded, index, threshold) for index in loaded.layers],
        "default_tier": settled.tier,
        "expected_loss": _losses(loaded),
        "own_texts": loaded.own_texts,
        "why_no_expected_loss": why_no_loss(loaded),
        "tiers": {name: tier.to_mapping() for name, tier in loaded.tiers.items()},
    }


def render(value: dict[str, Any]) -> str:
    """Return what `describe` returned as text for people."""
    parts = [_facts(value), _layers(value)]
    if value["expected_loss"]:
        parts.append(_expected(value))
    if value["tiers"]:
        parts.append(_tiers(value))
    return "\n\n".join(parts)


def _layer(loaded: SimilarityTable, index: int, threshold: float) -> dict[str, Any]:
    layer = loaded.layers[index]
    others = off_diagonal(layer.similarity).double()
    found = neighbors([layer.similarity])
    return {
        "layer": index,
        "name": loaded.identity.layer_names[index],
        "num_experts": layer.num_experts,
        "top_k": loaded.identity.slots[index],
        "scale": layer.scale is not None,
        "min": float(others.min()) if len(others) else None,
        "mean": float(others.mean()) if len(others) else None,
        "max": float(others.max()) if len(others) else None,
        "best": None if found is None else asdict(found),
        "critical": list(loaded.critical_experts(index, threshold)),
        "unknown": list(layer.unknown),
    }


def _losses(loaded: SimilarityTable) -> dict[str, dict[str, dict[str, float]]] | None:
    if why_no_loss(loaded) is not None:
        return None
    found = expected_losses(loaded, RerouteConfig())
    sizes = next(iter(found.values()))
    lines = {str(index): by_size for index, by_size in found.items()}
    lines["mean"] = {B: mean_of([by_size[B] for by_size in found.values()]) for B in sizes}
    return {name: {str(B): one._asdict() for B, one in by_size.items()} for name, by_size in lines.items()}


def _facts(value: Mapping[str, Any]) -> str:
    parameters = ", ".join(f"{name}={setting}" for name, setting in value["metric_parameters"].items())
    made = value["provenance"]
    versions = ", ".join(f"{name} {v}" for name, v in made.get("versions", {}).items())
    E, K = (span(layer[name] for layer in value["layers"]) for name in ("num_experts", "top_k"))
    data = f"digest {value['data_digest'][:12] or 'none'}, seed {value['seed']}"
    best = value["regime"]["best"]
    facts = [
        ("model", f"{value['model']} (E={E}, K={K}, digest {value['model_digest'][:12]})"),
        ("metric", f"{value['metric']} ({parameters})" if parameters else value["metric"]),
        ("tokens", f"{value['calibration_tokens']:,} ({data})"),
        ("made by", f"{versions or 'unknown'}; commit {(made.get('commit') or 'unknown')[:12]}"),
        ("fingerprint", value["fingerprint"]),
        *(("note", note) for note in made.get("notes", [])),
        *([("not known", value["unknown"])] if value["unknown"] else []),
        *([("best other", "mean {mean:.3f}, 10 % below {p10:.3f}, half below {p50:.3f}, 90 % below {p90:.3f}"
            .format(**best))] if best else []),
        ("regime", value["regime"]["meaning"]),
        *([("loss", f"not estimated: {why}")] if (why := value["why_no_expected_loss"]) else []),
    ]  # fmt: skip
    return "\n".join(f"{name + ':':<13}{text}" for name, text in facts)


def _layers(value: Mapping[str, Any]) -> str:
    rows = [
        [
            layer["layer"],
            layer["num_experts"],
            *(_number(layer[name]) for name in ("min", "mean", "max")),
            *(_number((layer["best"] or {}).get(name)) for name in ("mean", "p10", "p50", "p90")),
            len(layer["critical"]),
            len(layer["unknown"]),
        ]
        for layer in value["layers"]
    ]
    best = ["best other", "10 %", "50 %", "90 %"]
    ends = [f"critical at ρ={value['threshold']:g}", "not known"]
    return table(rows, ["layer", "E", "least", "mean", "most", *best, *ends])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _expected(value: Mapping[str, Any]) -> str:
    losses = value["expected_loss"]
    rows = [[name, *map(_cell, sizes.values())] for name, sizes in losses.items()]
    tier = value["default_tier"]
    settings = "active_experts=auto, no tier" if tier is None else f"tier {tier}"
    heads = ["layer", *(f"B={B}" for B in losses["mean"])]
    own = _OWN.format(share=OWN_TEXTS_SHARE) if value["own_texts"] else ""
    return f"{paragraph(f'{_LOSS.format(settings=settings)}{own}:')}\n{table(rows, heads)}"


def _cell(one: Mapping[str, float]) -> str:
    return f"{100 * one['error']:.1f} % ({one['before']:.1f} > {one['after']:.1f})"


def _tiers(value: Mapping[str, Any]) -> str:
    rows = [
        row
        for name, tier in value["tiers"].items()
        for row in tier_rows(Tier.from_mapping(name, tier), value["num_experts"], value["top_k"])
    ]
    losses = paragraph(f"{LOSSES}.", elsewhere=110)
    return f"tiers:\n{table(rows, TIER_HEADS, keys=2)}\n{losses}"
