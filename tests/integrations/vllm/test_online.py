"""``sere bench serve --server``: what the load generator sends and counts, and one real server."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bench.load import Answer, Load, run_load
from sere.bench.online import Block, OnlinePlan, Variant, _record, bench_online
from sere.cli import main
from sere.errors import ConfigError, InputError, ServerError
from sere.eval.settings import parse_settings
from sere.integrations.vllm.server import _environment, serve
from tests.integrations.vllm.models import save_model, table_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

TOKENS = 4
REFUSED, SPOILED, SHORT, CUT = 1000, 1001, 1002, 1003
"""First tokens of prompts that the stub treats badly."""


class Stub(ThreadingHTTPServer):
    """A server that streams tokens and keeps what it was asked; also what stands for a `Server`.

    Attributes:
        asked: Paths and bodies, in the order of their coming.
        most: Most completions at once.
    """

    daemon_threads = True

    def __init__(self, hold: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, Any]] = []
        self.lock, self.now, self.most = threading.Lock(), 0, 0
        self.barrier = threading.Barrier(hold)
        self.enabled = True
        self.started: dict[str, Any] = {}

    def check(self) -> None:
        """Never end."""

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Answer as the routes of sere do."""
        self.asked.append((path, body))
        self.enabled = body.get("enabled", self.enabled)
        steps = 2 if self.enabled else 0
        layer = {
            "steps": steps,
            "rows": 8.0,
            "distinct_before": 6.0,
            "distinct_after": 3.0,
            "slots_moved": 0.5,
        }
        layers = [layer | {"critical": 1.0}, layer | {"critical": 1.0, "steps": 0}]
        return 200, {"layers": layers, "kernel": "Stub", "expert_bytes": 10}

    def completions(self) -> list[Any]:
        """Return the bodies of the completions."""
        return [body for path, body in self.asked if path == "/v1/completions"]


class Answering(BaseHTTPRequestHandler):
    """One connection of a stub."""

    server: Stub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer a completion, well or badly."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub, first = self.server, body["prompt"][0]
        with stub.lock:
            stub.asked.append((self.path, body))
            stub.now += 1
            stub.most = max(stub.most, stub.now)
        stub.barrier.wait(timeout=30)
        # Long enough that requests beyond a loop's concurrency would meet these.
        time.sleep(0.05)
        self.send_response(503 if first == REFUSED else 200)
        if first == CUT:
            self.send_header("Content-Length", "10000")
        self.end_headers()
        count = {REFUSED: 0, SPOILED: 1, SHORT: TOKENS - 1, CUT: 1}.get(first, body["max_tokens"])
        for token in range(count):
            self.event({"choices": [{"text": "", "token_ids": [token]}]})
        if first == SPOILED:
            self.event({"error": {"message": "spoiled"}})
        with stub.lock:
            stub.now -= 1

    def event(self, value: Any) -> None:
        """Send one event of the stream."""
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


@contextmanager
def stub(hold: int = 1) -> Iterator[Stub]:
    server = Stub(hold)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_arrivals() -> None:
    """An open loop's arrivals start at 0, never go back, keep their rate, and depend on the seed alone."""
    load = Load(request_rate=4.0)
    times = load.arrivals(4000, "a")
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] / 3999 == pytest.approx(1 / 4, rel=0.05)
    gaps = sorted(after - before for before, after in pairwise(times))
    # Exponential: the median is ln 2 of the mean.
    assert gaps[2000] == pytest.approx(0.693 / 4, rel=0.1)
    assert load.arrivals(4000, "a") == times
    assert load.arrivals(4000, "b") != times
    assert Load(concurrency=3).arrivals(5, "a") == [0] * 5


@pytest.mark.parametrize(
    "values", [{}, {"concurrency": 1, "request_rate": 1.0}, {"concurrency": 0}, {"request_rate": -1.0}]
)
def test_refused_loads(values: dict[str, Any]) -> None:
    """A load has one of the two, and it is positive."""
    with pytest.raises(InputError, match="either a concurrency of at least 1 or a request rate above 0"):
        Load(**values)


def test_closed_loop_keeps_its_concurrency() -> None:
    """A closed loop has as many requests under way as it says, and never more."""
    with stub(hold=3) as server:
        answers = run_load(server.url, "m", [[i] for i in range(9)], TOKENS, Load(concurrency=3), seed="0")
    assert server.most == 3
    assert [answer.error for answer in answers] == [None] * 9


