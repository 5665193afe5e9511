"""``sere bench serve`` and ``sere eval --engine vllm`` on small engines: what they count, not how fast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integrations.vllm.models import save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bench.serve import ServePlan, bench_serve, record_routing, replayed, untouched
from sere.bundled import model_path
from sere.errors import ConfigError, InputError
from sere.eval.questions import held_out
from sere.eval.run import Plan
from sere.eval.settings import parse_settings
from sere.eval.vllm import evaluate_engine
from sere.integrations.vllm import configure, read_stats
from sere.integrations.vllm.local import session_of
from sere.table import SimilarityTable
from tests.integrations.vllm.engines import engine, generate, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bench(tmp_path: Path, compiled: bool) -> None:
    """Off, S = 1 and its oracle side by side, untouched only in eager; experts and bytes fall at S = 1."""
    options = {"enforce_eager": not compiled, "async_scheduling": False}
    with engine(save_model(tmp_path), {"select_top_k": 1}, **options) as llm:
        plan = ServePlan(settings=parse_settings(["sere:S=1"]), batch_sizes=[6], prompt=8, steps=6, rounds=1)
        subject = {"bytes_per_expert": 100, "moe_layers": 2}
        records = {r["setting"]: r for r in bench_serve(llm, subject, plan)}
        assert list(records) == ["off", "sere:S=1", "oracle sere:S=1"] + ["untouched"] * (not compiled)
        off, on = records["off"], records["sere:S=1"]
        assert off["experts"]["after"] == off["experts"]["before"]
        assert on["experts"]["after"] < on["experts"]["before"]
        assert on["expert_bytes_per_step"] == round(on["experts"]["after"] * 200)
        assert on["own_cost"]["us_per_layer"] > 0
        assert records["oracle sere:S=1"]["experts"] is None
        assert off["config"]["mode"] == ("compiled" if compiled else "eager")
        assert off["provenance"]["machine"]["threads"] == torch.get_num_threads()

        configure(llm, select_top_k=1, enabled=True)
        expected = generate(llm, prompts())
        tape = record_routing(llm, lambda: generate(llm, prompts()))
        read_stats(llm, reset=True)
        for _ in range(2):
            with replayed(llm, tape):
                assert generate(llm, prompts()) == expected
        assert read_stats(llm).layers[0].steps == 0


def test_untouched(tmp_path: Path) -> None:
    """Without the wrappers the engine does not re-route; afterwards it does as before."""
    with engine(save_model(tmp_path), {"select_top_k": 1}, async_scheduling=False) as llm:
        expected = generate(llm, prompts())
        with untouched(llm):
            assert generate(llm, prompts()) != expected
        assert generate(llm, prompts()) == expected
        assert session_of(llm).layers[0].plan is not None


def test_evaluate(tmp_path: Path) -> None:
    """At S = K every mark is that of off; at S = 1 experts fall; settings of another engine are refused."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sere.bench.subject import random_table

    path, table = model_path(), tmp_path / "table.safetensors"
    random_table(AutoModelForCausalLM.from_pretrained(path)).save(table)
    plan = Plan(
        settings=parse_settings(["sere:S=8", "sere:S=1"]),
        batch_sizes=[8],
        questions=held_out(6, tasks=["addition", "reversal"]),
        max_new_tokens=100,
    )
    with engine(path, {"select_top_k": 1, "table": str(table)}) as llm:
        tokenizer = AutoTokenizer.from_pretrained(path)
        record = evaluate_engine(llm, tokenizer, plan, table=SimilarityTable.load(table))
        rivals = Plan(settings=parse_settings(["topk:S=1"]), batch_sizes=[8], questions=plan.questions)
        with pytest.raises(ConfigError, match="on vLLM expected off or sere with S and rho"):
            evaluate_engine(llm, tokenizer, rivals, table=SimilarityTable.load(table))
    off, same, one = record["cases"]
    assert off["tasks"]["all"]["marks"] == same["tasks"]["all"]["marks"]
    assert off["tasks"]["all"]["right"] > 6
    assert one["experts"]["after"] < one["experts"]["before"]
    assert off["experts"]["after"] == off["experts"]["before"]
    assert 4 < off["mean_rows"] <= 8
    assert record["model"]["experts_implementation"] == "vllm"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"settings": parse_settings(["topk:S=1"])}, "expected sere settings with S and rho"),
        ({"settings": parse_settings(["sere:S=1,min_active=4"])}, "expected sere settings with S and rho"),
        ({"batch_sizes": []}, "expected batch sizes of at least 1"),
        ({"steps": 1}, "at least 2 steps"),
    ],
)
def test_refused_plans(options: dict[str, object], text: str) -> None:
    """What cannot be timed in one run of one engine is refused before it starts."""
    with pytest.raises(InputError, match=text):
        ServePlan(**{"settings": parse_settings(["sere:S=1"]), "batch_sizes": [8]} | options)  # type: ignore[arg-type]
