"""What must hold for an architecture: each check returns a short word of what it saw, or raises.

`UnsupportedModel` is a refusal by name; anything else is a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import sere
from sere.calibrate import calibrate, calibrate_checkpoint
from sere.errors import TableMismatch
from sere.structure import find_experts, identify
from sere.table import SimilarityTable
from tests.architectures.build import tiny
from tests.architectures.configs import E
from tests.calibrate.helpers import char_tokenizer, load_whole

METRICS = ["projection", "frobenius"]
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
OPTIONS: dict[str, Any] = {"metric": METRICS, "max_tokens": 150, "seq_len": 24, "progress": False}


def found(name: str, folder: Path) -> str:
    """Every layer's experts are found, with E and K as the module is called."""
    model = tiny(name)
    layers = find_experts(model)
    columns: dict[int, set[int]] = {layer.index: set() for layer in layers}
    for layer in layers:
        assert layer.E == E
        layer.module.register_forward_pre_hook(
            lambda _, args, index=layer.index: columns[index].add(int(args[1].shape[1]))
        )
    with torch.no_grad():
        model(input_ids=_prompts(2))
    assert columns == {layer.index: {layer.K} for layer in layers}
    return f"{len(layers)} layers"


def in_memory(name: str, folder: Path) -> str:
    """Both metrics are finite and of the right shape, and the model is left as it was."""
    model = tiny(name)
    tables = calibrate(model, char_tokenizer(), TEXTS, **OPTIONS)
    for table in tables.values():
        for layer in find_experts(model):
            similarity = table.layers[layer.index].similarity
            assert similarity.shape == (E, E)
            assert bool(similarity.isfinite().all())
    return "works"


def layer_by_layer(name: str, folder: Path) -> str:
    """From a saved checkpoint, layer by layer, the tables are those of the model in memory."""
    path = folder / "checkpoint"
    tiny(name).save_pretrained(path)
    by_layers = calibrate_checkpoint(path, TEXTS, tokenizer=char_tokenizer(), **OPTIONS)
    whole = calibrate(load_whole(path), char_tokenizer(), TEXTS, **OPTIONS)
    for metric in METRICS:
        assert whole[metric].fingerprint == by_layers[metric].fingerprint
    return "works"


def reroute(name: str, folder: Path) -> str:
    """S = K changes nothing, S = 1 runs fewer experts in decode steps only, and the hooks go away."""
    model = tiny(name)
    K = find_experts(model)[0].K
    table = calibrate(model, char_tokenizer(), TEXTS, **OPTIONS)["projection"]
    hooks = _hook_count(model)
    plain, logits = _decode(model)
    with sere.apply(model, table, select_top_k=K) as handle:
        same, same_logits = _decode(model)
        stats = handle.stats()
    assert torch.equal(same, plain)
    assert torch.equal(same_logits, logits)
    assert all(s.steps > 0 and s.distinct_after == s.distinct_before for s in stats)
    if K == 1:
        return "K = 1: nothing to re-route"
    with sere.apply(model, table, select_top_k=1) as handle:
        _, fewer_logits = _decode(model)
        stats = handle.stats()
    assert torch.equal(fewer_logits[0], logits[0]), "the first token comes from the prefill"
    assert not torch.equal(fewer_logits[1:], logits[1:])
    assert all(s.steps > 0 and s.distinct_after < s.distinct_before for s in stats)
    assert _hook_count(model) == hooks
    again, again_logits = _decode(model)
    assert torch.equal(again, plain)
    assert torch.equal(again_logits, logits)
    return "works"


def table(name: str, folder: Path) -> str:
    """A saved table fits the model it was made of, and none that has other experts."""
    model = tiny(name)
    made = calibrate(model, metric="weights", progress=False)
    made.save(folder / "table.safetensors")
    loaded = SimilarityTable.load(folder / "table.safetensors")
    loaded.check(identify(model))
    assert loaded.fingerprint == made.fingerprint
    other = tiny("qwen3_moe", moe_intermediate_size=8)
    try:
        loaded.check(identify(other))
    except TableMismatch:
        return "works"
    raise AssertionError("the table of another model was taken")


CHECKS: Mapping[str, Callable[[str, Path], str]] = {
    check.__name__: check for check in (found, in_memory, layer_by_layer, table, reroute)
}


def _prompts(rows: int, length: int = 5) -> Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(2))


def _decode(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Generate six tokens for six rows: the sequences, and the logits of each step."""
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    result = model.generate(_prompts(6), output_logits=True, return_dict_in_generate=True, **options)
    return result.sequences, torch.stack(result.logits)


def _hook_count(model: PreTrainedModel) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
