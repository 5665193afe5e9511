"""A routing rule: immutable settings, bound once to each layer, and the router that this gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.reroute import COUNTERS, Routing, StepDtypes, TokenBatch
from sere.reroute.batch import USUAL_DTYPES
from sere.table import SimilarityTable


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a rule needs to know about one MoE layer of a model.

    Attributes:
        index: Decoder-layer index.
        num_experts: E, routed experts; other ids pass through unchanged.
        top_k: K, routed slots per token.
        dtypes: Of the steps that its router may give, as far as they are known.
    """

    index: int
    num_experts: int
    top_k: int
    dtypes: tuple[StepDtypes, ...] = USUAL_DTYPES


class LayerRouter(ABC):
    """A rule bound to one layer on one device: the state and the prepared tensors of that layer.

    Args:
        layer: The layer.
        device: Where its steps run.

    Attributes:
        layer: The layer.
        counters: int64, one entry per name in ``sere.reroute.COUNTERS``, on the device; incremented in place.
    """

    def __init__(self, layer: LayerShape, device: torch.device) -> None:
        self.layer = layer
        # A tensor made in inference mode could not be changed outside it.
        with torch.inference_mode(False):
            self.counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)

    @abstractmethod
    def __call__(self, batch: TokenBatch) -> Routing:
        """Route one step of the layer, and count it.

        Args:
            batch: The step, on the router's device; ``router_scores`` are given if the rule ``needs_scores``.
                An expert whose score is -∞ or NaN is not wanted.

        Returns:
            New ids and weights; same shapes, dtypes and device.

        Raises:
            InputError: A shape, dtype, device or bound is wrong; the text says what was expected.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a step reads or writes, by name; an engine that sleeps must keep them."""
        return {"counters": self.counters}


class Policy(ABC):
    """The settings of a rule that changes which experts the rows of a decode step use.

    A policy is immutable; what changes from step to step is in the routers that `bind` returns.

    Rows with a negative budget, and rows from ``num_tokens`` on, are padding: they neither vote nor count.
    Rows with a budget of K or more are protected: they keep their experts, which others may use. Rows with
    ``LAYER_BUDGET``, and all rows of a batch without budgets, have the rule's own settings. A rule without S
    treats all rows that are neither padding nor protected alike.

    Attributes:
        name: The name in ``sere.policies.spec.POLICIES``, settings and records.
        needs_scores: Whether its routers must be given the router's scores of all experts.
        needs_table: Whether it needs a similarity table.
        changes_routing: Whether it is meant to change anything; False for the baseline ``off``.
        source: The paper or idea behind it, for documents.
        example: Options as one would write them, such as ``"select_top_k=2"``, for help, errors and tests.
        presets: Values of the option ``preset``, which are written without its name: ``sere:paper``.
        given_elsewhere: Fields of the settings that are not options, because they are given in another way.
        config: The settings of re-routing; None for a rule that has others.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool] = False
    needs_table: ClassVar[bool] = False
    changes_routing: ClassVar[bool] = True
    source: ClassVar[str] = ""
    example: ClassVar[str] = ""
    presets: ClassVar[tuple[str, ...]] = ()
    given_elsewhere: ClassVar[frozenset[str]] = frozenset()
    config: RerouteConfig | None = None

    @abstractmethod
    def bind(self, layer: LayerShape, device: torch.device) -> LayerRouter:
        """Prepare the rule for one layer on one device.

        Args:
            layer: The layer.
            device: Where its steps will run.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values, for records."""

    @classmethod
    def settings_type(cls) -> type:
        """Return the dataclass whose fields are the rule's options: the rule itself, unless it holds more."""
        return cls

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that are wrong whatever the model and the table.

        Args:
            options: Values by field name of ``settings_type``, those that it needs among them.

        Raises:
            ConfigError: A value is out of range.
        """
        cls.settings_type()(**options)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], table: SimilarityTable | None) -> Self:
        """Build the rule from its options.

        Args:
            options: Values by field name of ``settings_type``.
            table: The model's similarity table; not None if the rule ``needs_table``.

        Raises:
            ConfigError: A value is out of range.
        """
        del table
        return cls(**options)

    def exact_rows(self, layer: LayerShape) -> int:
        """Return up to how many rows a step surely changes nothing in a layer, whatever its ids and weights.

        An engine need not call the layer's router in such a step. It follows from the settings alone, and
        holds where no row is padding or protected (one row may be). A rule that counts for its own sake
        says 0.

        Args:
            layer: The layer.
        """
        del layer
        return 0

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return one sentence per reason why the settings re-route nothing in some or all of the layers.

        Args:
            layers: The layers of a model.
        """
        del layers
        return []

    def never_reroutes(self, rows: int, layers: Iterable[LayerShape]) -> bool:
        """Whether no step of at most so many rows can be re-routed, whatever its rows choose.

        Args:
            rows: Rows of the largest step.
            layers: The layers of a model.

        Returns:
            True only if the settings alone say so; such steps keep the unmodified model's bits.
        """
        return not self.changes_routing or all(rows <= self.exact_rows(layer) for layer in layers)
