"""The quickstart on the bundled model, and what its server does over HTTP: several processes, real tokens."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bundled import model_path
from sere.defaults import TABLE
from sere.integrations.vllm.step_counts import SKIPPED
from sere.reroute import COUNTERS
from sere.table import SimilarityTable
from tests.support.patience import HANGS_S
from tests.support.vllm.quickstart import quickstart
from tests.support.vllm.server import Server, complete, free_port

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

OPTIONS = {
    "CALIBRATE": "--max-tokens 2048 --no-sensitivity",
    # One tier that surely re-routes: of the three usual ones, little is left on so few prompts.
    "TUNE": "--max-prompts 16 --batch-size 8 --max-new-tokens 16 --uniform --max-kl 0.02",
    "SERVE": "--enforce-eager --served-model-name tiny --max-model-len 256 --max-num-seqs 32",
}  # fmt: skip
PROMPTS = [f"add {i}{(7 * i) % 10} {i + 1}{(3 * i) % 10} = " for i in range(1, 9)]


@pytest.fixture(scope="module")
def ports() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ports: int) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("quickstart")
    model = folder / "abacus"
    shutil.copytree(model_path(), model)
    with quickstart(model, folder, ports, options=OPTIONS, seconds=HANGS_S) as running:
        yield running


def together(server: Server, options: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    with ThreadPoolExecutor(len(options)) as pool:
        return list(
            pool.map(lambda pair: complete(server, pair[0], **pair[1]), zip(PROMPTS, options, strict=True))
        )


def test_the_quickstart_shows_what_was_saved(server: Server) -> None:
    """It tunes the table that it has made, serves with it, and prints fewer experts after than before."""
    log = server.log.read_text()
    tier = SimilarityTable.load(server.log.parent / "abacus" / TABLE).tiers["balanced"]
    assert tier.evidence["by_batch_size"]
    assert "tier balanced" in log
    before, after = (
        [
            float(found)
            for found in re.findall(rf"^sere_layer_distinct_{when}_total\{{.*}} (.*)$", log, re.MULTILINE)
        ]
        for when in ("before", "after")
    )
    assert len(before) == 6
    assert all(less < more for less, more in zip(after, before, strict=True))


def test_served_requests_are_rerouted(server: Server) -> None:
    """Requests at once are answered, their steps run fewer experts, and the log says what is active."""
    answers = together(server, [{}] * 8)
    assert [status for status, _ in answers] == [200] * 8
    assert all(answer["usage"]["completion_tokens"] == 24 for _, answer in answers)
    status, text = server.get("/v1/sere/stats")
    stats = json.loads(text)
    assert status == 200
    assert stats["steps_rerouted"] > 0
    assert len(stats["layers"]) == 6
    assert all(layer["distinct_after"] < layer["distinct_before"] for layer in stats["layers"])
    assert "sere: re-routing active: 6 MoE layers (0 to 5)" in server.log.read_text()
    assert re.search(r"sere: \d+ steps re-routed, \d+ skipped; per layer and step", server.log.read_text())
    status, text = server.get("/v1/sere/experts")
    layers = json.loads(text)["layers"]
    assert (status, len(layers)) == (200, 6)
    for layer, one in zip(layers, stats["layers"], strict=True):
        assert sum(layer["chosen"]) == pytest.approx(one["steps"] * one["rows"] * 8)


def test_tiers_over_http(server: Server) -> None:
    """``vllm_xargs`` carries a request's tier; a bad one is refused alone, with 400."""
    tiers: list[Any] = ["off", 2, '{"select_top_k": 8}', "of", None, '{"select_top": 1}', 0, "off"]
    options = [{} if tier is None else {"vllm_xargs": {"sere": tier}} for tier in tiers]
    answers = together(server, options)
    assert [status for status, _ in answers] == [200, 200, 200, 400, 200, 400, 400, 200]
    assert 'sere: expected "off"' in answers[3][1]["error"]["message"]
    assert "a request cannot set 'select_top'" in answers[5][1]["error"]["message"]


def test_settings_over_http(server: Server) -> None:
    """One call changes settings; protected requests and a switched-off engine give the same text."""
    assert server.post("/v1/sere/settings", {"select_top_k": 8})[1]["select_top_k"] == 8
    full = [complete(server, prompt)[1]["choices"][0]["text"] for prompt in PROMPTS[:3]]
    assert server.post("/v1/sere/settings", {"select_top_k": 1, "threshold": 0.1})[0] == 200
    off = [complete(server, p, vllm_xargs={"sere": "off"})[1]["choices"][0]["text"] for p in PROMPTS[:3]]
    status, settings = server.post("/v1/sere/settings", {"enabled": False})
    assert (status, settings["enabled"], settings["threshold"]) == (200, False, 0.1)
    without = [complete(server, prompt)[1]["choices"][0]["text"] for prompt in PROMPTS[:3]]
    assert full == off == without
    assert server.post("/v1/sere/settings", {"enabled": True, "threshold": 0.0})[0] == 200


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"cap": True}, "'cap' cannot be changed while the engine runs"),
        ({"select_top_k": 0}, "select_top_k: expected an integer of at least 1, got 0"),
        ([1], "expected a JSON object of settings"),
    ],
)
def test_refused_settings_over_http(server: Server, body: Any, text: str) -> None:
    """A change that is refused comes back as 400 with its reason, and the server goes on."""
    status, answer = server.post("/v1/sere/settings", body)
    assert status == 400
    assert text in answer["error"]
    assert complete(server, PROMPTS[0])[0] == 200


def test_only_the_operator_changes_settings(server: Server) -> None:
    """Whoever may ask for completions changes nothing without the operator's key."""
    request = urllib.request.Request(
        f"{server.url}/v1/sere/settings", b"{}", {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=HANGS_S)
    assert server.post("/v1/sere/settings", {})[0] == 200


def test_metrics_over_http(server: Server, ports: int) -> None:
    """The route and the port of its own give the same Prometheus metrics."""
    status, route = server.get("/v1/sere/metrics")
    with urllib.request.urlopen(f"http://127.0.0.1:{ports}/metrics", timeout=HANGS_S) as answer:
        port = answer.read().decode()
    assert status == 200
    lines = [line for line in route.splitlines() if line.startswith(("sere_layer", "sere_steps_total"))]
    # Steps by kind, the counters of six layers, and M of each for seven sizes of a step.
    assert len(lines) == 1 + len(SKIPPED) + len(COUNTERS) * 6 + 7 * 6
    assert set(lines) <= set(port.splitlines())
