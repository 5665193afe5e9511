"""What must hold for an architecture: each check says in words what it saw.

`UnsupportedModel` is a refusal by name; any other error is a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import sere
from sere.calibrate import calibrate
from sere.errors import TableMismatch, UnsupportedModel
from sere.policies import Oea
from sere.structure import find_experts, identify
from sere.table import SimilarityTable
from tests.support.architectures.build import tiny
from tests.support.architectures.configs import E
from tests.support.calibration import char_tokenizer, load_whole
from tests.support.tiny import tiny_model

WORKS = "works"
REFUSED = "refused: "
METRICS = ["projection", "frobenius"]
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
OPTIONS: dict[str, Any] = {"metric": METRICS, "max_tokens": 150, "seq_len": 24, "progress": False}


def found(model: PreTrainedModel, folder: Path) -> str:
    """Every layer's experts are found, with E and K as the module is called."""
    layers = find_experts(model)
    calls: dict[int, list[int]] = {layer.index: [] for layer in layers}
    hooks = [
        layer.module.register_forward_pre_hook(
            lambda _, args, index=layer.index: calls[index].append(args[1].shape[1])
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(input_ids=_prompts(2))
    for hook in hooks:
        hook.remove()
    assert all(layer.num_experts == E and set(calls[layer.index]) == {layer.top_k} for layer in layers)
    loops = {len(columns) for columns in calls.values()}
    return WORKS if loops == {1} else f"{WORKS}; some layers run {max(loops)} times in a pass"


def in_memory(model: PreTrainedModel, folder: Path) -> str:
    """Both metrics have the right shape, and numbers wherever a token reached an expert."""
    tables = calibrate(model, char_tokenizer(), TEXTS, **OPTIONS)
    for metric, table in tables.items():
        for layer in find_experts(model):
            similarity = table.layers[layer.index].similarity
            assert similarity.shape == (E, E)
            assert not bool(similarity.isinf().any())
            # Of an expert that no token reached, a table of `projection` knows nothing.
            assert bool(similarity.isnan().sum() < (E * (E - 1) if metric == "projection" else 1))
    return WORKS


def layer_by_layer(model: PreTrainedModel, folder: Path) -> str:
    """Layer by layer, a saved checkpoint has the tables of the model in memory, without sensitivities."""
    path = folder / "checkpoint"
    model.save_pretrained(path)
    by_layers = calibrate(path, low_memory=True, texts=TEXTS, tokenizer=char_tokenizer(), **OPTIONS)
    whole = calibrate(load_whole(path), char_tokenizer(), TEXTS, sensitivity=False, **OPTIONS)
    for metric in METRICS:
        assert whole[metric].fingerprint == by_layers[metric].fingerprint
    return WORKS


def reroute(model: PreTrainedModel, folder: Path) -> str:
    """S = K changes nothing, S = 1 runs fewer experts in decode steps only, and the hooks go away."""
    K = find_experts(model)[0].top_k
    table = calibrate(model, char_tokenizer(), TEXTS, **OPTIONS)["projection"]
    # A model that generates nothing has no decode steps; its one pass is re-routed where this is asked for.
    decodes = hasattr(model, "generate")
    run = _decode if decodes else _classify
    options: dict[str, Any] = {} if decodes else {"phases": "all"}
    hooks = _hook_count(model)
    plain, logits = run(model)
    with sere.apply(model, table, select_top_k=K, **options) as handle:
        same, same_logits = run(model)
        stats = handle.stats()
    assert torch.equal(same, plain)
    assert torch.equal(same_logits, logits)
    assert all(s.steps > 0 and s.distinct_after == s.distinct_before for s in stats)
    with sere.apply(model, table, active_experts=0, use_scale=True, **options) as handle:
        _, fewer_logits = run(model)
        stats = handle.stats()
    if K > 1:
        assert not torch.equal(fewer_logits, logits)
        assert all(s.steps > 0 and s.distinct_after < s.distinct_before for s in stats)
    assert torch.equal(fewer_logits[0], logits[0]) or not decodes, "the first token comes from the prefill"
    assert _hook_count(model) == hooks
    again, again_logits = run(model)
    assert torch.equal(again, plain)
    assert torch.equal(again_logits, logits)
    if K == 1:
        return "nothing to re-route: K = 1"
    return WORKS if decodes else "no decode steps; works with phases='all'"


def rivals(model: PreTrainedModel, folder: Path) -> str:
    """The router's scores are found, which `oea`, `xshare` and others need."""
    K = find_experts(model)[0].top_k
    if not hasattr(model, "generate"):
        return "no decode steps"
    with sere.apply(model, policy=Oea(1)) as handle:
        _decode(model)
        stats = handle.stats()
    assert all(s.steps > 0 and (s.distinct_after < s.distinct_before or K == 1) for s in stats)
    return WORKS


def table(model: PreTrainedModel, folder: Path) -> str:
    """A saved table fits the model it was made of, and none that has other experts."""
    made = calibrate(model, metric="weights", progress=False)
    made.save(folder / "table.safetensors")
    loaded = SimilarityTable.load(folder / "table.safetensors")
    loaded.check(identify(model))
    assert loaded.fingerprint == made.fingerprint
    other = tiny_model("qwen3_moe", moe_intermediate_size=8)
    try:
        loaded.check(identify(other))
    except TableMismatch:
        return WORKS
    raise AssertionError("the table of another model was taken")


Check = Callable[[PreTrainedModel, Path], str]
CHECKS: tuple[Check, ...] = (found, in_memory, layer_by_layer, table, reroute, rivals)


def outcomes(folder: str, name: str, place: Path) -> dict[str, str]:
    """Run every check of an architecture and return what came of each, in words.

    One that finds no experts is not checked further.

    Args:
        folder: Its folder in ``transformers.models``.
        name: Its model type.
        place: An empty folder for checkpoints and tables.
    """
    result: dict[str, str] = {}
    for check in CHECKS:
        try:
            result[check.__name__] = check(tiny(folder, name), place)
        except UnsupportedModel as error:
            result[check.__name__] = f"{REFUSED}{error}"
            if check is found:
                break
    return result


def _prompts(rows: int, length: int = 5) -> Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(2))


def _decode(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Generate six tokens for six rows: the sequences, and the logits of each step."""
    options: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    result = model.generate(_prompts(6), output_logits=True, return_dict_in_generate=True, **options)
    return result.sequences, torch.stack(result.logits)


def _classify(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Run one forward pass: the class of each token, and the logits."""
    with torch.no_grad():
        logits = model(input_ids=_prompts(6)).logits
    return logits.argmax(dim=-1), logits


def _hook_count(model: PreTrainedModel) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
