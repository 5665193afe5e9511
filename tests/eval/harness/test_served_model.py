"""``sere-vllm`` up to the start of its engine: what it hands on, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
pytest.importorskip("lm_eval", reason="needs lm-eval: make test-vllm")

from sere.engines.forced_tokens import PROCESSOR
from sere.errors import ConfigError, EngineFailure, InputError

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def make(path: Path, **arguments: Any) -> Any:
    """Make lm-eval's model; importing vLLM warns, which a test module must not."""
    from sere.eval.harness.served_model import ServedLM

    return ServedLM(str(path), **arguments)


class Started(list[tuple[Any, ...]]):
    """In place of an engine: keeps what it would be started with."""

    def __call__(self, *given: Any, **options: Any) -> None:
        """Start none."""
        self.append((*given, options))
        raise EngineFailure("no engine in this test")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What engines would be started with."""
    from sere.eval.harness import served_model

    made = Started()
    monkeypatch.setattr(served_model, "in_process_engine", made)
    return made


def test_the_engine_gets_lm_evals_arguments_and_settings(vllm_checkpoint: Path, started: Started) -> None:
    """With the options of ``sere lm-eval --engine vllm``; over several processes, too."""
    table = str(vllm_checkpoint.parent / "table.safetensors")
    with pytest.raises(EngineFailure, match="no engine in this test"):
        make(
            vllm_checkpoint, sere={"use_scale": False, "active_experts": 3, "table": table},
            phases="decode", batch_size="8", max_model_len=200, tensor_parallel_size=2,
        )  # fmt: skip
    ((path, sere, options),) = started
    assert path == str(vllm_checkpoint)
    assert sere == {"table": table, "select_top_k": 1, "log_seconds": 0, "use_scale": False}
    wanted = {
        "max_num_seqs": 8, "max_model_len": 200, "tensor_parallel_size": 2, "seed": 0, "enforce_eager": True,
        "enable_prefix_caching": False,
        "logits_processors": [PROCESSOR],
    }  # fmt: skip
    assert wanted.items() <= options.items()


def test_without_scoring_an_engine_is_as_served(vllm_checkpoint: Path, started: Started) -> None:
    """No processor of given tokens; an option of vLLM that was given wins over a default."""
    table = str(vllm_checkpoint.parent / "table.safetensors")
    with pytest.raises(EngineFailure):
        make(vllm_checkpoint, sere="off", table=table, enforce_eager=False)
    ((*_, options),) = started
    assert options["enforce_eager"] is False
    assert options["max_num_seqs"] == 1
    assert "logits_processors" not in options


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"max_num_seqs": 4}, ConfigError, "leave max_num_seqs out: use --batch_size"),
        ({"additional_config": {}}, ConfigError, 'give "sere" and "table"'),
        ({"phases": "decode", "speculative_config": {}}, ConfigError, "cannot force given tokens"),
        ({"phases": "all"}, ConfigError, "one of prefill, decode, got 'all'"),
        ({"batch_size": "auto"}, InputError, "number of rows, got 'auto'"),
        ({"sere": {"active_expert": 3}}, ConfigError, "active_experts"),
        ({"sere": "off"}, ConfigError, "an engine of vLLM needs a similarity table"),
    ],
)
def test_what_cannot_be_is_refused(
    vllm_checkpoint: Path, started: Started, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Before an engine starts, with what to give instead."""
    with pytest.raises(error, match=text):
        make(vllm_checkpoint, **arguments)
    assert started == []
