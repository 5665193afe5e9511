"""The routing sample: which tokens it has, and that every way of calibrating records the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

from sere.calibrate import calibrate
from sere.calibrate.collect import LayerCollector
from sere.calibrate.in_memory import collect_in_memory
from sere.calibrate.packing import Tokens, pack
from sere.calibrate.routing import choose_tokens
from sere.structure import find_experts
from sere.table import RoutingSample, SimilarityTable
from tests.support.calibration import (
    char_tokenizer,
    config,
    interrupt_at_layer,
    load_whole,
    routing,
    save_tiny,
    some_tokens,
)
from tests.support.tiny import ARCHITECTURES, Looping, tiny_model

TEXTS = [f"{i} small texts, each of them another: {i**7}" for i in range(20)]
OPTIONS: dict[str, Any] = {"max_tokens": 300, "seq_len": 64, "progress": False}


def stream(lengths: list[int], seq_len: int) -> Tokens:
    """Return tokens of documents of these lengths."""
    ends = torch.tensor(lengths).cumsum(0)
    return Tokens(torch.arange(int(ends[-1])), seq_len, ends - torch.tensor(lengths))


def recorded(table: SimilarityTable) -> RoutingSample:
    """Return a table's routing sample, which it must have."""
    assert table.routing is not None
    return table.routing


def equal(a: RoutingSample, b: RoutingSample) -> bool:
    """Whether two samples have the same tensors, bit for bit; NaN equals NaN."""
    left, right = a.to_tensors(), b.to_tensors()
    return list(left) == list(right) and all(
        torch.equal(t.float().nan_to_num(nan=-1), right[name].float().nan_to_num(nan=-1))
        for name, t in left.items()
    )


def test_documents_start_where_they_were_packed() -> None:
    """Those without tokens and those behind the last token that is used do not count."""
    tokens = pack(["abc", "", "defgh", "ij", "k"], char_tokenizer(), max_tokens=12, seq_len=4)
    assert tokens.documents.tolist() == [0, 4, 10]


def test_few_tokens_are_all_in_the_sample() -> None:
    """Texts are what documents have in one sequence."""
    chosen = choose_tokens(stream([3, 6, 2], 4), 0)
    assert chosen.positions.tolist() == list(range(11))
    assert chosen.starts.tolist() == [0, 3, 4, 8, 9, 11]


def test_short_texts_are_whole_and_fill_the_sample() -> None:
    """Of 1,000 texts of 10 tokens, 409 and a part of one more; the seed decides which."""
    tokens = stream([10] * 1000, 100)
    chosen = choose_tokens(tokens, 0)
    lengths = chosen.starts.diff()
    assert (int(lengths.sum()), len(lengths), sorted(lengths.tolist())[:2]) == (4096, 410, [6, 10])
    whole = chosen.positions[chosen.starts[:-1].long()][lengths == 10]
    assert set((whole % 10).tolist()) == {0}
    assert torch.equal(choose_tokens(tokens, None).positions, chosen.positions)
    assert not torch.equal(choose_tokens(tokens, 1).positions, chosen.positions)


def test_long_texts_are_cut_so_that_there_are_enough() -> None:
    """Of long texts the sample has the last tokens, for 128 texts at least; short ones stay whole."""
    chosen = choose_tokens(stream([20_000] * 10, 128), 0)
    assert chosen.starts.diff().tolist() == [32] * 128
    ends = chosen.positions[chosen.starts[1:].long() - 1] + 1
    cuts = {end % 128 for end in ends.tolist()} - {0}
    assert cuts <= {start % 128 for start in range(20_000, 200_001, 20_000)}
    mixed = choose_tokens(stream([5, 200] * 2000, 256), 0).starts.diff()
    assert len(mixed) >= 128
    assert int(mixed.sum()) <= 4096
    assert (mixed == 5).sum() > 40


def test_openings_are_not_in_the_sample() -> None:
    """Of what the model wrote, only its own words: what it decodes. A text may go on in the next sequence."""
    own = replace(stream([6, 3, 7], 8), written=torch.tensor([2, 8, 14]))
    chosen = choose_tokens(own, 0)
    assert chosen.positions.tolist() == [2, 3, 4, 5, 8, 14, 15]
    assert chosen.starts.tolist() == [0, 4, 5, 7]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [1, 10_000], ids=["token by token", "at once"])
