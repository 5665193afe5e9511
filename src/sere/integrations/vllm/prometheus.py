"""What re-routing did, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sere.integrations.vllm.engine_stats import join_answers
from sere.integrations.vllm.step_counts import SKIPPED
from sere.reroute.stats import COUNTERS

# What each of `COUNTERS` means as a Prometheus metric of a layer.
_TEXTS = {
    "steps": "Steps with at least one row that counted",
    "rows": "Rows that counted",
    "distinct_before": "Distinct experts that the router chose, summed over steps",
    "distinct_after": "Distinct experts that ran, summed over steps",
    "slots": "Slots of the rows that counted",
    "slots_rerouted": "Slots whose expert changed",
    "slots_computed": "Slots that carried weight afterwards",
    "critical": "Experts that resembled no primary one and stayed, summed over steps",
}
# Of a digest; as many as a worker says of its table's.
_SHOWN_DIGITS = 12


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

        joined = join_answers(self._read())
        yield GaugeMetricFamily(
            "sere_enabled", "Whether re-routing is on at present", float(joined["enabled"])
        )
        steps = CounterMetricFamily("sere_steps", "Steps of the engine by what was done", labels=["kind"])
        steps.add_metric(["rerouted"], joined["steps"]["rerouted"])
        for kind in SKIPPED:
            steps.add_metric([kind], joined["steps"][kind])
        yield steps
        yield from _settings(joined)
        for index, counter in enumerate(COUNTERS):
            family = CounterMetricFamily(f"sere_layer_{counter}", _TEXTS[counter], labels=["layer"])
            for layer in joined["layers"]:
                family.add_metric([str(layer["index"])], layer["counters"][index])
            yield family


def exposition(answers: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the metrics as Prometheus reads them, and the media type of that text.

    Args:
        answers: What each worker's ``sere_stats`` returned.

    Raises:
        UnsupportedEngine: There is no answer.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collector(lambda: answers))
    return generate_latest(registry).decode(), CONTENT_TYPE_LATEST


def _settings(joined: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the metrics of which settings hold and which tiers requests ask for."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    in_use = GaugeMetricFamily("sere_tier", "1 for the tier that the settings are from", labels=["tier"])
    in_use.add_metric([str(joined["settings"].get("tier") or "none")], 1)
    yield in_use
    held = GaugeMetricFamily(
        "sere_info",
        "1; beginnings of two digests: of the table, and of the version with all settings",
        labels=["table", "settings"],
    )
    held.add_metric([joined["table"]["fingerprint"], joined["fingerprint"]["common"][:_SHOWN_DIGITS]], 1)
    yield held
    tiers = CounterMetricFamily(
        "sere_tier_steps", "Re-routed steps in which a request asked for a tier", labels=["tier"]
    )
    for name in joined["request_tiers"]:
        tiers.add_metric([name], joined["steps"]["by_tier"].get(name, 0))
    yield tiers
    most = GaugeMetricFamily(
        "sere_layer_active_experts",
        "M, experts that a step of so many rows may read",
        labels=["layer", "rows"],
    )
    for layer in joined["layers"]:
        for rows, experts in layer["settings"]["active_experts"]:
            most.add_metric([str(layer["index"]), str(rows)], experts)
    yield most
