"""Names of the methods that the plug-in puts on an engine's workers, for ``collective_rpc``."""

STATS = "sere_stats"
"""Returns what a worker counted; with True as its argument it also sets all counters to zero."""

CONFIGURE = "sere_configure"
"""Changes settings in a worker."""
