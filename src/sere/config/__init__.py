"""The settings of re-routing, which know no model, no table and no engine."""

from sere.config.active_experts import ActiveExperts, read_active_experts
from sere.config.checks import MOST_INT, as_integer, check_sentinel
from sere.config.layers import LayerSettings
from sere.config.reroute import PAPER, Backend, Flatten, Merge, Phases, RerouteConfig, Targets

__all__ = [
    "MOST_INT",
    "PAPER",
    "ActiveExperts",
    "Backend",
    "Flatten",
    "LayerSettings",
    "Merge",
    "Phases",
    "RerouteConfig",
    "Targets",
    "as_integer",
    "check_sentinel",
    "read_active_experts",
]
