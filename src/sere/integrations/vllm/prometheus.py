"""What re-routing did, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sere.integrations.vllm.engine_stats import joined
from sere.integrations.vllm.worker.step_counts import PASSED
from sere.reroute.stats import COUNTERS

# What each of `COUNTERS` means as a Prometheus metric of a layer.
_TEXTS = {
    "steps": "Steps with at least one row that counted",
    "rows": "Rows that counted",
    "distinct_before": "Distinct experts that the router chose, summed over steps",
    "distinct_after": "Distinct experts that ran, summed over steps",
    "slots": "Slots of the rows that counted",
    "slots_rerouted": "Slots whose expert changed",
    "critical": "Experts that resembled no primary one and stayed, summed over steps",
}


class Collector:
    """What ``prometheus_client`` asks for metrics at each scrape.

    Args:
        read: Returns the workers' answers.
    """

    def __init__(self, read: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Any]:
        """Name no metrics beforehand: registering must not read the engine."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics: sums since the start or the last reset, whose rates a dashboard takes."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        whole = joined(self._read())
        yield GaugeMetricFamily(
            "sere_enabled", "Whether steps are re-routed at present", float(whole["enabled"])
        )
        steps = CounterMetricFamily("sere_steps", "Steps of the engine by what was done", labels=["kind"])
        steps.add_metric(["rerouted"], whole["steps"]["rerouted"])
        steps.add_metric(["passed"], sum(whole["steps"][name] for name in PASSED))
        yield steps
        for position, counter in enumerate(COUNTERS):
            family = CounterMetricFamily(f"sere_layer_{counter}", _TEXTS[counter], labels=["layer"])
            for layer in whole["layers"]:
                family.add_metric([str(layer["index"])], layer["counters"][position])
            yield family