def test_open_loop_waits_for_nobody() -> None:
    """An open loop sends a request though none before it was answered; all have the given body."""
    with stub(hold=6) as server:
        load = Load(request_rate=200.0)
        answers = run_load(server.url, "m", [[i] for i in range(6)], TOKENS, load, seed="0")
    assert [answer.tokens for answer in answers] == [TOKENS] * 6
    assert [answer.due for answer in answers] == load.arrivals(6, "0")
    assert all(answer.ttft_ms > 0 and answer.tpot_ms > 0 for answer in answers)
    assert sorted(body["prompt"] for body in server.completions()) == [[i] for i in range(6)]
    assert all(body["ignore_eos"] and body["max_tokens"] == TOKENS for body in server.completions())


def test_failures_are_counted() -> None:
    """Refused, spoiled, short and cut answers each say so; the request beside them is whole."""
    with stub() as server:
        prompts = [[REFUSED], [SPOILED], [SHORT], [CUT], [7]]
        answers = run_load(server.url, "m", prompts, TOKENS, Load(concurrency=1), seed="0")
    errors = [answer.error or "" for answer in answers]
    assert errors[0].startswith("HTTP 503")
    assert errors[1] == "in the stream: {'message': 'spoiled'}"
    assert errors[2] == f"expected {TOKENS} tokens, got {TOKENS - 1}"
    assert errors[3].startswith("ClientPayloadError")
    assert (answers[4].error, answers[4].tokens) == (None, TOKENS)


def test_nobody_listens() -> None:
    """Without a server each request fails; nothing is raised."""
    with stub() as server:
        url = server.url
    answers = run_load(url, "m", [[1], [2]], TOKENS, Load(concurrency=2), seed="0")
    assert all("ClientConnector" in (answer.error or "") for answer in answers)


