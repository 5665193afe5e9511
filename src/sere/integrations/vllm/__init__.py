"""Re-routing in vLLM: a plug-in that vLLM finds by itself, and the calls that read and change it.

Importing this imports nothing of vLLM. What an engine does with it is described in ``docs/vllm.md``.
"""

from sere.integrations.vllm.client.configure import configure
from sere.integrations.vllm.client.stats import read_stats

__all__ = ["configure", "read_stats"]
