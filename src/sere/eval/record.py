"""What a record of an evaluation says before its cases: model, table, plan, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sere.provenance import provenance
from sere.summaries import summarize_table

if TYPE_CHECKING:
    from sere.identity import ModelIdentity
    from sere.policies.spec import PolicySpec
    from sere.table import SimilarityTable


class Plan(Protocol):
    """What a record says of any plan."""

    @property
    def settings(self) -> Sequence[PolicySpec]:
        """The ways to route."""

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Rows of a decode step."""

    def describe(self) -> dict[str, Any]:
        """Return what is said beside these; JSON-ready."""


def make_header(
    plan: Plan,
    identity: ModelIdentity,
    table: SimilarityTable | None,
    *,
    dtype: str,
    experts_implementation: str | None,
    engine_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a record says before its cases, whichever engine decodes.

    Args:
        plan: What is evaluated.
        identity: The model's identity.
        table: Similarities, or None.
        dtype: The weights' dtype, e.g. ``"bfloat16"``.
        experts_implementation: What computes the experts.
        engine_options: Options of vLLM that the user gave.
    """
    return {
        "format": "sere-eval-2",
        "model": {
            "name": identity.name,
            "digest": identity.digest,
            "num_experts": identity.num_experts,
            "top_k": identity.top_k,
            "dtype": dtype,
            "experts_implementation": experts_implementation,
            **({"engine_options": dict(engine_options)} if engine_options else {}),
        },
        "table": None if table is None else summarize_table(table),
        "plan": {
            "settings": [setting.label for setting in plan.settings],
            "batch_sizes": list(plan.batch_sizes),
            **plan.describe(),
            "confidence": 0.95,
        },
        "provenance": provenance(),
    }


def header_of_model(model: Any, plan: Plan, table: SimilarityTable | None) -> dict[str, Any]:
    """Return the header of an evaluation in Transformers.

    Raises:
        TableMismatch: The table belongs to another model.
        UnsupportedModel: The model has no experts modules.
    """
    from sere.structure import identify

    identity = identify(model)
    if table is not None:
        table.check(identity)
    return make_header(
        plan,
        identity,
        table,
        dtype=str(model.dtype).removeprefix("torch."),
        experts_implementation=getattr(model.config, "_experts_implementation", None),
    )
