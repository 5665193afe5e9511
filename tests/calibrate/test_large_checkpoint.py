from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import calibrate_large
from sere.calibrate.layerwise.skeleton import Skeleton


def test_benchmarks_checkpoint_is_whole_and_of_the_size_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory benchmark's checkpoint has every tensor that its architecture needs, in several shards."""
    monkeypatch.setattr(calibrate_large, "_H", 64)
    monkeypatch.setattr(calibrate_large, "_WIDTH", 16)
    monkeypatch.setattr(calibrate_large, "_POOL", 2**16)
    layers = calibrate_large.layers_for(3e6, 4, 128)
    size = calibrate_large.write_checkpoint(tmp_path, E=4, layers=layers, vocab=128, shard_bytes=10**6)
    skeleton = Skeleton(tmp_path)
    assert 2e6 < size < sum(num_bytes for _, num_bytes, _ in skeleton.reader.fingerprint()) < 4e6
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) >= 3
    assert len(skeleton.layers) == layers
    for index in range(layers):
        with skeleton.loaded(index) as layer:
            assert float(layer.mlp.experts.gate_up_proj.detach().std()) == pytest.approx(0.04, rel=0.1)
