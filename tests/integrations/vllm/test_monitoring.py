"""``examples/monitoring``: names in the dashboard and the alerts, and a real Prometheus that runs them."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from sere.integrations.vllm.prometheus import exposition
from sere.integrations.vllm.step_counts import StepCounts
from sere.reroute import COUNTERS
from tests.support.prometheus import ALERTS, DASHBOARD, FOLDER, QUERIES, needs, prometheus, rules, values
from tests.support.vllm.metrics import HOST, report_without_layers, serve_metrics
from tests.support.vllm.server import free_port

pytest.importorskip("prometheus_client", reason="comes with vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.checkout]


def report(steps: int) -> dict[str, Any]:
    """A worker's report after so many steps: two layers, half of whose slots were re-routed."""
    sums = {
        "steps": 1, "rows": 8, "distinct_before": 40, "distinct_after": 20, "slots": 32, "slots_rerouted": 16,
        "slots_computed": 28, "critical": 6,
    }  # fmt: skip
    layers = [
        {"index": index, "share": 0, "name": f"layer {index}",
         "counters": [steps * sums[one] for one in COUNTERS],
         "settings": {"active_experts": [[1, 4], [8, 20]]}}
        for index in (0, 1)
    ]  # fmt: skip
    counted = StepCounts(rerouted=steps, prompts=steps // 2, by_tier={"safe": steps}).to_mapping()
    settings = {"tier": "balanced"}
    given = {"layers": layers, "steps": counted, "settings": settings, "request_tiers": ["safe"]}
    return report_without_layers() | given


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bsere_\w+", text))


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The names of the metrics that our code gives."""
    text, _ = exposition([report(4)])
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line.startswith("sere_")}


def test_every_metric_of_the_dashboard_and_the_alerts_exists(known: set[str]) -> None:
    """And each metric that a layer counts is on the dashboard."""
    asked = names_in(" ".join(query for _, query in QUERIES)) | names_in(json.dumps(DASHBOARD["templating"]))
    asked |= names_in(" ".join(rule["expr"] for rule in ALERTS))
    assert asked <= known
    assert {name for name in known if name.startswith("sere_layer_")} <= asked


def test_the_dashboard_can_be_imported() -> None:
    """It names its data source by a variable alone, and each panel has a number and a place of its own."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    places = [
        (panel["gridPos"]["x"] + column, panel["gridPos"]["y"] + row)
        for panel in panels
        for column in range(panel["gridPos"]["w"])
        for row in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len({*places})
    assert max(x for x, _ in places) < 24
    assert {part["datasource"]["uid"] for panel in panels for part in (panel, *panel["targets"])} == {
        "${datasource}"
    }
    assert "id" not in DASHBOARD


@needs("promtool")
@pytest.mark.parametrize(
    "check",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_accepts_the_files(check: tuple[str, ...]) -> None:
    """Syntax, when each alert fires, and the example of a configuration."""
    run = subprocess.run(["promtool", *check], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_is_tested() -> None:
    """Once at least, that it fires."""
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    firing = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert firing == {rule["alert"] for rule in ALERTS}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Prometheus that has scraped our own metrics port for some seconds, with the alerts."""
    exporter, begun = free_port(), time.monotonic()
    close = serve_metrics(lambda: report(int(20 * (time.monotonic() - begun))), HOST, exporter)
    try:
        # The metrics port has the usual path; the route of the server has its own.
        with prometheus(
            tmp_path_factory.mktemp("prometheus"), f"{HOST}:{exporter}", 6, metrics_path="/metrics"
        ) as running:
            yield running
    finally:
        close()


@needs("prometheus")
@pytest.mark.parametrize(
    ("title", "query"), QUERIES, ids=[f"{i} {title}" for i, (title, _) in enumerate(QUERIES)]
)
def test_each_query_gives_numbers(port: int, title: str, query: str) -> None:
    """A real Prometheus answers each query of the dashboard with values, and shares are the exporter's."""
    found = values(port, query)
    assert found
    assert all(value >= 0 for value in found)
    shares = {
        "Experts still read": 0.5,
        "Slots re-routed": 0.5,
        "Slots re-routed, by layer": 0.5,
        "Rows per step": 8,
    }
    if title in shares:
        assert found == pytest.approx([shares[title]] * len(found))


@needs("prometheus")
def test_a_healthy_engine_raises_no_alert(port: int) -> None:
    """The rules run, each in good health, and none of them fires."""
    found = rules(port)
    assert {rule["name"] for rule in found} == {rule["alert"] for rule in ALERTS}
    assert {rule["state"] for rule in found} == {"inactive"}
    assert {rule["health"] for rule in found} == {"ok"}
