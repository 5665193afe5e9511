"""``sere doctor MODEL``: what is said of a model that nobody has prepared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.calibrate import float32_products, memory
from sere.cli import main
from sere.step_time import Ceilings, known_ceilings
from tests.support.commands import run_json
from tests.support.damage import change_json
from tests.support.gpus import pretend_gpus
from tests.support.tiny import tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


ALIEN = {
    "architectures": ["AlienMoeForCausalLM"], "model_type": "alien_moe", "num_hidden_layers": 4,
    "num_experts": 64, "num_experts_per_tok": 8,
}  # fmt: skip


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    tiny_model("qwen3_moe").config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def alien(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(ALIEN))
    return tmp_path


def details(value: dict[str, Any], part: str) -> dict[str, tuple[str, str]]:
    found = value["findings"]
    return {one["name"]: (one["state"], one["detail"]) for one in found if one["part"] == part}


def test_a_config_alone_says_what_to_expect(capsys: pytest.CaptureFixture[str], config_only: Path) -> None:
    """Engines, the ways to calibrate with the command to run, and steps of 1 to 128 rows by bytes."""
    value = run_json(capsys, "doctor", config_only, "--no-measure")
    assert value["passed"]
    assert details(value, "engines")["Transformers"][0] == "ok"
    ways = details(value, "calibrating")
    assert ways["whole"][0] == ways["layer by layer"][0] == "ok"
    assert ways["command"] == ("ok", f"sere calibrate {config_only}")
    assert "time" not in ways
    expected = value["expected"]
    assert (expected["routing"], expected["ceilings"]) == ("chance", None)
    assert [step["rows"] for step in expected["steps"]] == [1, 8, 16, 32, 64, 128]
    assert expected["steps"][1]["fewer_bytes"] > 1
    assert expected["steps"][1]["ratio"] is None
    assert "In " in expected["accuracy"]


def test_this_machine_is_measured_for_times(
    capsys: pytest.CaptureFixture[str], config_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the model's dtype; a note says so, and the table has times and their ratio."""
    asked = []

    def measure(device: str, dtype: object) -> Ceilings:
        asked.append((device, str(dtype)))
        return Ceilings(1e9, 1e9, device=device, dtype="float32", threads=2)

    monkeypatch.setattr("sere.outlook.measure_here", measure)
    assert main(["doctor", str(config_only)]) == 0
    out, err = capsys.readouterr()
    assert [dtype for _, dtype in asked] == ["torch.float32"]
    assert "measuring how fast this machine reads and computes" in err
    assert "re-routed, ms" in out
    assert "Measured here: 1 GB/s, 1 GFLOP/s" in out
    assert "at least 6 s for 51,200 tokens" in out
    assert known_ceilings("cpu", "float32") == Ceilings(1e9, 1e9, dtype="float32", threads=2)
    value = run_json(capsys, "doctor", config_only)
    eight = value["expected"]["steps"][1]
    assert eight["ratio"] == pytest.approx(eight["seconds_before"] / eight["seconds_after"])


