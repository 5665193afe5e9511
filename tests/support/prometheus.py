"""A real Prometheus that scrapes sere as ``examples/monitoring`` says, and what is asked of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from sere.engines.patience import Patience
from sere.engines.server import free_port
from tests.support.patience import HANGS_S
from tests.support.vllm.metrics import HOST

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]

# The moment of the last scrape that was answered.
LAST = "max(max_over_time(timestamp(sere_enabled)[1m:100ms]))"


def needs(program: str) -> pytest.MarkDecorator:
    """Skip where Debian's package ``prometheus`` is missing."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program} (apt: prometheus)")


@contextmanager
def prometheus(
    folder: Path, target: str, scrapes: int, *, every: str = "500ms", **changes: Any
) -> Iterator[int]:
    """Run Prometheus with the example's configuration and its alerts; yields its port.

    Args:
        folder: Where its configuration and data lie.
        target: The host and port that it scrapes.
        scrapes: How many scrapes to wait for, at least.
        every: From one scrape to the next; one that takes longer has failed.
        **changes: Of the configuration's only job, such as ``metrics_path`` and ``authorization``.
    """
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    config["rule_files"] = [str(FOLDER / "alerts.yml")]
    config["scrape_configs"][0] |= changes | {"static_configs": [{"targets": [target]}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}", "--log.level=error",
    ]  # fmt: skip
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(port, f"count_over_time(sere_enabled[1m]) >= {scrapes}", log)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=HANGS_S)


def wait_for(port: int, text: str, log: Path | None = None) -> None:
    """Wait until a query has a result."""
    patience = Patience(HANGS_S)
    while patience.lasts():
        with suppress(OSError, AssertionError):
            if query(port, text):
                return
        time.sleep(0.2)
    pytest.fail(f"{text} had no result; Prometheus says: {'' if log is None else log.read_text()}")


def query(port: int, text: str, **moment: Any) -> list[Any]:
    """Return what Prometheus answers to a query at this moment, or at the ``time`` given."""
    found = _get(port, f"query?{urllib.parse.urlencode({'query': text, **moment})}")
    return list(found["result"])


def values(port: int, text: str) -> list[float]:
    """Return the values of a query, layer by layer; a dashboard's variables stand for everything.

    They are those of the last scrape that was answered: after one that was not, Prometheus has none.
    """
    filled = text.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")
    ((_, moment),) = (one["value"] for one in query(port, LAST))
    found = sorted(query(port, filled, time=moment), key=lambda one: int(one["metric"].get("layer", 0)))
    return [float(one["value"][1]) for one in found]


def rules(port: int) -> list[Mapping[str, Any]]:
    """Return the alerts with their states."""
    return list(_get(port, "rules")["groups"][0]["rules"])


def check_alerts(port: int) -> None:
    """Check that all alerts were evaluated and none fires or waits.

    One scrape without an answer makes that of unreadable statistics wait whether there are more.
    """
    found = rules(port)
    assert {alert["name"] for alert in found} == {rule["alert"] for rule in ALERTS}
    assert {alert["health"] for alert in found} == {"ok"}
    states = {(alert["name"], alert["state"]) for alert in found if alert["state"] != "inactive"}
    assert states <= {("SereStatisticsUnreadable", "pending")}


def _get(port: int, path: str) -> Mapping[str, Any]:
    with urllib.request.urlopen(f"http://{HOST}:{port}/api/v1/{path}", timeout=HANGS_S) as answer:
        found = json.load(answer)
    assert found["status"] == "success"
    return dict(found["data"])
