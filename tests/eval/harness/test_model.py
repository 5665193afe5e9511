"""``sere-hf`` within lm-eval: equal to ``hf`` when off, re-routed in decode steps, silent about nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: make test-vllm")

from lm_eval import simple_evaluate

from sere.errors import ConfigError, InputError
from sere.eval.harness.__main__ import main
from sere.eval.harness.model import NAME
from tests.support.documented import documented_line, with_values

pytestmark = [pytest.mark.lm_eval, pytest.mark.filterwarnings("default")]

CHOICES = "sere_sorting_choice"
GENERATED = "sere_reversal"
# On a CPU sere-hf takes it by itself; other implementations round otherwise.
EAGER = {"experts_implementation": "eager"}


@pytest.fixture
def evaluated(checkpoint: Path, manager: Any) -> Any:
    """Run lm-eval on the tiny model and return each question's responses, and what is said of the model."""

    def run(name: str, tasks: list[str], **arguments: Any) -> tuple[list[Any], dict[str, Any]]:
        results = simple_evaluate(
            model=name, model_args=EAGER | {"pretrained": str(checkpoint), **arguments}, tasks=tasks,
            batch_size=4, task_manager=manager, bootstrap_iters=0, device="cpu",
        )  # fmt: skip
        samples = [sample for task in tasks for sample in results["samples"][task]]
        found = [sample["resps"] for sample in sorted(samples, key=lambda one: one["prompt_hash"])]
        return found, results["config"].get("sere", {})

    return run


def nats(found: list[Any]) -> list[float]:
    """The log-likelihoods of all choices."""
    return [value for question in found for ((value, _),) in question]


def greedy(found: list[Any]) -> list[bool]:
    return [value for question in found for ((_, value),) in question]


def test_off_is_the_unmodified_model(evaluated: Any) -> None:
    """In prefill and generated, equal to lm-eval's own class; in decode steps, up to rounding."""
    tasks = [CHOICES, GENERATED]
    expected, _ = evaluated("hf", tasks)
    assert evaluated(NAME, tasks, sere="off")[0] == expected
    expected, _ = evaluated("hf", [CHOICES])
    found, said = evaluated(NAME, [CHOICES], sere="off", phases="decode")
    assert nats(found) == pytest.approx(nats(expected), abs=1e-3)
    assert greedy(found) == greedy(expected)
    assert said["requests"]["loglikelihood"]["experts"]["slots_rerouted"] == 0


def test_decode_steps_show_what_prefill_hides(evaluated: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With one expert left likelihoods change in decode steps; in prefill one warning says that none do."""
    setting = "topk:select_top_k=1"
    exact, _ = evaluated("hf", [CHOICES])
    changed, said = evaluated(NAME, [CHOICES], sere=setting, phases="decode")
    assert min(abs(a - b) for a, b in zip(nats(changed), nats(exact), strict=True)) > 1e-4
    assert said["setting"] == setting
    assert said["requests"]["loglikelihood"]["nothing_changed"] is None
    assert said["requests"]["loglikelihood"]["experts"]["slots_rerouted"] > 0
    caplog.clear()
    hidden, said = evaluated(NAME, [CHOICES], sere=setting)
    assert hidden == exact
    (line,) = [record.getMessage() for record in caplog.records if record.name == "sere"]
    assert line.startswith(
        f"sere: {setting}: nothing was re-routed: loglikelihood requests are scored in prefill"
    )
    assert line.endswith("phases decode)")
    assert said["requests"]["loglikelihood"]["nothing_changed"] in line


def test_settings_by_name_are_those_of_the_vllm_plug_in(evaluated: Any, similarities: Path) -> None:
    """A mapping with the table in it, or beside it; no setting at all means all defaults."""
    few = {"active_experts": 0, "select_top_k": 1}
    found, said = evaluated(NAME, [GENERATED], sere={**few, "table": str(similarities)})
    assert said["requests"]["generate_until"]["nothing_changed"] is None
    assert evaluated(NAME, [GENERATED], sere=few, table=str(similarities)) == (found, said)
    _, said = evaluated(NAME, [GENERATED], table=str(similarities))
    assert said["setting"] == "sere"


@pytest.fixture
def similarities(checkpoint: Path) -> Path:
    return checkpoint.parent / "table.safetensors"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sere": {"active_expert": 3}}, ConfigError, "active_experts"),
        ({"sere": "topq"}, ConfigError, "unknown policy 'topq'"),
        ({"sere": 3}, ConfigError, "expected settings by name"),
        ({"sere": "off", "phases": "all"}, ConfigError, "one of prefill, decode, got 'all'"),
        ({"sere": "sere"}, ConfigError, "needs a similarity table"),
        ({"sere": "off", "phases": "decode", "batch_size": "auto"}, InputError, "number of rows, got 'auto'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    checkpoint: Path, manager: Any, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Before anything is run, with what to give instead."""
    with pytest.raises(error, match=text):
        simple_evaluate(
            model=NAME, model_args={"pretrained": str(checkpoint), **arguments}, tasks=[CHOICES],
            task_manager=manager, bootstrap_iters=0,
        )  # fmt: skip


@pytest.mark.usefixtures("_without_lm_evals_tasks")
def test_lm_evals_own_command_line(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documented line, with other values: it knows the model, and its results say what re-routing did."""
    words, arguments = documented_line(NAME)
    assert words[:3] == ["python", "-m", "sere.eval.harness"]
    assert arguments == {
        "pretrained": "MODEL", "sere": {"active_experts": 24}, "table": "similarity.sere", "phases": "decode",
    }  # fmt: skip
    arguments |= {"pretrained": str(checkpoint), "sere": {"active_experts": 3}}
    arguments |= {"table": str(checkpoint.parent / "table.safetensors")}
    words = with_values(words[3:], model_args=json.dumps(arguments), tasks=CHOICES, batch_size="4")
    monkeypatch.setattr(
        sys, "argv", ["lm_eval", *words, "--include_path", str(folder), "--output_path", str(tmp_path)]
    )
    main()
    (written,) = tmp_path.rglob("results_*.json")
    said = json.loads(written.read_text())["config"]["sere"]
    assert (said["setting"], said["phases"]) == ("sere:active_experts=3", "decode")
    assert said["requests"]["loglikelihood"]["nothing_changed"] is None
