"""``sere bench serve --server``: which variants take turns, what a record says, and real servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bench.vllm.load_generator import Answer, Load
from sere.bench.vllm.over_http import LoadBlock, OverHttpPlan, ServerVariant, _record, bench_over_http
from sere.cli import main
from sere.cli.bench.serve_tables import render_online
from sere.engines.settings import LIVE
from sere.errors import ConfigError, ServerError
from sere.policies.spec import parse_specs
from tests.support.vllm.stub import REFUSED, SHORT, TOKENS, Stub, stub

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def online_records(*texts: str, **values: Any) -> tuple[list[Stub], Stub, list[dict[str, Any]]]:
    """Run the benchmark with stubs and return those started for settings, the vanilla one, the records."""
    plan = OverHttpPlan(
        settings=parse_specs(texts or ["sere:select_top_k=1"]),
        prompt=3,
        steps=TOKENS - 1,
        **({"rounds": 2} | values),
    )
    servers: list[Stub] = []

    @contextmanager
    def start(settings: Any) -> Iterator[Stub]:
        assert not any(server.started for server in servers)
        with stub() as server:
            servers.append(server)
            server.started = dict(settings)
            yield server
            server.started = {}

    with stub() as other:
        records = list(bench_over_http(start, other, {"vocab_size": 900}, plan))  # type: ignore[arg-type]
    return servers, other, records


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait until the workers of another server idle: there are none."""
    monkeypatch.setattr("sere.bench.vllm.over_http._SETTLE_S", 0)


@pytest.mark.usefixtures("hasty")
def test_variants_of_a_round_get_the_same_requests() -> None:
    """Off, the setting and the vanilla server take turns with the same prompts, other ones each round."""
    (server,), other, records = online_records(loads=[Load(request_rate=500.0)], requests=4)
    assert [record["setting"] for record in records] == ["off", "sere:select_top_k=1", "vanilla"]

    blocks: list[tuple[str, list[Any]]] = []
    for path, body in server.asked:
        if path == "/v1/sere/settings":
            blocks.append((json.dumps(body), []))
        elif path == "/v1/completions":
            blocks[-1][1].append(tuple(body["prompt"]))
    changes = [json.loads(change) for change, _ in blocks]
    on = {
        "enabled": True, "count_only": False, "select_top_k": 1, "threshold": 0.0,
        "active_experts": "auto", "min_gain": 0.0, "layers": {}, "tier": None,
    }  # fmt: skip
    # First a block that counts, untimed; then the setting and off, whose turns change.
    assert changes[0] == {"enabled": True, "count_only": True}
    assert changes[1:] == [on, on, {"enabled": False}, on, {"enabled": False}]
    sent = [sorted(prompts) for _, prompts in blocks]
    assert sent[0] == sent[1] != sent[2] == sent[3] != sent[4] == sent[5]
    theirs = [tuple(body["prompt"]) for body in other.completions()]
    assert [sorted(theirs[i : i + 4]) for i in (0, 4, 8)] == [sent[0], sent[2], sent[4]]
    assert all(path == "/v1/completions" for path, _ in other.asked)

    off, on_record, vanilla = records
    assert [record["failed"] for record in records] == [0, 0, 0]
    assert (off["requests"], off["request_rate"], off["concurrency"]) == (8, 500.0, None)
    # Layers without a step do not count.
    assert on_record["experts"] == {
        "rows": 8, "distinct_before": 6, "distinct_after": 3, "slots_rerouted": 0.5, "slots_computed": 0.75,
        "critical": 1,
    }  # fmt: skip
    assert on_record["expert_bytes_per_step"] == 3 * 10 * 2
    assert vanilla["experts"] is vanilla["expert_bytes_per_step"] is None
    assert off["speedup"] == {"p20": 1, "p50": 1, "p80": 1}


