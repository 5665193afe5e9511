"""``sere doctor``: what is there, what is missing, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sere.calibrate import float32_products
from sere.cli import doctor_installed, main
from sere.provenance import cuda_driver
from sere.reroute.backends.registry import BackendRecord, select
from sere.reroute.batch import USUAL_DTYPES, StepDtypes
from sere.table import SimilarityTable, Tier
from sere.versions import TESTED
from tests.support.checkpoints import save_checkpoint
from tests.support.commands import run_json
from tests.support.damage import change_json
from tests.support.packages import pretend_packages


def test_doctor_finds_everything_in_order(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, similarities: Path
) -> None:
    """Model and table that fit give code 0; versions, backends and extras are all there."""
    value = run_json(capsys, "doctor", "--no-measure", "--model", checkpoint, "--table", similarities)
    assert value["passed"]
    parts = {finding["part"] for finding in value["findings"]}
    assert {"versions", "machine", "backends", "extras", "model", "table"} <= parts
    states = {(finding["part"], finding["name"]): finding["state"] for finding in value["findings"]}
    assert states["backends", "reference"] == "ok"
    assert states["extras", "transformers"] == "ok"
    model, backend, weights = (finding for finding in value["findings"] if finding["part"] == "model")
    assert "K=4 (select_top_k < 4 re-routes)" in model["detail"]
    assert " for E=16, K=4 on c" in backend["detail"]
    assert weights["state"] == "ok"
    assert "; complete" in weights["detail"]
    details = {f["name"]: f["detail"] for f in value["findings"] if f["part"] == "table"}
    assert details["tiers"].startswith("none; M grows with the rows of a step")
    assert details["defaults"] == "no tier, S=1, rho=0, M=4, 13, 16, 16 at 1, 8, 32, 128 rows"


@pytest.mark.parametrize("emulates", [True, False])
def test_a_cpu_on_which_bfloat16_is_emulated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, emulates: bool
) -> None:
    """It is said, with what to do about it, and is no fault."""
    monkeypatch.setattr(float32_products, "emulates_bfloat16", lambda: emulates)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    value = run_json(capsys, "doctor", "--no-measure")
    found = [one["detail"] for one in value["findings"] if one["name"] == "bfloat16"]
    assert value["passed"]
    assert ["--dtype float32" in detail for detail in found] == [True] * emulates


def test_doctor_shows_tiers(capsys: pytest.CaptureFixture[str], similarities: Path, tmp_path: Path) -> None:
    """The table's tiers are named, and what the default one means for steps of a few sizes, by layer."""
    tiers = {"balanced": Tier("balanced", ((1, 5), (8, 9)), {1: 11}), "fast": Tier("fast", 6)}
    path = tmp_path / "tiers.sere"
    SimilarityTable.load(similarities).with_tiers(tiers).save(path)
    value = run_json(capsys, "doctor", "--table", path)
    details = {f["name"]: f["detail"] for f in value["findings"] if f["part"] == "table"}
    assert details["tiers"] == "balanced, fast"
    assert details["defaults"] == (
        "tier balanced, S=1, rho=0, M=5 to 11, 9 to 11, 9 to 11, 9 to 11 at 1, 8, 32, 128 rows"
    )


@pytest.mark.parametrize("package", ["transformers", "torch"])
def test_doctor_says_which_releases_are_tested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """The tested range stands beside the release; one outside is untested, which is not broken."""

    def line(release: str) -> dict[str, str]:
        monkeypatch.setattr("sere.provenance.versions", lambda: {package: release})
        value = run_json(capsys, "doctor")
        assert value["passed"]
        (found,) = (f for f in value["findings"] if (f["part"], f["name"]) == ("versions", package))
        return found

    oldest, newest = TESTED[package]
    within, beyond = line(f"{newest}.1"), line("99.0.0")
    assert (within["state"], within["detail"]) == ("ok", f"{newest}.1 (tested: {oldest} to {newest})")
    assert beyond["state"] == "untested"
    assert (
        f"99.0.0 is newer than the releases that sere is tested with ({oldest} to {newest}); check that"
        in beyond["detail"]
    )


