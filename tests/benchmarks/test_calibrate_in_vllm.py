"""The benchmark of calibration in vLLM: what it says on the way, when it ends, and one run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibrate_in_vllm import EnoughError, Watch, main, partial_of


def test_a_minute_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """A line says how far it is; after the time that was given, no further batch is read."""
    times = iter([0.0, 30.0, 61.0, 90.0, 130.0])
    kept: list[tuple[int, float]] = []
    watch = Watch(100, lambda *seen: kept.append(seen), clock=lambda: next(times))
    with watch("calibrating", 1000) as read:
        for _ in range(3):
            read(100)
        with pytest.raises(EnoughError):
            read(100)
    assert kept == [(200, 61.0), (400, 130.0)]
    assert (watch.tokens, watch.seconds) == (400, 130.0)
    assert capsys.readouterr().err.splitlines()[0] == "200 of 1000 tokens in 61 s, about 244 s left"


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seconds", [[], ["--seconds", "0"]], ids=["complete", "stopped"])
def test_one_run(
    seconds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiny sizes: one record is printed and appended, of all tokens or of the first batch."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    out = tmp_path / "results" / "out.jsonl"
    main(["--preset", "tiny", "--layers", "1", "--tokens", "2048", "--out", str(out), *seconds])
    (line,) = out.read_text().splitlines()
    record = json.loads(line)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record
    assert record["tokens_read"] == (1024 if seconds else 2048)
    assert record["complete"] == (not seconds) == bool(record["config"]["kernels"])
    assert record["seconds_per_layer"] == record["seconds"] > 0
    assert record["peak_bytes"] > 2**20
    assert not partial_of(out).exists()
