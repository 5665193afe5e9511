"""What people type, and when they stop it: one line that says what to do, and nothing half-made."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sere.calibrate.layerwise.work_folder import resumable
from sere.cli import main
from sere.table import SimilarityTable
from tests.support.calibration import interrupt_at_layer
from tests.support.checkpoints import save_checkpoint
from tests.support.patience import HANGS_S


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """``sere calibrate`` on a tiny checkpoint, without ``--metric``, which writes to ``new/table``."""
    (tmp_path / "texts.txt").write_text("some words that are texts\n" * 99, encoding="utf-8")
    model = save_checkpoint(tmp_path)
    out = str(tmp_path / "new" / "table")
    return ["calibrate", str(model), "--texts", str(tmp_path / "texts.txt"), "--out", out, "--seq-len", "16"]


def test_ctrl_c_right_after_the_command_was_given(tmp_path: Path) -> None:
    """While PyTorch is still being imported, Ctrl-C is one line and exit code 130, not a traceback."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    code = f"import sys; sys.path[:0] = {[str(tmp_path), *sys.path]!r}; sys.argv[:] = ['sere', 'doctor']; "
    code += "import sere.cli; sere.cli.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=HANGS_S) == ("", "\nsere: interrupted\n")
    assert process.returncode == 130


def test_metrics_that_do_not_exist_leave_no_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--metric a,b`` names what is unknown before anything is made."""
    assert main([*command, "--metric", "a,b"]) == 2
    assert "unknown metric 'a'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_number_written_as_a_power_of_ten(command: list[str], tmp_path: Path) -> None:
    """``--max-tokens 1e3`` is 1,000."""
    assert main([*command, "--max-tokens", "1e3"]) == 0
    assert SimilarityTable.load(tmp_path / "new" / "table").calibration_tokens == 1000


def test_the_same_command_goes_on_and_another_says_what_differs(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted layer by layer: the line says what is kept; other settings are named; the same goes on."""
    seen = interrupt_at_layer(monkeypatch, 2)
    command += ["--low-memory"]
    assert main(command) == 130
    assert "interrupted; 1 of 2 layers are done" in capsys.readouterr().err
    assert main([*command, "--batch-size", "4"]) == 2
    assert "with other settings: batch_size was 8, now 4; repeat the original" in capsys.readouterr().err
    assert main(command) == 0
    assert len(seen) == 3


def test_two_calibrations_in_one_work_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While one is at work, the other is refused, and leaves the first one's files alone."""
    work = tmp_path / "work"
    command += ["--low-memory", "--work-dir", str(work)]
    with resumable(work, {}, total=2):
        before = (work / "calibration.json").read_text()
        assert main(command) == 2
        assert "another calibration is running in it" in capsys.readouterr().err
        assert (work / "calibration.json").read_text() == before
    assert main(command) == 0


def test_a_damaged_work_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says to delete it."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "calibration.json").write_text("{")
    assert main([*command, "--low-memory", "--work-dir", str(work)]) == 2
    assert f"is damaged; delete the folder {work} and start again" in capsys.readouterr().err
