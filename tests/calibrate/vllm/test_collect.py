"""Gathering what workers measured, with workers that stand in for an engine's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from sere.calibrate.pass_folder import PassFolder
from sere.calibrate.vllm import collect, worker
from sere.calibrate.vllm.collect import collect_in_engine
from sere.errors import EngineError
from sere.integrations.vllm.calibration.request import ATTRIBUTE
from tests.support.calibration import config, interrupt_at_sums, some_tokens
from tests.support.tiny import tiny_model


class Stages:
    """An engine of two stages without layers; what the second one keeps is on a disk of its own or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, own_disk: bool) -> None:
        model_config = SimpleNamespace(hf_config=tiny_model("qwen3_moe").config)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model_config))
        self.workers = [
            SimpleNamespace(
                **{ATTRIBUTE: SimpleNamespace(error=None, rank=0, worker_rank=rank, rows=0, layers={})}
            )
            for rank in range(2)
        ]
        self.own_disk = own_disk
        self.saved: list[str] = []
        monkeypatch.setattr(collect, "_run", self._run)

    def _run(self, _: Any, batch: Tensor, first: int) -> None:
        del first
        for one in self.workers:
            getattr(one, ATTRIBUTE).rows += batch.numel()

    def collective_rpc(self, call: Callable[..., Any], args: tuple[Any, ...]) -> list[dict[str, Any]]:
        """Call a function in both workers."""
        if call is worker.finish:
            return [{"failure": "the test ends here"}]
        answers = [call(one, *args) for one in self.workers]
        if call is worker.save:
            self.saved += [answer["file"] for answer in answers]
            if self.own_disk:
                Path(answers[1]["file"]).unlink()
        return answers


def warnings_of(
    stages: Stages, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> list[str]:
    """Calibrate and keep sums after each batch; return what was warned of."""
    done = interrupt_at_sums(monkeypatch, 0)
    with pytest.raises(EngineError, match="the test ends here"):
        collect_in_engine(stages, some_tokens(), config("cosine"), PassFolder(folder, {}))
    assert len(done) > 1
    assert len(stages.saved) == 2 * len(done)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_file_that_is_on_another_machine_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However often sums are kept; the warning names the file, and what to do."""
    stages = Stages(monkeypatch, own_disk=True)
    (text,) = warnings_of(stages, tmp_path, monkeypatch, caplog)
    assert stages.saved[1] in text
    assert stages.saved[0] not in text
    assert "Give a folder that all machines share (--work-dir, work_dir)" in text


def test_a_folder_that_all_share_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on one machine."""
    assert warnings_of(Stages(monkeypatch, own_disk=False), tmp_path, monkeypatch, caplog) == []
