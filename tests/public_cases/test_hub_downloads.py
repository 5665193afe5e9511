"""Models named as on the hub: what is fetched of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sere.cli import main
from tests.support.checkpoints import save_checkpoint
from tests.support.hub import Hub


def test_a_hub_model_with_copies_of_its_weights_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither consolidated.safetensors nor original/ comes along; the chat template does; it generates."""
    hub = Hub(tmp_path, monkeypatch)
    save_checkpoint(tmp_path).rename(hub.repository)
    for name in (
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "chat_template.jinja",
        "own.tiktoken",
    ):
        (hub.repository / name).parent.mkdir(exist_ok=True)
        (hub.repository / name).write_text("x")
    assert main(["doctor", "--no-measure", "--model", "mill/moe"]) == 0
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
    assert main(["generate", "mill/moe", "--prompt", "a", "--max-new-tokens", "2"]) == 0
    assert [name for name in hub.fetched if name.endswith((".safetensors", ".pth"))] == ["model.safetensors"]
    assert {"chat_template.jinja", "own.tiktoken"} <= set(hub.fetched)


@pytest.mark.parametrize("how", ["--whole", "--low-memory"])
def test_a_table_of_a_hub_model_carries_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Not the commit that the cache's folder is called by."""
    hub = Hub(tmp_path, monkeypatch)
    save_checkpoint(tmp_path).rename(hub.repository)
    out = tmp_path / "out.safetensors"
    assert main(["calibrate", "mill/moe", "--metric", "weights", "--out", str(out), how]) == 0
    capsys.readouterr()
    assert main(["table", "show", str(out), "--json"]) == 0
    assert '"model": "mill/moe"' in capsys.readouterr().out
