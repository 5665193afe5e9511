"""Settings that a handle changes in place, while hooks are set and code is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sere.config import RerouteConfig
from sere.config.change import CHANGEABLE, changed
from sere.errors import ConfigError, did_you_mean
from sere.integrations.transformers.hooks import HookedLayer
from sere.policies.sere import Sere, SereRouter
from sere.table import SimilarityTable


@dataclass(slots=True)
class LiveSettings:
    """The table of a model that is re-routed, and the settings as they were given.

    Attributes:
        table: The similarity table.
        given: The settings; the table's tier may say the rest.
    """

    table: SimilarityTable
    given: RerouteConfig

    def rule(self) -> Sere:
        """Return the rule that table and settings make."""
        return Sere(self.table.layers, self.table.settings(self.given))

    def change(self, layers: Sequence[HookedLayer], values: Mapping[str, Any]) -> Sere:
        """Change settings of all layers, or of none, in the tensors that their steps read.

        Args:
            layers: The layers, whose rule came from these settings.
            values: What is to change, by name.

        Returns:
            The rule with the new settings.

        Raises:
            ConfigError: A setting cannot change in place, or a value does not fit the table.
        """
        for name in values:
            if name not in CHANGEABLE:
                raise ConfigError(
                    f"{name!r} cannot be changed while re-routing is on{did_you_mean(name, CHANGEABLE)}; "
                    "remove the handle and apply again"
                )
        new = LiveSettings(self.table, changed(self.given, values))
        rule = new.rule()
        routers = [layer.router for layer in layers]
        # On the host: what can fail, memory of the device among it, fails before anything has changed.
        prepared = [
            rule.prepare(router.layer, router.prepared.device, on_host=True)
            for router in routers
            if isinstance(router, SereRouter)
        ]
        for router, other in zip(routers, prepared, strict=True):
            assert isinstance(router, SereRouter)
            router.prepared.check_update(other)
        for layer, router, other in zip(layers, routers, prepared, strict=True):
            assert isinstance(router, SereRouter)
            router.prepared.update(other)
            layer.policy = rule
        self.given = new.given
        return rule
