"""Re-routing in Transformers: ``apply`` hooks a loaded model, ``Handle`` reads and removes the hooks."""

from sere.integrations.transformers.apply import apply
from sere.integrations.transformers.handle import Handle
from sere.reroute.stats import LayerStats

__all__ = ["Handle", "LayerStats", "apply"]