def test_doctor_exits_1_where_table_and_model_do_not_fit(
    capsys: pytest.CaptureFixture[str], similarities: Path, tmp_path: Path
) -> None:
    """A table of another model, a missing table and a missing model are broken; the rest is still shown."""
    other = save_checkpoint(tmp_path, "olmoe")
    assert main(["doctor", "--no-measure", "--model", str(other), "--table", str(similarities)]) == 1
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert "backends" in out
    assert main(["doctor", "--table", "nowhere.safetensors"]) == 1
    assert main(["doctor", "--model", "./nowhere"]) == 1


def test_doctor_says_why_a_backend_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without numba the cpu backend's line gives the install line, and nothing is broken."""
    pretend_packages(monkeypatch, missing=("numba",))
    value = run_json(capsys, "doctor")
    (finding,) = (f for f in value["findings"] if (f["part"], f["name"]) == ("backends", "cpu"))
    assert finding["state"] == "missing"
    assert "pip install '.[cpu]'" in finding["detail"]


def test_doctor_tries_backends_with_what_engines_give(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundled: Path
) -> None:
    """Ids of either kind, float32 weights, and those of the model's dtype; bfloat16 if none is named."""
    tried: list[set[StepDtypes]] = []
    why_not = BackendRecord.why_not

    def watched(
        record: BackendRecord, *given: Any, dtypes: tuple[StepDtypes, ...] = USUAL_DTYPES, **more: Any
    ) -> str | None:
        tried.append(set(dtypes))
        return why_not(record, *given, dtypes=dtypes, **more)

    monkeypatch.setattr(BackendRecord, "why_not", watched)
    select.cache_clear()
    served = {StepDtypes(ids, torch.float32) for ids in (torch.int32, torch.int64)}
    run_json(capsys, "doctor")
    assert len(tried) >= 5
    assert [one for one in tried if one != served | {StepDtypes(torch.int64, torch.bfloat16)}] == []
    change_json(tiny_bundled / "config.json", dtype="float16")
    run_json(capsys, "doctor", "--no-measure", "--model", tiny_bundled)
    assert served | {StepDtypes(torch.int64, torch.float16)} in tried


@pytest.mark.parametrize(
    ("name", "value", "state", "words"),
    [
        ("SERE_DISABLE", None, "ok", "not set"),
        ("SERE_DISABLE", "false", "ok", "'false': not disabled"),
        ("SERE_DISABLE", "1", "missing", "'1': no engine re-routes"),
        ("VLLM_PLUGINS", None, "ok", "not set: all plug-ins, no routes"),
        ("VLLM_PLUGINS", "lora,sere", "ok", "'lora,sere': names sere"),
        ("VLLM_PLUGINS", "other", "missing", "'other': vLLM does not load the plug-in"),
        ("VLLM_PLUGINS", "", "missing", "'': vLLM does not load the plug-in"),
    ],
    ids=["unset", "no", "yes", "all", "named", "others", "none"],
)
def test_doctor_says_what_the_environment_does_to_the_plug_in(
    name: str, value: str | None, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps vLLM from loading the plug-in cannot be noticed inside an engine, so it is shown here."""
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)
    (found,) = (finding for finding in doctor_installed._plugin() if finding.name == name)
    assert (found.state, words in found.detail) == (state, True)


@pytest.mark.parametrize(
    ("version", "state", "words"),
    [
        (13010, "ok", "supports CUDA 13.1"),
        (13000, "ok", "supports CUDA 13.0"),
        (12080, "missing", "supports CUDA 12.8, but the backend cuda needs 13: Triton runs instead"),
    ],
)
def test_doctor_says_whether_the_driver_is_too_old(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, version: int, state: str, words: str
) -> None:
    """The driver's CUDA version is named, and what runs if the kernel cannot."""
    monkeypatch.setattr("torch._C._cuda_getDriverVersion", lambda: version, raising=False)
    value = run_json(capsys, "doctor")
    (found,) = (finding for finding in value["findings"] if finding["name"] == "driver")
    assert (found["state"], words in found["detail"]) == (state, True)
    monkeypatch.setattr("torch._C._cuda_getDriverVersion", lambda: 0, raising=False)
    assert cuda_driver() is None
