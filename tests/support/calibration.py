"""What the calibration tests share: a small tokenizer, tokens, and saved tiny checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sere.calibrate import collect, pass_folder
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.experts import check_weighted_sum
from sere.calibrate.in_memory import collect_in_memory
from sere.calibrate.layerwise.by_layers import collect_layerwise
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.calibrate.layerwise.work_folder import WorkFolder
from sere.calibrate.packing import Tokens
from sere.calibrate.pass_folder import PassFolder
from sere.similarity import METRICS
from sere.structure import ExpertsLayer, find_experts
from tests.support.tiny import tiny_model

# Each is computed in its own way; cka with one kernel is computed as cka.
ALL_METRICS = tuple(name for name in METRICS if not name.startswith("cka_"))
PAD, BOS, EOS = 0, 1, 2


def char_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token per printable character: 96 ids with pad 0, bos 1, eos 2."""
    vocab = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS} | {chr(32 + i): 3 + i for i in range(93)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def some_tokens(count: int = 16 * 5 + 7, seq_len: int = 16) -> Tokens:
    """Random ids; the count does not divide, so that a short last sequence is always among them."""
    generator = torch.Generator().manual_seed(3)
    return Tokens(torch.randint(3, 96, (count,), generator=generator), seq_len)


def config(*metrics: str, **options: Any) -> CalibrationConfig:
    """Return the config for `some_tokens`, without a bar."""
    values = {"max_tokens": 200, "seq_len": 16, "batch_size": 3, "progress": False} | options
    return CalibrationConfig(metric=metrics or ALL_METRICS, **values)


def save_tiny(folder: Path, architecture: str, **overrides: Any) -> Path:
    """Save a tiny model in several shards, as `save_pretrained` names them."""
    path = folder / architecture
    tiny_model(architecture, **overrides).save_pretrained(path, max_shard_size="40KB")
    return path


def load_whole(path: Path) -> Any:
    """Load a saved tiny model with Transformers' own loading, its weights at aligned addresses.

    Transformers leaves weights where the mapped file has them; on some processors a product rounds otherwise
    (seen: one unit in the last place) for weights that do not begin at a multiple of 64 bytes.
    """
    skeleton = Skeleton(path)
    model = type(skeleton.model).from_pretrained(path, dtype="auto")
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


def by_layers_of(path: Path, folder: Path, *metrics: str, in_memory: bool = False, **options: Any) -> Any:
    """Calibrate a saved tiny model layer by layer on `some_tokens`, with the work folder ``folder``."""
    work = WorkFolder(folder, {"run": 1})
    wanted = config(*metrics, **options)
    return collect_layerwise(
        Skeleton(path), some_tokens(), wanted, work, states_in_memory=in_memory
    ).similarities


def in_memory_of(path: Path, *metrics: str, **options: Any) -> Any:
    """Calibrate a saved tiny model in memory on `some_tokens`."""
    model = load_whole(path)
    return collect_in_memory(
        model, find_experts(model), some_tokens(), config(*metrics, **options)
    ).similarities


def worst(a: Any, b: Any) -> float:
    """The largest difference between two runs' similarities and scales.

    They must cover the same layers, and know the same similarities.
    """
    assert a.keys() == b.keys()
    assert all(a[name].keys() == b[name].keys() and a[name] for name in a)
    differences = []
    for name in a:
        for index in a[name]:
            left, right = a[name][index], b[name][index]
            assert torch.equal(left.similarity.isnan(), right.similarity.isnan())
            differences.append(float((left.similarity - right.similarity).nan_to_num(nan=0).abs().max()))
            assert (left.scale is None) == (right.scale is None)
            if left.scale is not None:
                differences.append(float((left.scale - right.scale).abs().max()))
    return max(differences)


def interrupt_at_layer(monkeypatch: pytest.MonkeyPatch, nth: int) -> list[int]:
    """Press Ctrl-C, once, while the nth layer is being calibrated; return a list of a 1 for each layer."""
    seen: list[int] = []
    check = check_weighted_sum

    def interrupt(*arguments: Any) -> None:
        seen.append(1)
        if len(seen) == nth:
            raise KeyboardInterrupt
        check(*arguments)

    monkeypatch.setattr(collect, "check_weighted_sum", interrupt)
    return seen


def interrupt_at_sums(monkeypatch: pytest.MonkeyPatch, nth: int, *, recorded: bool = True) -> list[int]:
    """Keep sums after every batch, and press Ctrl-C the nth time; return a list that gets the tokens done.

    Args:
        monkeypatch: Of the test.
        nth: 0 for no Ctrl-C.
        recorded: Whether the folder says by then that the sums are complete.
    """
    seen: list[int] = []
    finish = PassFolder.finish

    def stopping(work: PassFolder, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == nth and not recorded:
            raise KeyboardInterrupt
        finish(work, done, total)
        if len(seen) == nth:
            raise KeyboardInterrupt

    monkeypatch.setattr(pass_folder, "SECONDS", 0)
    monkeypatch.setattr(PassFolder, "finish", stopping)
    return seen


def first_experts(architecture: str, **overrides: Any) -> ExpertsLayer:
    """The first experts module of a tiny model."""
    return find_experts(tiny_model(architecture, **overrides))[0]


def routing(layer: ExpertsLayer, t: int, H: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states ``[t, H]``, distinct ids and gate weights ``[t, K]``."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(t, H, generator=generator)
    scores = torch.rand(t, layer.num_experts, generator=generator)
    weights, ids = scores.topk(layer.top_k, dim=1)
    return hidden, ids, weights / weights.sum(dim=1, keepdim=True)