def online_records(*texts: str, **values: Any) -> tuple[list[Stub], Stub, list[dict[str, Any]]]:
    """Run the benchmark with stubs and return those started for settings, the untouched one, the records."""
    plan = OnlinePlan(
        settings=parse_settings(texts or ["sere:S=1"]), prompt=3, steps=TOKENS - 1, **({"rounds": 2} | values)
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
        records = list(bench_online(start, other, {"vocab_size": 900}, plan))  # type: ignore[arg-type]
    return servers, other, records


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait until the workers of another server idle: there are none."""
    monkeypatch.setattr("sere.bench.online._SETTLE_S", 0)


@pytest.mark.usefixtures("hasty")
def test_variants_of_a_round_get_the_same_requests() -> None:
    """Off, the setting and the untouched server take turns with the same prompts, other ones each round."""
    (server,), other, records = online_records(loads=[Load(request_rate=500.0)], requests=4)
    assert [record["setting"] for record in records] == ["off", "sere:S=1", "untouched"]

    blocks: list[tuple[str, list[Any]]] = []
    for path, body in server.asked:
        if path == "/v1/sere/settings":
            blocks.append((json.dumps(body), []))
        elif path == "/v1/completions":
            blocks[-1][1].append(tuple(body["prompt"]))
    changes = [json.loads(change) for change, _ in blocks]
    on = {"enabled": True, "threshold": 0.0, "select_top_k": 1}
    # First a block that counts, untimed; then the setting and off, whose turns change.
    assert changes[0]["select_top_k"] > 10**5
    assert changes[1:] == [on, on, {"enabled": False}, on, {"enabled": False}]
    sent = [sorted(prompts) for _, prompts in blocks]
    assert sent[0] == sent[1] != sent[2] == sent[3] != sent[4] == sent[5]
    theirs = [tuple(body["prompt"]) for body in other.completions()]
    assert [sorted(theirs[i : i + 4]) for i in (0, 4, 8)] == [sent[0], sent[2], sent[4]]
    assert all(path == "/v1/completions" for path, _ in other.asked)

    off, on_record, untouched = records
    assert [record["failed"] for record in records] == [0, 0, 0]
    assert (off["requests"], off["request_rate"], off["concurrency"]) == (8, 500.0, None)
    # Layers without a step do not count.
    assert on_record["experts"] == {"rows": 8, "before": 6, "after": 3, "moved": 0.5, "critical": 1}
    assert on_record["expert_bytes_per_step"] == 3 * 10 * 2
    assert untouched["experts"] is untouched["expert_bytes_per_step"] is None
    assert off["ratio_off_to_this"] == {"p20": 1, "p50": 1, "p80": 1}


@pytest.mark.usefixtures("hasty")
def test_settings_of_a_start_have_a_server_and_an_off_of_their_own() -> None:
    """A floor's server comes after the first has ended; the untouched server takes turns with both."""
    servers, other, records = online_records(
        "sere:S=2", "sere:S=2,min_active=8", loads=[Load(concurrency=2)], requests=2, rounds=1
    )
    floored = {"min_active": 8}
    assert [(record["setting"], record["config"]["start"]) for record in records] == [
        ("off", {}), ("sere:S=2", {}), ("untouched", {}),
        ("off", floored), ("sere:S=2,min_active=8", floored), ("untouched", floored),
    ]  # fmt: skip
    sent = [[tuple(body["prompt"]) for body in server.completions()] for server in servers]
    assert sorted(sent[0]) == sorted(sent[1])
    assert [len(prompts) for prompts in sent] == [8, 8]
    assert len(other.completions()) == 8
    # A server is asked for what can change while it runs alone.
    asked = {name for path, body in servers[1].asked if path.endswith("settings") for name in body}
    assert asked == {"enabled", "select_top_k", "threshold"}


def test_controls_need_an_engine_of_this_process() -> None:
    """No server can be told to run a control; the text says where one runs."""
    with pytest.raises(ConfigError, match=r"topk:S=2: .* in a server, .* without --compile and --server"):
        OnlinePlan(settings=parse_settings(["topk:S=2"]), loads=[Load(concurrency=1)])


def test_times_and_ratio_of_a_block() -> None:
    """Times count from the arrival, a token's from the first piece on; above 1 is faster than off."""
    quick = Answer(due=1.0, pieces=[(1.5, 1), (1.6, 1), (1.7, 1)])
    slow = Answer(due=1.0, pieces=[(1.5, 1), (1.9, 2), (2.1, 1)])
    assert quick.ttft_ms == pytest.approx(500)
    assert quick.tpot_ms == pytest.approx(100)
    assert slow.tpot_ms == pytest.approx(200)
    assert slow.gaps_ms == pytest.approx([400, 200])
    block = Block([quick, slow, Answer(error="no")], [])
    assert block.tpot_ms == pytest.approx(150)
    assert block.per_second(4.2) == pytest.approx(2)

    def variant(label: str, timed: Answer) -> Variant:
        return Variant(label, None, blocks=[Block([quick], []), Block([timed], [])])  # type: ignore[arg-type]

    load = Load(concurrency=1)
    plan = OnlinePlan(settings=parse_settings(["sere:S=1"]), loads=[load], rounds=1)
    subject = {"moe_layers": 1, "bytes_per_expert": 1}
    record = _record(subject, plan, load, variant("sere:S=1", quick), variant("off", slow), {"min_active": 8})
    assert record["config"]["start"] == {"min_active": 8}
    assert record["ratio_off_to_this"]["p50"] == pytest.approx(2)


def test_environment_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other plug-ins stay, sere is among them or not, and no key of the user's locks our requests out."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("VLLM_PLUGINS", "sere,other")
    with_sere, without = _environment({}), _environment(None)
    assert with_sere["VLLM_PLUGINS"] == "other,sere"
    assert "SERE_DISABLE" not in with_sere
    assert (without["VLLM_PLUGINS"], without["SERE_DISABLE"]) == ("other", "1")
    assert "VLLM_API_KEY" not in with_sere | without


@pytest.mark.usefixtures("hasty")
def test_failed_requests_stand_in_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A block goes on and says what failed; the command ends with 1 and leaves the log; else it stops."""
    monkeypatch.setattr("sere.bench.online.Random", lambda _seed: iter_random([SHORT, 1, 1, 1, 1, 1]))
    _, _, records = online_records(loads=[Load(concurrency=2)], requests=2, rounds=1)
    assert [record["failed"] for record in records] == [2, 2, 2]
    assert records[0]["errors"] == [f"expected {TOKENS} tokens, got {TOKENS - 1}"]

    def run(_args: Any, logs: Any) -> Iterator[dict[str, Any]]:
        logs.file("server").write_text("why")
        yield from records

    monkeypatch.setattr("sere.cli.bench_serve._online_records", run)
    out, log = tmp_path / "out.jsonl", tmp_path / "out.jsonl.server.log"
    command = ["bench", "serve", "--preset", "tiny", "--server", "--out", str(out)]
    assert main(command) == 1
    assert f"6 requests failed; the records say how; whole logs: {log}" in capsys.readouterr().err
    assert log.read_text() == "why"
    for record in records:
        record["failed"] = 0
    assert main(command) == 0
    assert not log.exists()
    monkeypatch.setattr("sere.bench.online.Random", lambda _seed: iter_random([REFUSED] * 6))
    with pytest.raises(ServerError, match="off, 2 at once: none of 2 requests was answered; the first: HTTP"):
        online_records(loads=[Load(concurrency=2)], requests=2, rounds=1)


def iter_random(values: list[int]) -> Any:
    """Return what draws given tokens."""
    left = iter(values)

    class Given:
        def randrange(self, _bound: int) -> int:
            return next(left)

    return Given()


def test_flags_of_the_server_need_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A request rate without ``--server`` is wrong use."""
    assert main(["bench", "serve", "--preset", "tiny", "--request-rate", "1"]) == 2
    assert "--request-rate, --requests and --untouched belong to --server" in capsys.readouterr().err


@pytest.mark.usefixtures("hasty")
def test_real_server(tmp_path: Path) -> None:
    """With real servers off and S = 1 lose nothing, and experts fall at S = 1, with a floor to the floor."""
    out = tmp_path / "out.jsonl"
    command = ["bench", "serve", "--preset", "tiny", "--server", "--batch-size", "6", "--request-rate", "50"]
    options = ["--requests", "6", "--rounds", "1", "--steps", "8", "--setting", "sere:S=1", "--out", str(out)]
    others = [
        "--setting",
        "sere:S=1,min_active=10",
        "--dtype",
        "float32",
        "--engine-option",
        "max_num_seqs=8",
    ]
    assert main([*command, *options, *others]) == 0
    assert list(tmp_path.iterdir()) == [out]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    records, floored = records[:4], records[4:]
    assert [record["setting"] for record in floored] == ["off", "sere:S=1,min_active=10"] * 2
    assert all(record["config"]["start"] == {"min_active": 10} for record in floored)
    assert 9.5 < floored[1]["experts"]["after"] < floored[0]["experts"]["after"]
    assert [(record["concurrency"], record["request_rate"]) for record in records] == [
        (6, None), (6, None), (None, 50.0), (None, 50.0)
    ]  # fmt: skip
    for off, on in (records[:2], records[2:]):
        assert (off["setting"], on["setting"]) == ("off", "sere:S=1")
        assert off["failed"] == on["failed"] == 0
        assert off["experts"]["after"] == off["experts"]["before"]
        assert on["experts"]["after"] < on["experts"]["before"]
        assert 0 < on["expert_bytes_per_step"] < off["expert_bytes_per_step"]
        assert on["requests"] == 6
        assert on["ttft_ms"]["p50"] > 0
    subject = records[0]["subject"]
    # Gate, up and down of 64 x 32 in four bytes.
    assert subject["bytes_per_expert"] == 3 * 64 * 32 * 4
    assert records[0]["config"]["engine_options"] == {"max_num_seqs": 8}
    assert (subject["moe_layers"], subject["E"], subject["K"]) == (2, 16, 4)
    assert subject["expert_kernel"] == "CPUUnquantizedExperts"


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """Mark the environment of all processes that a test starts."""
    name = f"SERE_TEST_{uuid4().hex}"
    monkeypatch.setenv(name, "1")
    return name


def marked(name: str) -> list[psutil.Process]:
    """Return the living processes that were started with a mark, this one excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and name in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_server_that_cannot_start(tmp_path: Path, mark: str) -> None:
    """A start that is refused is one error with the end of the log, and no process is left."""
    path = save_model(tmp_path)
    settings = {"table": str(tmp_path / "missing.safetensors"), "select_top_k": 1}
    with (
        pytest.raises(ServerError, match=r"(?s)exit code 1; the end of its log:.*missing.safetensors"),
        serve(path, settings, tmp_path / "log", "--skip-tokenizer-init", "--enforce-eager"),
    ):
        pass
    assert marked(mark) == []


def test_log_of_a_server_that_cannot_start_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mark: str
) -> None:
    """What vLLM does not know ends the server; its log lies beside the records, and the error says so."""
    out = tmp_path / "results" / "out.jsonl"
    command = ["bench", "serve", "--preset", "tiny", "--server", "--engine-option", "no-such=1"]
    assert main([*command, "--out", str(out)]) == 2
    log = out.with_name("out.jsonl.server.log")
    assert f"whole logs: {log}" in capsys.readouterr().err
    assert "--no-such" in log.read_text()
    assert list(out.parent.iterdir()) == [log]
    assert marked(mark) == []


def test_server_that_dies(tmp_path: Path, mark: str) -> None:
    """A server whose first process is killed is named as ended, and its other processes end with it."""
    path = save_model(tmp_path)
    settings = {"table": str(table_of(path)), "select_top_k": 1, "log_seconds": 0}
    arguments = ("--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "64", "--max-num-seqs", "4")
    with serve(path, settings, tmp_path / "log", *arguments) as server:
        assert len(marked(mark)) > 1
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="ended by itself with exit code -9; the end of its log"):
            server.wait(60)
    psutil.wait_procs(marked(mark), timeout=10)
    assert marked(mark) == []
