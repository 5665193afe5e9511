"""Names of the methods that the plug-in puts on an engine's workers, for ``collective_rpc``.

They return errors and never raise: where one worker of several raises, vLLM leaves the answers of the workers
after it unread, and each later call gets the answer of the one before (0.32, ``MultiprocExecutor``).
"""

STATS = "sere_stats"
"""Returns what a worker counted; with True as its argument it also sets all counters to zero."""

EXPERTS = "sere_expert_counts"
"""Returns how often each expert of a worker's layers was chosen and ran, if that is counted."""

CONFIGURE = "sere_configure"
"""Changes settings in a worker; its first argument is one of the following steps."""

PROPOSE = "propose"
"""Prepare changes on the host and return the fingerprint of the state that they lead to."""

COMMIT = "commit"
"""Write what was prepared, if its fingerprint is the one given."""

WITHDRAW = "withdraw"
"""Forget what was prepared."""

STOP = "stop"
"""Switch re-routing off: workers hold different settings."""
