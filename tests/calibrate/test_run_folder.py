"""What a run keeps in a folder, what is deleted of it and when, and what a damaged one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sere.calibrate.layerwise.work_folder import WorkFolder
from sere.calibrate.pass_folder import PassFolder, resumable_pass
from sere.calibrate.run_folder import deleted_when_saved
from sere.errors import InputError

RUN = {"way": "the whole model", "chosen": {"seed": 0}}
# As a process leaves them that is killed while it writes.
LEFT = ".calibration.json.0123abcd.tmp.json", ".sums-96-0.safetensors.0123abcd.tmp.safetensors"


def calibrated(folder: Path, done: int = 8) -> None:
    """A run of two processes that keep sums; it is interrupted unless all tokens are done."""
    with resumable_pass(folder, RUN) as work:
        assert work is not None
        for rank in (0, 1):
            (work.path / f"sums-{done}-{rank}.safetensors").touch()
        work.finish(done, 8)
        if done < 8:
            raise KeyboardInterrupt


def not_saved(folder: Path) -> None:
    """A run whose tables cannot be saved."""
    with deleted_when_saved(folder):
        calibrated(folder)
        raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_complete_run_stays_until_its_tables_are_saved(tmp_path: Path) -> None:
    """Then it is gone, with the folders that were made for it."""
    with deleted_when_saved(tmp_path / "new" / "work"):
        calibrated(tmp_path / "new" / "work")
        assert names(tmp_path / "new" / "work") == [
            "calibration.json", "sums-8-0.safetensors", "sums-8-1.safetensors",
        ]  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_a_failure_after_the_calibration_says_what_is_kept(tmp_path: Path) -> None:
    """The next run in the folder finds it complete; after it, the folder can go."""
    with pytest.raises(KeyboardInterrupt) as caught:
        not_saved(tmp_path / "work")
    assert caught.value.__notes__ == [
        f"what is done is kept in {tmp_path / 'work'}; the same command continues with it"
    ]
    assert PassFolder(tmp_path / "work", RUN).done == 8
    with deleted_when_saved(tmp_path / "work"):
        calibrated(tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_what_another_run_keeps_is_not_deleted(tmp_path: Path) -> None:
    """A calibration that needs no folder leaves one alone in which the tables of another are still due."""
    calibrated(tmp_path / "work")
    with deleted_when_saved(tmp_path / "work"):
        pass
    assert PassFolder(tmp_path / "work", RUN).done == 8


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    """Also where the run was interrupted in between."""
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt):
        calibrated(tmp_path / "mine", 4)
    with deleted_when_saved(tmp_path / "mine"):
        calibrated(tmp_path / "mine")
    assert names(tmp_path / "mine") == []


@pytest.mark.parametrize("done", [0, 8], ids=["nothing is done", "complete"])
def test_files_of_others_stay(tmp_path: Path, done: int) -> None:
    """Somebody put them into the folder while the run was at work."""
    with deleted_when_saved(tmp_path / "work"), resumable_pass(tmp_path / "work", RUN) as work:
        assert work is not None
        (work.path / "thesis.tex").touch()
        (work.path / "layers").mkdir()
        if done:
            work.finish(done, 8)
    assert names(tmp_path / "work") == ["layers", "thesis.tex"]


@pytest.mark.parametrize("begun", [False, True], ids=["killed in the first write", "killed later"])
def test_half_written_files_are_cleaned_up(tmp_path: Path, begun: bool) -> None:
    """They do not count as files of others."""
    if begun:
        PassFolder(tmp_path, RUN)
    for name in LEFT:
        (tmp_path / name).touch()
    assert PassFolder(tmp_path, RUN).done == 0
    assert names(tmp_path) == ["calibration.json"]


@pytest.mark.parametrize(
    "changed",
    [
        {"run": None}, {"run": "whole"}, {"run": RUN | {"chosen": 3}},
        {"done": ...}, {"done": "8"}, {"total": None}, {"written": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_malformed_manifest_is_damaged(tmp_path: Path, changed: dict[str, Any]) -> None:
    """The text names the file and says what to do."""
    PassFolder(tmp_path, RUN)
    file = tmp_path / "calibration.json"
    found = json.loads(file.read_text(encoding="utf-8")) | changed
    file.write_text(
        json.dumps({name: value for name, value in found.items() if value is not ...}), encoding="utf-8"
    )
    with pytest.raises(InputError, match=rf"calibration\.json: is damaged; delete the folder {tmp_path} and"):
        PassFolder(tmp_path, RUN)


@pytest.mark.parametrize("states", [{}, {"file": "states-0001.bin", "dtype": "float33", "shapes": []}, 3])
def test_malformed_hidden_states_are_named(tmp_path: Path, states: object) -> None:
    """Those of a run layer by layer, too."""
    WorkFolder(tmp_path, RUN).record(next_layer=1, states=states)
    with pytest.raises(InputError, match=f"delete the folder {tmp_path} and start again"):
        WorkFolder(tmp_path, RUN).states()
