"""The card of a shared table: what its repository says to people, in the hub's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from tabulate import tabulate

from sere.defaults import TABLE
from sere.hub.client import load_client
from sere.hub.names import HUB_NAME
from sere.identity import ModelIdentity, span
from sere.similarity import LayerSimilarity
from sere.table.layers import describe_unknown
from sere.table.neighbors import describe_regime, neighbors
from sere.table.tier_rows import LOSSES, TIER_HEADS, tier_rows
from sere.table.tiers import Tier

CARD = "README.md"
"""The name of a card in a repository."""

_MARK = "<!-- Written by sere, which replaces this file. Remove this line to keep your own text. -->"
_TAGS = ("sere", "mixture-of-experts", "expert-similarity")

_INTRODUCTION = """\
How well the experts of each Mixture-of-Experts layer of {model} replace each other. sere reads this table to
decode batches with fewer experts per step, by the method of SERE
([arXiv 2602.07616](https://arxiv.org/abs/2602.07616)). It holds no weights of the model, and changes none."""

_USE = """\
With sere in the environment of the engine, in vLLM:

```
vllm serve MODEL --additional-config '{{"sere": {{"table": "{where}"}}}}'
```

In Transformers:

```python
import sere

with sere.apply(model, "{where}"):
    model.generate(**inputs)
```

MODEL is {model}, or another checkpoint of the same architecture, such as a quantized one. sere refuses a
model of another architecture."""

_NO_TIERS = "The table recommends no settings. `sere tune` measures some, and stores them in it."


class Described(Protocol):
    """The part of a `SimilarityTable` that its card tells."""

    @property
    def layers(self) -> Mapping[int, LayerSimilarity]: ...  # noqa: D102
    @property
    def identity(self) -> ModelIdentity: ...  # noqa: D102
    @property
    def metric(self) -> str: ...  # noqa: D102
    @property
    def metric_parameters(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def calibration_tokens(self) -> int: ...  # noqa: D102
    @property
    def data_digest(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int | None: ...  # noqa: D102
    @property
    def provenance(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def tiers(self) -> Mapping[str, Tier]: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102


def write_card(table: Described, *, repository: str | None = None, base_model: str | None = None) -> str:
    """Return the text of a table's card.

    Args:
        table: The table.
        repository: Where the table will be, ``owner/name``; None if that is not known.
        base_model: The model's name on the hub; None takes the table's own, if it is such a name.

    Raises:
        MissingDependency: huggingface_hub, which writes the metadata, is not installed.
    """
    name = base_model or table.identity.name
    on_hub = name if HUB_NAME.fullmatch(name) else None
    data = load_client().ModelCardData(library_name="sere", base_model=on_hub, tags=list(_TAGS))
    model = f"[{name}](https://huggingface.co/{name})" if on_hub else f"`{name}`"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        _MARK,
        f"# Similarity table of {name}",
        _INTRODUCTION.format(model=model),
        "## How to use it",
        _USE.format(where=repository or TABLE, model=model),
        "## What was measured",
        tabulate(list(_facts(table)), headers=["", ""], tablefmt="github", disable_numparse=True),
        *_replaceability(table),
        "## Recommended settings",
        _tiers(table),
    ]
    return "\n\n".join(parts) + "\n"


def is_our_card(text: str) -> bool:
    """Whether a card was written by sere, so that it may be replaced."""
    return _MARK in text


def _facts(table: Described) -> Iterator[tuple[str, str]]:
    identity = table.identity
    shape = ", ".join(f"{key} {value}" for key, value in identity.architecture.items())
    E, K = span(identity.experts.values()), span(identity.slots.values())
    yield "architecture", f"{shape}; {len(table.layers)} MoE layers of {E} experts, {K} per token"
    settings = ", ".join(f"{name}={value}" for name, value in table.metric_parameters.items())
    yield "metric", f"`{table.metric}`" + (f" ({settings})" if settings else "")
    yield "calibration tokens", f"{table.calibration_tokens:,}" if table.data_digest else "none"
    if table.data_digest:
        yield "digest of the tokens", f"`{table.data_digest}`"
        yield "seed", str(table.seed)
    yield "fingerprint", f"`{table.fingerprint}`"
    made = table.provenance
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    yield "made with", f"{versions or 'unknown'}; commit {(made.get('commit') or 'unknown')[:12]}"
    for note in made.get("notes", []):
        yield "note", str(note)


def _replaceability(table: Described) -> Iterator[str]:
    best = neighbors([layer.similarity for layer in table.layers.values()])
    sentence = describe_regime(table.layers, table.metric)
    text = f"{sentence[0].upper()}{sentence[1:]}."
    if best is not None:
        text += (
            f" The similarity of an expert to the one that replaces it best is {best.mean:.3f} in the mean; "
            f"for 10 % of the experts it is below {best.p10:.3f}, for 90 % below {best.p90:.3f}."
        )
    yield text
    if unknown := describe_unknown(table.layers, table.metric):
        yield f"{unknown}."


def _tiers(table: Described) -> str:
    if not table.tiers:
        return _NO_TIERS
    identity = table.identity
    rows = [
        [("" if cell is None else str(cell)) for cell in row]
        for tier in table.tiers.values()
        for row in tier_rows(tier, identity.num_experts, identity.top_k)
    ]
    shown = tabulate(rows, headers=list(TIER_HEADS), tablefmt="github", disable_numparse=True)
    return "\n\n".join(
        [
            'Choose one with `"tier": "NAME"`; without, `balanced` counts if there is one. B is the batch '
            f"size, M the experts that a layer reads in a step. {LOSSES}.",
            shown,
            *_evidence(table.tiers),
        ]
    )


def _evidence(tiers: Mapping[str, Tier]) -> Iterator[str]:
    """Yield a sentence on the texts that each set of tiers was measured on."""
    said = set()
    for tier in tiers.values():
        texts = tier.evidence.get("texts")
        if not isinstance(texts, Mapping) or not texts:
            continue
        halves = "; ".join(
            f"{half}: {found.get('prompts')} prompts, {found.get('tokens')} tokens, digest "
            f"`{str(found.get('digest'))[:12]}`"
            for half, found in texts.items()
        )
        if halves not in said:
            said.add(halves)
            yield f"Measured by `sere tune` ({halves})."
