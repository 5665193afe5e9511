"""Read Prometheus metrics over HTTP, and what they are made of."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from sere.integrations.vllm.step_counts import StepCounts
from sere.integrations.vllm.worker.metrics_port import MetricsPort
from tests.support.patience import HANGS_S

HOST = "127.0.0.1"


def serve_metrics(
    read: Callable[[], Mapping[str, Any]], host: str, port: int, *, live_page: bool = False
) -> Callable[[], None]:
    """Serve what ``read`` returns as a worker does; return what closes the port."""
    opened = MetricsPort(host, port)
    opened.serve(read, live_page=live_page)
    return opened.close


def scrape(port: int) -> str:
    """Return what a port of this machine says under ``/metrics``."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=HANGS_S) as answer:
        return str(answer.read().decode())


def report_without_layers(**counts: int) -> dict[str, Any]:
    """Return the report of a worker without layers that counted some steps."""
    steps = StepCounts(**counts).to_mapping()
    known = {"kernel": None, "expert_bytes": None, "top_k": 0, "num_experts": 0}
    known |= {"count_only": False, "request_tiers": [], "fingerprint": {"common": "", "layers": {}}}
    known |= {"rest_bytes": None, "table": {"fingerprint": "", "tiers": []}, "data_parallel_rank": 0}
    known["flatten"] = {"setting": "auto", "why_not": None}
    return {"enabled": True, "settings": {"select_top_k": 1}, "steps": steps, "layers": []} | known
