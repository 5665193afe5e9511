"""How stable the choice of neighbors is: what two halves of the tokens choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sere
from sere.calibrate.stability import Halves, neighbor_choices, stability
from sere.similarity import METRICS, LayerSimilarity, make_accumulator
from tests.support.checkpoints import save_checkpoint

E, T = 6, 512
# "weights" has no accumulator.
OF_OUTPUTS = [name for name, metric in METRICS.items() if metric.accumulator is not None]


def outputs(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return outputs, ids and weights of T tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(T, E, generator=generator).argsort(dim=1)[:, :2]
    return torch.randn(E, T, 8, generator=generator), ids, torch.rand(T, 2, generator=generator) + 0.1


@pytest.mark.parametrize("name", OF_OUTPUTS)
def test_each_half_is_what_it_would_be_alone(name: str) -> None:
    """The second half is that of an accumulator that saw only it; all tokens are as without the cut."""
    first, second = outputs(1), outputs(2)
    whole, alone = make_accumulator(name, E), make_accumulator(name, E)
    halves = Halves(2 * T)
    whole.update(*first)
    halves.look(T, {name: whole})
    expected = neighbor_choices(whole.finalize())
    whole.update(*second)
    alone.update(*second)
    found = halves.finish(2 * T, {name: whole})[name]
    assert torch.equal(found, torch.stack([expected, neighbor_choices(alone.finalize())]))
    uncut = make_accumulator(name, E)
    uncut.update(*first)
    uncut.update(*second)
    assert torch.equal(whole.finalize().similarity, uncut.finalize().similarity)


def test_parts_that_are_no_halves_are_not_compared() -> None:
    """All rows in one call, or a model that loops and brings three times as many rows."""
    accumulator = make_accumulator("cosine", E)
    accumulator.update(*outputs(1))
    for rows in (T, 3 * T):
        halves = Halves(T)
        halves.look(T, {"cosine": accumulator})
        assert halves.finish(rows, {"cosine": accumulator}) == {}


def test_agreement_and_what_a_half_loses() -> None:
    """Experts of which a half knows no neighbor do not count."""
    similarity = torch.tensor([[1, 0.5, 0.4], [0.2, 1, 0.3], [torch.nan, torch.nan, 1]])
    layer = LayerSimilarity(similarity)
    assert neighbor_choices(layer).tolist() == [1, 2, -1]
    found = stability({3: layer}, {3: torch.tensor([[1, 2, -1], [2, 2, -1]])})
    assert found == {"experts": 2, "agree": 0.5, "lost": pytest.approx(0.1 / 4)}
    assert stability({}, {}) is None


@pytest.mark.parametrize("low_memory", [False, True], ids=["in memory", "by layers"])
def test_a_table_says_how_stable_it_is(low_memory: bool, tmp_path: Path) -> None:
    """Of every metric, with the same numbers whatever way the model was read."""
    texts = [f"text number {number} of some that are not long" for number in range(60)]
    options: dict[str, Any] = {"seq_len": 16, "batch_size": 4, "progress": False, "max_tokens": 1024}
    path = save_checkpoint(tmp_path)
    made = sere.calibrate(
        path, None, texts, metric=("projection", "cosine"), low_memory=low_memory, **options
    )
    expected = sere.calibrate(path, None, texts, metric=("projection", "cosine"), low_memory=False, **options)
    for name, table in made.items():
        found = table.provenance["calibration"]["stability"]
        assert found == expected[name].provenance["calibration"]["stability"]
        assert 0 < found["experts"] <= sum(table.identity.experts.values())
        assert 0 <= found["agree"] <= 1