@pytest.mark.usefixtures("hasty")
def test_setting_that_re_routes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a setting re-routed nothing stands in its record and below the table; off needs no reason."""
    monkeypatch.setattr(Stub, "reason", "nothing was re-routed: because")
    _, _, records = online_records("sere:select_top_k=9", loads=[Load(concurrency=2)], requests=2, rounds=1)
    assert [record["nothing_changed"] for record in records] == [None, Stub.reason, None]
    text = render_online(records)
    assert text.endswith("\n2 at once, sere:select_top_k=9: nothing was re-routed: because")
    assert text.count("because") == 1


@pytest.mark.usefixtures("hasty")
def test_settings_of_a_start_have_a_server_and_an_off_of_their_own() -> None:
    """Other targets have a later server; the vanilla server takes turns with both."""
    servers, other, records = online_records(
        "sere:select_top_k=2",
        "sere:select_top_k=2,targets=active",
        loads=[Load(concurrency=2)],
        requests=2,
        rounds=1,
    )
    active = {"targets": "active"}
    assert [(record["setting"], record["config"]["start"]) for record in records] == [
        ("off", {}), ("sere:select_top_k=2", {}), ("vanilla", {}),
        ("off", active), ("sere:select_top_k=2,targets=active", active), ("vanilla", active),
    ]  # fmt: skip
    sent = [[tuple(body["prompt"]) for body in server.completions()] for server in servers]
    assert sorted(sent[0]) == sorted(sent[1])
    assert [len(prompts) for prompts in sent] == [8, 8]
    assert len(other.completions()) == 8
    # A server is asked for what can change while it runs alone.
    asked = {name for path, body in servers[1].asked if path.endswith("settings") for name in body}
    assert asked == {"enabled", "count_only", *LIVE}


def test_controls_need_an_engine_of_this_process() -> None:
    """No server can be told to run a control; the text says where one runs."""
    with pytest.raises(
        ConfigError, match=r"topk:select_top_k=2: .* in a server, .* without --compile and --server"
    ):
        OverHttpPlan(settings=parse_specs(["topk:select_top_k=2"]), loads=[Load(concurrency=1)])


def test_times_and_ratio_of_a_block() -> None:
    """Times count from the arrival, a token's from the first piece on; above 1 is faster than off."""
    quick = Answer(due=1.0, pieces=[(1.5, 1), (1.6, 1), (1.7, 1)])
    slow = Answer(due=1.0, pieces=[(1.5, 1), (1.9, 2), (2.1, 1)])
    assert quick.ttft_ms == pytest.approx(500)
    assert quick.tpot_ms == pytest.approx(100)
    assert slow.tpot_ms == pytest.approx(200)
    assert slow.gaps_ms == pytest.approx([400, 200])
    block = LoadBlock([quick, slow, Answer(error="no")], [], None)
    assert block.tpot_ms == pytest.approx(150)
    assert block.per_second(4.2) == pytest.approx(2)

    def variant(label: str, timed: Answer) -> ServerVariant:
        return ServerVariant(label, None, blocks=[LoadBlock([quick], [], None), LoadBlock([timed], [], None)])  # type: ignore[arg-type]

    load = Load(concurrency=1)
    plan = OverHttpPlan(settings=parse_specs(["sere:select_top_k=1"]), loads=[load], rounds=1)
    subject = {"moe_layers": 1, "bytes_per_expert": 1}
    record = _record(
        subject,
        plan,
        load,
        variant("sere:select_top_k=1", quick),
        variant("off", slow),
        {"active_experts": 8},
    )
    assert record["config"]["start"] == {"active_experts": 8}
    assert record["speedup"]["p50"] == pytest.approx(2)