def test_calibration_takes_the_time_of_float32_where_the_cpu_emulates_the_models_dtype(
    capsys: pytest.CaptureFixture[str], config_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passes multiply in float32; decode steps and texts that it writes have the model's own rate."""
    change_json(config_only / "config.json", dtype="bfloat16")
    rates = {torch.bfloat16: 1e8, torch.float32: 1e9}

    def measure(device: str, dtype: torch.dtype) -> Ceilings:
        return Ceilings(1e9, rates[dtype], device=device, dtype=str(dtype).removeprefix("torch."), threads=2)

    monkeypatch.setattr("sere.outlook.measure_here", measure)
    written = []
    for emulates, expected in ((True, "6 s"), (False, "61 s")):
        monkeypatch.setattr(float32_products, "emulates_bfloat16", lambda found=emulates: found)
        value = run_json(capsys, "doctor", config_only)
        passes, writing = details(value, "calibrating")["time"][1].split(", and ")
        assert f"at least {expected} for 51,200 tokens" in passes
        written.append(writing)
        assert value["expected"]["ceilings"]["dtype"] == "bfloat16"
    assert written[0] == written[1]
    assert re.match(r"[1-9]\d+ s more if the model writes its own texts", written[0])


def test_a_model_that_only_vllm_knows_is_not_broken(
    capsys: pytest.CaptureFixture[str], alien: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its experts are compared by chance; why Transformers cannot is said. Else it is broken, as before."""
    monkeypatch.setattr("sere.outlook.model.ask_vllm", lambda _: (True, "has it"))
    monkeypatch.setattr("sere.outlook.calibration.installed_version", lambda _: "0.32.0")
    value = run_json(capsys, "doctor", alien)
    assert value["passed"]
    assert details(value, "model")[str(alien)][1].startswith("4 MoE layers, E=64, K=8, as config.json says")
    engines = details(value, "engines")
    assert (engines["Transformers"][0], engines["vLLM"]) == ("missing", ("ok", "has it"))
    assert "does not know the model type 'alien_moe'" in engines["Transformers"][1]
    assert details(value, "calibrating")["command"][1] == f"sere calibrate {alien} --engine vllm"
    assert value["expected"]["steps"][1]["fewer_bytes"] is None
    monkeypatch.setattr("sere.outlook.model.ask_vllm", lambda _: (False, "has it not"))
    assert main(["doctor", str(alien)]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_too_little_memory_for_the_whole_model(
    capsys: pytest.CaptureFixture[str], config_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the command reads it layer by layer; with none at all, no command is named."""
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 2**30)
    index = {"metadata": {"total_size": 2 * 2**30}, "weight_map": {"a": "model-1.safetensors"}}
    (config_only / "model.safetensors.index.json").write_text(json.dumps(index))
    ways = details(run_json(capsys, "doctor", config_only, "--no-measure"), "calibrating")
    assert ways["whole"] == ("missing", "needs about 3.0 GiB: does not fit")
    assert ways["command"][1] == f"sere calibrate {config_only} --low-memory --texts FILE"
    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    ways = details(run_json(capsys, "doctor", config_only, "--no-measure"), "calibrating")
    assert ways["command"][0] == "missing"


def test_a_gpu_is_named_by_the_command_if_the_model_fits_it(
    capsys: pytest.CaptureFixture[str], config_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and time are those of what the command uses; the CPU is measured if that is the CPU."""
    rates = {"cuda": 1e9, "cpu": 5e8}
    asked = []

    def measure(device: str, _: object) -> Ceilings:
        asked.append(device)
        return Ceilings(1e9, rates[device], device=device, dtype="float32")

    monkeypatch.setattr("sere.cli.doctor.pick_device", lambda _: "cuda")
    monkeypatch.setattr("sere.outlook.measure_here", measure)
    pretend_gpus(monkeypatch, 80 * 2**30)
    ways = details(run_json(capsys, "doctor", config_only), "calibrating")
    assert asked == ["cuda"]
    assert ways["whole"][1].endswith(" on one GPU: fits")
    assert ways["command"] == ("ok", f"sere calibrate {config_only} --device cuda")
    assert ways["time"][1].startswith("estimate: at least 6 s on one GPU for 51,200 tokens")
    pretend_gpus(monkeypatch, 1)
    value = run_json(capsys, "doctor", config_only)
    ways = details(value, "calibrating")
    assert asked == ["cuda", "cuda", "cpu"]
    assert ways["whole"][1].endswith(" on the CPU: fits")
    assert ways["command"] == ("ok", f"sere calibrate {config_only}")
    assert ways["time"][1].startswith("estimate: at least 12 s on the CPU for 51,200 tokens")
    assert value["expected"]["ceilings"]["device"] == "cuda"


def test_gpus_share_a_model_in_vllm(
    capsys: pytest.CaptureFixture[str], alien: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says among how many, if one does not hold it."""
    monkeypatch.setattr("sere.outlook.model.ask_vllm", lambda _: (True, "has it"))
    monkeypatch.setattr("sere.outlook.calibration.installed_version", lambda _: "0.32.0")
    monkeypatch.setattr("sere.outlook.calibration.engine_device", lambda: "cuda")
    monkeypatch.setattr("sere.cli.doctor.pick_device", lambda _: "cuda")
    index = {"metadata": {"total_size": 14 * 2**30}, "weight_map": {"a": "model-1.safetensors"}}
    (alien / "model.safetensors.index.json").write_text(json.dumps(index))
    pretend_gpus(monkeypatch, 12 * 2**30, 12 * 2**30)
    ways = details(run_json(capsys, "doctor", alien), "calibrating")
    assert ways["vllm"] == ("ok", "needs about 24.0 GiB on 2 GPUs: fits")
    options = "--engine vllm --engine-option tensor_parallel_size=2"
    assert ways["command"] == ("ok", f"sere calibrate {alien} {options}")


def test_a_table_says_what_its_model_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled model's, whose sample of routing has more regular choices than chance."""
    value = run_json(capsys, "doctor", "bundled", "--no-measure")
    expected = value["expected"]
    sampled = "table" if details(value, "table") else "chance"
    assert expected["routing"] == sampled
    assert "fewer_bytes" in expected["steps"][0]


def test_one_model_is_named(capsys: pytest.CaptureFixture[str], config_only: Path) -> None:
    """Either way of naming it; two different ones are refused."""
    assert main(["doctor", "--model", str(config_only), "--no-measure"]) == 0
    assert "Estimate of decode steps" in capsys.readouterr().out
    assert main(["doctor", str(config_only), "--model", "bundled"]) == 2
    assert "expected one model" in capsys.readouterr().err
