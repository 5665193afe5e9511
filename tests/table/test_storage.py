"""Tables on disk: what is written is read back; what is damaged or foreign is refused by name."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sere.errors import OutputError
from sere.similarity import LayerSimilarity
from sere.structure import identify
from sere.table import SimilarityTable, fit
from tests.support.tables import identity, matrix, refuses, refuses_header, rewrite, rewrite_as, saved, table
from tests.support.tiny import tiny_model


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Similarities and scales to the bit, and everything that says where they come from."""
    before = table(scale=True)
    path = tmp_path / "new folder" / "table.safetensors"
    before.save(path)
    after = SimilarityTable.load(str(path))
    for index, layer in before.layers.items():
        assert torch.equal(after.layers[index].similarity, layer.similarity)
        scale = after.layers[index].scale
        assert scale is not None
        assert layer.scale is not None
        assert torch.equal(scale, layer.scale)
    assert after.identity == before.identity
    for name in (
        "metric",
        "metric_parameters",
        "calibration_tokens",
        "data_digest",
        "seed",
        "provenance",
        "fingerprint",
    ):
        assert getattr(after, name) == getattr(before, name)
    assert after.fingerprint == before.fingerprint


def test_sizes_of_each_layer_are_saved(tmp_path: Path) -> None:
    """E and K of each layer come back, and the largest of them as those of the whole."""
    layers = {1: LayerSimilarity(matrix(1, E=6)), 3: LayerSimilarity(matrix(3, E=4))}
    path = saved(tmp_path, layers=layers, identity=identity(experts={1: 6, 3: 4}, slots={1: 2, 3: 3}))
    loaded = SimilarityTable.load(path).identity
    assert (loaded.experts, loaded.slots) == ({1: 6, 3: 4}, {1: 2, 3: 3})
    assert (loaded.num_experts, loaded.top_k) == (6, 3)


# What version 0.1.0 wrote for `tiny_model("qwen3_moe")`: one E, K and digest of the architecture.
OLD_IDENTITY = {
    "name": "Qwen3MoeForCausalLM",
    "digest": "1bf7fd9e88b816d14bf87af1184e197a5118e847f289e2f132742ceba13e06d5",
    "E": 16,
    "K": 4,
    "layer_names": {"0": "model.layers.0.mlp.experts", "1": "model.layers.1.mlp.experts"},
}


def old_file(folder: Path) -> Path:
    """Write a table as version 0.1.0 did."""
    named = {f"layers.{index}.similarity": matrix(index, E=16) for index in (0, 1)}
    described = {
        "identity": OLD_IDENTITY, "metric": "cosine", "metric_parameters": {}, "num_tokens": 7,
        "data_digest": "ab", "seed": 0,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in named.items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    values = described | {"provenance": {}, "fingerprint": digest.hexdigest()}
    header = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    path = folder / "old.safetensors"
    save_file(named, path, metadata=header | {"format": "sere-similarity-table", "format_version": "1"})
    return path


def test_a_file_of_version_1_is_read_and_fits_its_model(tmp_path: Path) -> None:
    """Its digest is made again from the model at hand; saved again, it is the same file."""
    path = old_file(tmp_path)
    loaded = SimilarityTable.load(path)
    assert (loaded.num_experts, loaded.identity.top_k, loaded.identity.digest[:8]) == (16, 4, "1bf7fd9e")
    loaded.check(identify(tiny_model("qwen3_moe")))
    loaded.save(tmp_path / "again.safetensors")
    again = SimilarityTable.load(tmp_path / "again.safetensors")
    assert (again.identity, again.fingerprint) == (loaded.identity, loaded.fingerprint)


def test_a_file_of_version_1_is_taken_for_its_model_with_another_k(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The digest is made with the table's K, so a model loaded with another is still the same model."""
    fit.warn_once.forget()
    SimilarityTable.load(old_file(tmp_path)).check(identify(tiny_model("qwen3_moe", num_experts_per_tok=2)))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "calibrated with K=4 routed slots per token, this model has K=2" in line


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_size": 16}, "hidden_size, layers, expert_width: the table was written by an older sere "),
        ({"num_experts": 8}, "experts of layer 0: the table has 16, the model 8"),
        ({"num_hidden_layers": 3}, "MoE layers: the table has [0, 1], the model [0, 1, 2]"),
    ],
)
def test_a_file_of_version_1_is_refused_for_another_model(
    tmp_path: Path, changes: dict[str, int], text: str
) -> None:
    """What it holds of the model is compared; of the rest the text says that only a digest is there."""
    with refuses(text):
        SimilarityTable.load(old_file(tmp_path)).check(identify(tiny_model("qwen3_moe", **changes)))


def test_a_large_model_takes_a_few_megabytes(tmp_path: Path) -> None:
    """48 layers of 128 experts: the matrices and little more."""
    names = {index: f"model.layers.{index}.mlp.experts" for index in range(48)}
    layers = {index: LayerSimilarity(matrix(index, E=128)) for index in range(48)}
    path = saved(tmp_path, layers=layers, identity=identity(E=128, K=8, layer_names=names))
    assert 48 * 128 * 128 * 4 < path.stat().st_size < 3.2e6


