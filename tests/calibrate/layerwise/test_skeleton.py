"""A model whose decoder layers have weights one at a time."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sere.calibrate import calibrate
from sere.calibrate.layerwise import by_layers
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.errors import InputError
from tests.support.calibration import by_layers_of, char_tokenizer, in_memory_of, save_tiny, worst

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 8
OPTIONS: dict[str, Any] = {"max_tokens": 100, "seq_len": 16, "progress": False}


def test_one_layer_has_weights_at_a_time(tmp_path: Path) -> None:
    """While a layer is computed, the others and the output head are without weights; afterward all are."""
    skeleton = Skeleton(save_tiny(tmp_path, "deepseek_v3"))
    for index in range(len(skeleton.layers)):
        with skeleton.loaded(index):
            filled = [i for i, layer in enumerate(skeleton.layers) if not _empty(layer)]
            assert filled == [index]
    assert all(map(_empty, skeleton.layers))
    skeleton.load_rest()
    assert not skeleton.model.get_input_embeddings().weight.is_meta
    assert skeleton.model.get_output_embeddings().weight.is_meta


def _empty(layer: torch.nn.Module) -> bool:
    return all(value.is_meta for value in layer.state_dict().values())


def test_no_tensor_of_a_layer_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's weights are gone from memory before the next layer's come: nothing keeps a reference."""
    refs: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    load = Skeleton._load

    def watched(self: Skeleton, names: Any) -> None:
        load(self, names)
        refs.extend(weakref.ref(v) for v in self.layers.state_dict(keep_vars=True).values() if not v.is_meta)

    monkeypatch.setattr(Skeleton, "_load", watched)
    monkeypatch.setattr(
        by_layers, "_return_freed_memory", lambda: alive.append(sum(ref() is not None for ref in refs))
    )
    by_layers_of(save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=4), tmp_path / "work", "frobenius")
    assert len(refs) == 4 * 11
    assert alive == [0, 0, 0, 0]


def test_files_are_closed_once_a_layer_is_read(tmp_path: Path) -> None:
    """While a layer is computed no shard is open or mapped: mapped pages would count as memory."""
    path = save_tiny(tmp_path, "qwen3_moe")
    skeleton = Skeleton(path)
    with skeleton.reader as files:
        files.read(next(iter(files.files)))
        assert _in_use(path)
    with skeleton.loaded(0):
        assert not _in_use(path)
    assert not _in_use(path)


def _in_use(path: Path) -> bool:
    """Whether this process has a file of the folder open or mapped."""
    opened = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return any(str(path) in name for name in (*opened, Path("/proc/self/maps").read_text(encoding="utf-8")))


def _rewrite(path: Path, change: Any) -> None:
    """Replace a checkpoint's shards by one file of changed tensors."""
    named: dict[str, torch.Tensor] = {}
    for shard in path.glob("*.safetensors"):
        named |= load_file(shard)
        shard.unlink()
    (path / "model.safetensors.index.json").unlink()
    change(named)
    save_file(named, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_embeddings_are_found_under_either_name(name: str, tmp_path: Path) -> None:
    """A checkpoint may hold tied embeddings as those of the input or of the output head."""
    path = save_tiny(tmp_path, "qwen3_moe", tie_word_embeddings=True)
    saved = "model.embed_tokens.weight"
    _rewrite(path, lambda named: named.update({name: named.pop(saved)}))
    assert worst(by_layers_of(path, tmp_path / "work", "frobenius"), in_memory_of(path, "frobenius")) == 0
    skeleton = Skeleton(path)
    skeleton.load_rest()
    assert not skeleton.model.get_input_embeddings().weight.is_meta
    assert skeleton.model.get_output_embeddings().weight.is_meta


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_weights_beside_the_layers_that_are_missing_are_named(name: str, tmp_path: Path) -> None:
    """Embeddings or a norm that the checkpoint lacks are an error with their name."""
    path = save_tiny(tmp_path, "qwen3_moe")
    _rewrite(path, lambda named: named.pop(name))
    with pytest.raises(InputError, match=rf"1 weight of the model is not in it: {name}"):
        calibrate(path, low_memory=True, texts=TEXTS, tokenizer=char_tokenizer(), **OPTIONS)