def test_what_is_recorded_is_what_the_router_chose(architecture: str, chunk: int) -> None:
    """Ids and weights of the sampled tokens, and the mean energy of each expert on all its tokens."""
    model = tiny_model(architecture)
    layer = find_experts(model)[-1]
    seen: list[tuple[Tensor, ...]] = []
    handle = layer.module.register_forward_pre_hook(lambda _, args: seen.append(args[:3]))
    with torch.no_grad():
        for batch in some_tokens().batches(3):
            model(input_ids=batch)
    handle.remove()
    hidden, ids, weights = (torch.cat([p[i].flatten(0, -2) for p in seen]) for i in range(3))
    size = {"chunk_bytes": chunk * layer.num_experts * 32 * 4}
    sampled = torch.arange(1, some_tokens().num_tokens, 3)
    collector = LayerCollector(layer, config("frobenius", **size), sampled)
    for call in seen:
        collector.add(*call)
    found = collector.routing(some_tokens().num_tokens)
    assert found is not None
    inside = ids < layer.num_experts
    assert torch.equal(found.ids, torch.where(inside, ids, -1)[sampled].short())
    assert torch.equal(found.weights, weights[sampled].half())
    for e in range(layer.num_experts):
        mine = hidden[(ids == e).any(dim=1)]
        slots = (torch.full((len(mine), 2), e), torch.tensor([[1.0, 0.0]]).expand(len(mine), 2))
        with torch.no_grad():
            outputs = layer.module.forward(mine, *slots).reshape(mine.shape) if len(mine) else mine
        expected = outputs.square().sum(dim=1).mean()
        torch.testing.assert_close(found.energy[e], expected, rtol=1e-4, atol=0, equal_nan=True)


def test_the_table_has_the_sample_of_every_layer() -> None:
    """The chosen tokens in each layer, and none for the metric of weights."""
    model, tokenizer = tiny_model("qwen3_moe"), char_tokenizer()
    tables = calibrate(model, tokenizer, TEXTS, metric=["cka", "projection", "weights"], **OPTIONS)
    sample = recorded(tables["projection"])
    assert (list(sample.ids), sample.num_tokens) == ([0, 1], 300)
    assert equal(sample, recorded(tables["cka"]))
    assert tables["weights"].routing is None
    assert calibrate(model, metric="weights", progress=False).routing is None


def test_every_way_of_calibrating_records_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded, as a checkpoint, layer by layer, interrupted and resumed, and offloaded."""
    path = save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=3)
    arguments: dict[str, Any] = {"tokenizer": char_tokenizer(), "texts": TEXTS} | OPTIONS
    expected = recorded(calibrate(load_whole(path), **arguments))
    assert equal(recorded(calibrate(path, low_memory=False, **arguments)), expected)
    assert equal(recorded(calibrate(path, low_memory=True, **arguments)), expected)
    offloaded = accelerate.cpu_offload(load_whole(path), execution_device="cpu")
    assert equal(recorded(calibrate(offloaded, **arguments)), expected)
    with monkeypatch.context() as patch:
        interrupt_at_layer(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            calibrate(path, low_memory=True, work_dir=tmp_path / "work", **arguments)
    assert equal(
        recorded(calibrate(path, low_memory=True, work_dir=tmp_path / "work", **arguments)), expected
    )


def test_a_model_that_loops_over_its_layers_has_no_sample() -> None:
    """Its layers see each token several times, so tokens cannot be told apart."""
    model = tiny_model("qwen3_moe")
    model.model.layers.__class__ = Looping
    found = collect_in_memory(model, find_experts(model), some_tokens(), config("frobenius"))
    assert found.routing == {}
    assert calibrate(model, char_tokenizer(), TEXTS, **OPTIONS).routing is None


def test_a_sample_takes_little_memory() -> None:
    """4 K bytes a sampled token and 16 an expert, however many tokens come."""
    layer = find_experts(tiny_model("qwen3_moe"))[0]
    collector = LayerCollector(layer, config("frobenius"), torch.arange(0, 300, 3))
    for _ in range(10):
        collector.add(*routing(layer, 30))
    found = collector.routing(300)
    assert found is not None
    assert (found.ids.nbytes, found.weights.nbytes) == (100 * layer.top_k * 2,) * 2