@pytest.mark.usefixtures("hasty")
def test_failed_requests_stand_in_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A block goes on and says what failed; the command ends with 1 and leaves the log; else it stops."""
    monkeypatch.setattr("sere.bench.vllm.over_http.Random", lambda _seed: iter_random([SHORT, 1, 1, 1, 1, 1]))
    _, _, records = online_records(loads=[Load(concurrency=2)], requests=2, rounds=1)
    assert [record["failed"] for record in records] == [2, 2, 2]
    assert records[0]["errors"] == [f"expected {TOKENS} tokens, got {TOKENS - 1}"]

    def run(_args: Any, logs: Any, _failures: Any) -> Iterator[dict[str, Any]]:
        logs.file("server").write_text("why")
        yield from records

    monkeypatch.setattr("sere.cli.bench.serve.online_records", run)
    out, log = tmp_path / "out.jsonl", tmp_path / "out.jsonl.server.log"
    command = ["bench", "serve", "--preset", "tiny", "--server", "--out", str(out)]
    assert main(command) == 1
    assert f"6 requests failed; the records say how; complete logs: {log}" in capsys.readouterr().err
    assert log.read_text() == "why"
    for record in records:
        record["failed"] = 0
    assert main(command) == 0
    assert not log.exists()
    monkeypatch.setattr("sere.bench.vllm.over_http.Random", lambda _seed: iter_random([REFUSED] * 6))
    with pytest.raises(
        ServerError, match="off, 2 at once: none of 2 requests succeeded; the first error: HTTP"
    ):
        online_records(loads=[Load(concurrency=2)], requests=2, rounds=1)


def iter_random(values: list[int]) -> Any:
    """Return what draws given tokens."""
    left = iter(values)

    class Given:
        def randrange(self, _bound: int) -> int:
            return next(left)

    return Given()


@pytest.mark.usefixtures("hasty")
def test_a_page_of_the_servers_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """``--report`` shows what was timed over HTTP, by setting and load."""
    pytest.importorskip("plotly", reason="needs plotly: make test-vllm")
    _, _, records = online_records(loads=[Load(concurrency=2)], requests=2, rounds=1)
    subject = {"model": "tiny", "layers": 2, "weights": "random", "dtype": "bfloat16"}
    timed = [record | {"subject": record["subject"] | subject} for record in records]
    monkeypatch.setattr("sere.cli.bench.serve.online_records", lambda *_: iter(timed))
    page = tmp_path / "page.html"
    assert main(["bench", "serve", "--preset", "tiny", "--server", "--report", str(page)]) == 0
    assert f"wrote {page}" in capsys.readouterr().err
    shown = page.read_text(encoding="utf-8")
    assert "Speed: time per output token" in shown
    assert "times of vllm serve over HTTP" in shown
    assert all(f"<td>{record['setting']}</td>" in shown for record in records)


def test_flags_of_the_server_need_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A request rate without ``--server`` is wrong use."""
    assert main(["bench", "serve", "--preset", "tiny", "--request-rate", "1"]) == 2
    assert "--request-rate and --requests need --server" in capsys.readouterr().err


def test_server_without_routes_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A vLLM whose server takes no routes is refused in one line, before a model is made."""
    monkeypatch.setattr("sere.integrations.vllm.start.versions.engine_version", lambda: "0.25.1")
    assert main(["bench", "serve", "--preset", "tiny", "--server"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "vLLM 0.25.1: its server takes no routes from plug-ins" in line
    assert "expected 0.26 or later, or no --server" in line


@pytest.mark.usefixtures("hasty")
def test_real_server(tmp_path: Path) -> None:
    """With real servers nothing is lost, and experts fall to the rows' heaviest at M = 0, and else to M.

    How many requests a step holds is up to the machine, unless they come one at a time: what depends on it
    is only asked of steps of one row.
    """
    out = tmp_path / "out.jsonl"
    command = ["bench", "serve", "--preset", "tiny", "--server", "--batch-size", "1", "6"]
    options = ["--request-rate", "50", "--requests", "6", "--rounds", "1", "--steps", "8", "--out", str(out)]
    labels = ["off", "sere:active_experts=0", "sere:active_experts=3"]
    settings = ["--setting", labels[1], "--setting", labels[2]]
    assert (
        main([*command, *options, *settings, "--dtype", "float32", "--engine-option", "max_num_seqs=8"]) == 0
    )
    assert list(tmp_path.iterdir()) == [out]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    loads = [(1, None), (6, None), (None, 50.0)]
    assert [(record["concurrency"], record["request_rate"], record["setting"]) for record in records] == [
        (*load, label) for load in loads for label in labels
    ]
    for record in records:
        assert record["config"]["start"] == {}
        assert record["failed"] == 0
        assert record["requests"] == 6
        assert record["ttft_ms"]["p50"] > 0
        experts = record["experts"]
        if record["setting"] == "off":
            assert experts["distinct_after"] == experts["distinct_before"]
        else:
            assert experts["distinct_after"] < experts["distinct_before"]
    # One row chooses K = 4 experts; it keeps one at M = 0, and three at M = 3.
    alone = [
        (record["experts"]["distinct_before"], record["experts"]["distinct_after"]) for record in records[:3]
    ]
    assert alone == [(4, 4), (4, 1), (4, 3)]
    off, on = (record["expert_bytes_per_step"] for record in records[:2])
    assert 0 < on == off / 4
    subject = records[0]["subject"]
    # Gate, up and down of 64 x 32 in four bytes.
    assert subject["bytes_per_expert"] == 3 * 64 * 32 * 4
    assert records[0]["config"]["engine_options"] == {"max_num_seqs": 8}
    assert (subject["moe_layers"], subject["num_experts"], subject["top_k"]) == (2, 16, 4)
    assert subject["expert_kernel"] == "CPUUnquantizedExperts"
