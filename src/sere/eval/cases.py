"""What every evaluation shares: what identifies a run, its cases, and how they outlive an interruption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from sere.errors import InputError
from sere.eval.checkpoint import Checkpoint
from sere.policies.spec import PolicySpec, check_off_first
from sere.provenance import provenance

if TYPE_CHECKING:
    from sere.identity import ModelIdentity
    from sere.integrations.transformers import Handle
    from sere.reroute.stats import LayerStats
    from sere.table import SimilarityTable

Progress = Callable[[str, int], AbstractContextManager[Callable[[], object]]]
"""Opens a stretch of work of a name and a number of parts; what it gives is called after each part."""

NO_PROGRESS: Progress = lambda _name, _total: nullcontext(lambda: None)  # noqa: E731
"""Shows nothing."""


class Cases(Protocol):
    """A plan: its settings at its batch sizes are the cases of a run."""

    @property
    def settings(self) -> Sequence[PolicySpec]:
        """The ways to route; the first is ``off``."""

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Rows of a decode step."""

    def describe(self) -> dict[str, Any]:
        """Return what else the plan says, JSON-ready."""


def check_cases(plan: Cases) -> None:
    """Refuse a plan without settings or batch sizes.

    Raises:
        InputError: The first setting is not ``off``, or a batch size is not positive.
    """
    check_off_first(plan.settings)
    if not plan.batch_sizes or min(plan.batch_sizes) < 1:
        raise InputError(f"evaluate: expected batch sizes of at least 1, got {list(plan.batch_sizes)}")


def _head_of_model(model: Any, plan: Cases, table: SimilarityTable | None) -> dict[str, Any]:
    """Return what identifies a run on a model of Transformers.

    Raises:
        TableMismatch: The table belongs to another model.
        UnsupportedModel: The model has no experts modules.
    """
    from sere.structure import identify

    identity = identify(model)
    if table is not None:
        table.check(identity)
    return head_of(
        plan,
        identity,
        table,
        dtype=str(model.dtype).removeprefix("torch."),
        implementation=getattr(model.config, "_experts_implementation", None),
    )


def head_of(
    plan: Cases,
    identity: ModelIdentity,
    table: SimilarityTable | None,
    *,
    dtype: str,
    implementation: str | None,
) -> dict[str, Any]:
    """Return what identifies a run, whatever engine it runs on.

    Args:
        plan: What is evaluated.
        identity: Of the model.
        table: Similarities, or None.
        dtype: Of the weights.
        implementation: What computes the experts.
    """
    return {
        "format": "sere-eval-1",
        "model": {
            "name": identity.name,
            "digest": identity.digest,
            "E": identity.num_experts,
            "K": identity.top_k,
            "dtype": dtype,
            "experts_implementation": implementation,
        },
        "table": None
        if table is None
        else {
            "fingerprint": table.fingerprint,
            "metric": table.metric,
            "num_tokens": table.calibration_tokens,
        },
        "plan": {
            "settings": [setting.label for setting in plan.settings],
            "batch_sizes": list(plan.batch_sizes),
            **plan.describe(),
            "confidence": 0.95,
        },
        "provenance": provenance(),
    }


def case_name(setting: PolicySpec, batch_size: int) -> str:
    """Return what a case is called in progress and checkpoints."""
    return f"B={batch_size} {setting.label}"


def checkpoint_of(
    head: Mapping[str, Any], path: str | os.PathLike[str] | None, *, weights: str
) -> Checkpoint:
    """Return the finished cases of a run, those of an interrupted one among them.

    Args:
        head: What `head_of` returned.
        path: The file that keeps them; None for none.
        weights: A digest that tells models of equal shape apart.
    """
    key = {name: head[name] for name in ("model", "table", "plan")}
    return Checkpoint(path, key | {"weights": weights, "versions": head["provenance"]["versions"]})


def open_run(
    model: Any, plan: Cases, table: SimilarityTable | None, path: str | os.PathLike[str] | None
) -> tuple[dict[str, Any], Checkpoint]:
    """Return what identifies a run on a model of Transformers, and its finished cases.

    Raises:
        TableMismatch: The table belongs to another model.
        UnsupportedModel: The model has no experts modules.
    """
    head = _head_of_model(model, plan, table)
    return head, checkpoint_of(head, path, weights=weights_digest(model))


def missing(kept: Checkpoint, plan: Cases, settings: Sequence[PolicySpec]) -> list[tuple[PolicySpec, int]]:
    """Return the cases of some of the plan's settings that are still to be measured, by batch size."""
    cases = [(setting, batch_size) for batch_size in plan.batch_sizes for setting in settings]
    return [case for case in cases if kept.get(case_name(*case)) is None]


def finished_cases(kept: Checkpoint, plan: Cases) -> list[dict[str, Any]]:
    """Return all cases of a run that is complete, by batch size."""
    return [
        kept.cases[case_name(setting, batch_size)]
        for batch_size in plan.batch_sizes
        for setting in plan.settings
    ]


def what_happened(handle: Handle) -> dict[str, Any]:
    """Return what a record says of a setting that is applied: ``experts`` and ``nothing_changed``."""
    return {"experts": summarize_layers(handle.stats()), "nothing_changed": handle.why_nothing_changed()}


def summarize_layers(stats: Sequence[LayerStats]) -> dict[str, Any]:
    """Return the layers' counts as means over layers, with the layers' own values beside them.

    Args:
        stats: What ``handle.stats()`` gave.

    Returns:
        ``before`` and ``after``: distinct experts of a layer and step; ``moved``: share of slots
        re-routed; ``critical``: critical experts of a layer and step; ``layers``: the same by layer.
    """
    layers = [
        {
            "index": layer.index,
            "before": layer.distinct_before,
            "after": layer.distinct_after,
            "moved": layer.slots_rerouted,
            "critical": layer.critical,
        }
        for layer in stats
        if layer.steps
    ]
    names = ("before", "after", "moved", "critical")
    means = {name: fmean(layer[name] for layer in layers) if layers else None for name in names}
    return means | {"layers": layers}


@contextmanager
def paused(handle: Handle) -> Iterator[None]:
    """Let a model to which a setting is applied run as it was."""
    handle.enabled = False
    try:
        yield
    finally:
        handle.enabled = handle.active


def weights_digest(model: Any) -> str:
    """Return what tells models of equal shape apart: a digest over samples of every weight."""
    digest = blake2b(digest_size=16)
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // 256)].double().cpu()
        digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()


def texts_digest(texts: Sequence[str]) -> str:
    """Return a digest of texts in their order."""
    return blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=16).hexdigest()
