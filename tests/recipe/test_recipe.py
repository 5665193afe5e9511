"""The recipe's parts against their plain definitions, and all of it in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("recipe", reason="the recipe is part of a checkout, not of the wheel")

import torch

from recipe import data, models, native, tokenizer
from recipe.card import write_card, write_results
from recipe.experts import grouped_experts
from recipe.optimizer import orthogonalize
from recipe.settings import SMOKE, Settings
from sere.eval.tasks import TASK_NAMES, english, questions

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("task", [*TASK_NAMES, "english"])
def test_tokenizer_gives_back_every_text(task: str) -> None:
    """Every character of every task and passage has a token of its own."""
    characters = tokenizer.build()
    if task == "english":
        texts = english(split="test", count=50)
    else:
        texts = [made.prompt + made.solution for made in questions(task, split="test", count=50)]
    encoded = [characters(text)["input_ids"] for text in texts]
    assert [len(ids) for ids in encoded] == [len(text) for text in texts]
    assert characters.unk_token_id not in {token for ids in encoded for token in ids}
    assert [characters.decode(ids) for ids in encoded] == texts


def test_special_tokens_are_distinct() -> None:
    """Padding, end and unknown are three tokens, and the end is one token of a text."""
    characters = tokenizer.build()
    assert len({characters.pad_token_id, characters.eos_token_id, characters.unk_token_id}) == 3
    assert characters("<|end|>")["input_ids"] == [characters.eos_token_id]


def test_the_compiled_library_leaves_subnormal_numbers_alone() -> None:
    """Loading code that is compiled for speed does not change how the process computes."""
    if native.load() is None:
        pytest.skip("no C++ compiler here")
    smallest = torch.tensor(2.0**-149)
    assert float(smallest * 1.0) == 2.0**-149
    assert float(torch.tensor(2.0**-126) * 0.5) == 2.0**-127


@pytest.mark.parametrize("compiled", [False, True])
def test_grouped_experts_equals_the_eager_forward(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and all gradients agree with those of Transformers, with experts nobody chose among them."""
    if not compiled:
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip("no C++ compiler here")
    model = models.moe_model(SMOKE, tokenizer.build())
    experts = model.model.layers[0].mlp.experts
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(37, SMOKE.hidden_size, generator=rng, requires_grad=True)
    ids = torch.stack([torch.randperm(SMOKE.experts - 1, generator=rng)[: SMOKE.top_k] for _ in range(37)])
    gates = torch.rand(37, SMOKE.top_k, generator=rng, requires_grad=True)
    inputs = (x, gates, experts.gate_up_proj, experts.down_proj)
    expected = experts(x, ids, gates)
    found = grouped_experts(x, ids, gates, experts.gate_up_proj, experts.down_proj)
    toward = torch.randn(found.shape, generator=rng)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad((found * toward).sum(), inputs),
        torch.autograd.grad((expected * toward).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param({"router_jitter": 1e-6}, id="gates of 1/K"),
        pytest.param(
            {"family": "qwen2_moe", "shared_width": 16, "router_std": 1e-3, "router_jitter": 1e-7},
            id="gates of 1/E and a shared expert",
        ),
    ],
)
def test_upcycling_without_noise_starts_at_the_dense_model(family: dict[str, Any]) -> None:
    """Slices over the gate, nearly equal gates: with no unit drawn again the logits are the dense model's."""
    still = Settings(**{**_as_dict(SMOKE), "fresh_rows": 0.0, "noise": 0.0, **family})
    characters = tokenizer.build()
    dense, moe = models.dense_model(still, characters), models.moe_model(still, characters)
    batches = next(data.steps(data.load_documents(still, characters), still))
    models.upcycle(dense, moe, still, batches)
    with torch.no_grad():
        expected = dense(input_ids=batches[0].inputs).logits
        found = moe(input_ids=batches[0].inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_loss_is_taken_on_solutions_only() -> None:
    """The targets of a question's row are its solution and the end token, nothing else."""
    characters = tokenizer.build()
    documents = data.load_documents(SMOKE, characters)
    batch = next(data.steps(documents, SMOKE))[0]
    for inputs, targets, real in zip(batch.inputs, batch.targets, batch.real, strict=True):
        text = characters.decode(inputs[real])
        answered = characters.decode(targets[targets >= 0])
        assert answered.endswith("<|end|>")
        if "\n" in text:
            prompt, _, rest = text.partition("\n")
            assert answered == f"{rest}<|end|>", prompt


def test_steps_depend_on_the_step_number_only() -> None:
    """A resumed run sees the batches that an uninterrupted one would."""
    documents = data.load_documents(SMOKE, tokenizer.build())
    stream = data.steps(documents, SMOKE)
    third = [next(stream) for _ in range(3)][2]
    resumed = next(data.steps(documents, SMOKE, 2))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(third, resumed, strict=True))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (3, 8, 16)], ids=["wide", "tall", "stack"])
def test_orthogonalize(shape: tuple[int, ...]) -> None:
    """All singular values end near 1, for wide and tall matrices and for stacks of them."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(drawn))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5


def test_settings_refuse_unknown_keys(tmp_path: Path) -> None:
    """A misspelled setting is not silently ignored; what was written reads back."""
    SMOKE.write(tmp_path / "good.json")
    assert Settings.read(tmp_path / "good.json") == SMOKE
    (tmp_path / "bad.json").write_text('{"expert": 8}')
    with pytest.raises(ValueError, match=r"unknown settings \['expert'\]"):
        Settings.read(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="qwen3_moe cannot have 16"):
        Settings(shared_width=16)


def test_the_second_test_bed_has_its_settings_in_the_recipe() -> None:
    """The settings of suanpan are a family of their own: a shared expert and no normalized gates."""
    settings = Settings.read(ROOT / "recipe" / "suanpan.json")
    config = models.moe_model(settings, tokenizer.build()).config
    assert (config.model_type, config.norm_topk_prob) == ("qwen2_moe", False)
    assert config.shared_expert_intermediate_size == settings.shared_width > 0


def test_the_recipe_in_smoke_mode(tmp_path: Path) -> None:
    """Training, resuming when all is done, export with its own checks, card and evaluation run through."""
    out, model = tmp_path / "run", tmp_path / "model"
    _run("recipe.train", "--out", str(out), "--smoke")
    _run("recipe.train", "--out", str(out), "--smoke", "--resume")
    _run("recipe.export", "--out", str(out), "--to", str(model))
    printed = _run("recipe.evaluate", str(model), "--count", "1", "--card")
    assert "| all | 10 |" in printed
    card = (model / "README.md").read_text()
    assert card.count("| all | 10 |") == 1
    phases = [json.loads(line)["phase"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert phases == ["dense", "moe", "exchange"]


def test_results_replace_earlier_ones(tmp_path: Path) -> None:
    """Evaluating twice leaves one table in the card."""
    log = [{"phase": phase, "step": 1, "tokens": 1, "seconds": 1, "loss": 1.0} for phase in ("dense", "moe")]
    write_card(tmp_path, SMOKE, log)
    write_results(tmp_path, "first")
    write_results(tmp_path, "second")
    text = (tmp_path / "README.md").read_text()
    assert "second" in text
    assert "first" not in text.partition("## Results")[2]


def _as_dict(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in Settings.__dataclass_fields__}


def _run(module: str, *arguments: str) -> str:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