def test_a_failed_save_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving is atomic: an error on the way loses nothing and leaves no half file."""
    path = saved(tmp_path)
    old = path.read_bytes()

    def half(tensors: Any, target: Path, metadata: Any) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("sere.table.storage.save_file", half)
    with pytest.raises(KeyboardInterrupt):
        table(seed=1).save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What safetensors says of the system goes with the place that was asked for, not the temporary one."""

    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sere.table.storage.save_file", fail)
    with pytest.raises(OutputError) as refused:
        table().save(tmp_path / "a")
    assert str(refused.value).startswith(f"{tmp_path / 'a'}: cannot be written: I/O error: No space left")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The text names the path, what is there and what would have been."""
    path = tmp_path / "no.safetensors"
    with refuses(f"{path}: does not exist; expected a similarity table"):
        SimilarityTable.load(path)
    with refuses(f"{tmp_path}: is a directory; expected a similarity table"):
        SimilarityTable.load(tmp_path)


@pytest.mark.parametrize("name", ["folder", "file/table.safetensors"], ids=["a folder", "below a file"])
def test_a_path_that_cannot_be_written_to_is_named(tmp_path: Path, name: str) -> None:
    """The text names the path as it was given; nothing is left behind."""
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("text")
    with pytest.raises(OutputError, match=re.escape(f"{tmp_path / name}: ")):
        table().save(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == [file, folder]


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=["empty", "4 bytes", "in the header", "one byte short"])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    """Wherever it was cut off."""
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    size = path.stat().st_size
    with refuses(f"{path}: expected a similarity table (a complete safetensors file), got {size} bytes"):
        SimilarityTable.load(path)


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    """Nothing but safetensors is opened."""
    path = tmp_path / "similarity_matrices.pt"
    torch.save({0: torch.eye(4)}, path)
    with refuses("that are something else or were cut off"):
        SimilarityTable.load(path)


def test_a_models_weights_are_refused(tmp_path: Path) -> None:
    """A safetensors file without the format in its header is something else."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with refuses("got a safetensors file of format 'pt'; is this a model's weights?"):
        SimilarityTable.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with refuses("got a safetensors file of format None"):
        SimilarityTable.load(path)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (
            {"format_version": "9"},
            "expected format version 1 to 3, got 9; a newer sere wrote it: upgrade, or",
        ),
        ({"format_version": None}, "expected format version 1 to 3, got None"),
        ({"metric": None, "seed": None}, "the header lacks metric, seed; calibrate again"),
        ({"seed": "{"}, "the header is not valid JSON"),
        ({"identity": "[]"}, "the model identity in its header is invalid"),
        ({"identity": '{"name": "x", "layer_names": {}}'}, "the model identity in its header is invalid"),
        (
            {"identity": json.dumps(identity().to_mapping() | {"experts": {"1": 5}})},
            "layer_names, experts and slots name different layers",
        ),
        ({"num_tokens": "5"}, "the content was changed after it was written"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, metadata: Any, text: str) -> None:
    """The text names the file and the entry."""
    refuses_header(tmp_path, metadata, text)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (matrix(1).bfloat16(), "layer 1: similarity: expected float32 (16-bit similarities change choices)"),
        (
            matrix(1)[:4].contiguous(),
            "layer 1: similarity: expected a square [E, E] matrix, got shape",
        ),
        (matrix(1) + 1, "layer 1: similarity: expected values in [0, 1], got"),
        (matrix(1) * 0.5, "layer 1: similarity: expected a diagonal of 1, got one off by 0.5"),
        (matrix(1) * torch.nan, "layer 1: similarity: expected a diagonal of 1, got NaN"),
        (torch.eye(5), "layer 1: expected similarities, got the identity matrix"),
        (matrix(2), "the content was changed after it was written"),
        (matrix(1, E=4), "layer 1: expected E = 5 experts"),
        (None, "similarities exist for layers [3]"),
    ],
    ids=["dtype", "shape", "range", "diagonal", "nan", "identity", "changed", "E", "missing"],
)
def test_similarities_that_make_no_sense_are_refused(tmp_path: Path, tensor: Any, text: str) -> None:
    """Shapes, dtype, finiteness, range, diagonal and content are checked on loading."""
    path = saved(tmp_path)
    rewrite(path, tensors={"layers.1.similarity": tensor})
    with refuses(text):
        SimilarityTable.load(path)


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_older_version_has_no_tiers_and_no_sample(tmp_path: Path, version: int) -> None:
    """It is read, and saved again it is a file of today's version that knows no more."""
    path = old_file(tmp_path) if version == 1 else saved(tmp_path)
    if version == 2:
        rewrite_as(path, 2)
    loaded = SimilarityTable.load(path)
    assert (dict(loaded.tiers), loaded.routing) == ({}, None)
    loaded.save(path)
    again = SimilarityTable.load(path)
    assert (dict(again.tiers), again.routing, again.fingerprint) == ({}, None, loaded.fingerprint)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format_version"] == "3"


def test_foreign_tensors_are_refused(tmp_path: Path) -> None:
    """A scale without similarity, or a tensor of another name, is not ignored."""
    path = saved(tmp_path)
    rewrite(path, tensors={"layers.5.scale": matrix(1)})
    with refuses("layer 5: has no similarity, only a scale or a sensitivity"):
        SimilarityTable.load(path)
    rewrite(path, tensors={"bias": matrix(1)})
    with refuses("expected tensors named layers.<index>.similarity, .scale or .sensitivity, got 'bias'"):
        SimilarityTable.load(path)
