"""The reference implementation's files become tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.errors import TableError, TableMismatch
from sere.table import SimilarityTable, import_reference_table
from tests.support.tables import identity, matrix


def refuses(error: type[Exception], text: str) -> Any:
    """Expect exactly this text within the error."""
    return pytest.raises(error, match=re.escape(text))


def reference_file(folder: Path, content: object) -> Path:
    """Write ``content`` as the reference implementation would."""
    path = folder / "similarity_matrices.pt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("key", [int, str])
def test_float32_matrices_are_taken_to_the_bit(tmp_path: Path, key: Any) -> None:
    """Keys may be numbers or strings; the table is saved and loaded like any other."""
    path = reference_file(tmp_path, {key(3): matrix(3), key(1): matrix(1)})
    imported = import_reference_table(path, identity())
    assert torch.equal(imported.layers[3].similarity, matrix(3))
    assert imported.metric == "frobenius"
    (note,) = imported.provenance["notes"]
    assert re.fullmatch(r"imported from similarity_matrices.pt \(sha256 \w{12}\), which does not .*", note)
    imported.save(tmp_path / "table.safetensors")
    assert SimilarityTable.load(tmp_path / "table.safetensors").fingerprint == imported.fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32_with_a_note(tmp_path: Path, dtype: torch.dtype) -> None:
    """The loss of 16 bits is written into the table; a rounding above 1 is none."""
    rounded = matrix(1).to(dtype)
    rounded[0, 1] = 1.0078125 if dtype == torch.bfloat16 else 1.0
    imported = import_reference_table(
        reference_file(tmp_path, {1: rounded, 3: rounded}), identity(), metric="cosine"
    )
    assert imported.layers[1].similarity.dtype == torch.float32
    assert torch.equal(imported.layers[1].similarity, rounded.float().clamp(0, 1))
    name = str(dtype).removeprefix("torch.")
    assert imported.provenance["notes"][1].startswith(f"stored as {name}: rounding may have changed which")


def test_a_file_of_another_model_is_refused_with_both_sides(tmp_path: Path) -> None:
    """Other layers, or another E."""
    with refuses(TableMismatch, "holds layers [0, 1] with 5 experts, but the model is 'tiny' (E=5, K=2"):
        import_reference_table(reference_file(tmp_path, {0: matrix(1), 1: matrix(1)}), identity())
    with refuses(TableMismatch, "holds layers [1, 3] with 4 experts, but the model is 'tiny' (E=5, K=2"):
        import_reference_table(reference_file(tmp_path, {1: matrix(1, E=4), 3: matrix(1, E=4)}), identity())


class Trap:
    """Would run code when unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trapped"),))


def test_nothing_in_the_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that would run code is refused, and its code did not run."""
    monkeypatch.chdir(tmp_path)
    with refuses(TableError, "expected tensors by layer as torch.save writes them"):
        import_reference_table(reference_file(tmp_path, {1: Trap()}), identity())
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([matrix(1)], "expected a mapping of layers to tensors, got list"),
        ({}, "expected a mapping of layers to tensors, got dict"),
        ({"mlp": matrix(1)}, "expected layer indices as keys, got 'mlp'"),
        ({1: "x", 3: "y"}, "layer 1: expected a floating-point [E, E] tensor, got str"),
        (
            {1: torch.ones(5), 3: matrix(1)},
            "layer 1: expected a floating-point [E, E] tensor, got torch.f",
        ),
        ({1: matrix(1), 3: 2 * matrix(1)}, "layer 3: similarity: expected values in [0, 1]"),
        ({1: matrix(1), 3: torch.eye(5)}, "layer 3: expected similarities, got the identity matrix"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, text: str) -> None:
    """The text says what was found."""
    with refuses(TableError, text):
        import_reference_table(reference_file(tmp_path, content), identity())


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """Missing, a folder, or not written by torch.save."""
    with refuses(
        TableError, "does not exist; expected the reference implementation's similarity_matrices.pt"
    ):
        import_reference_table(tmp_path / "no.pt", identity())
    with refuses(
        TableError, "is a directory; expected the reference implementation's similarity_matrices.pt"
    ):
        import_reference_table(tmp_path, identity())
    (tmp_path / "text.pt").write_text("hello")
    with refuses(TableError, "expected tensors by layer as torch.save writes them"):
        import_reference_table(tmp_path / "text.pt", identity())


def test_layers_of_different_sizes_are_imported(tmp_path: Path) -> None:
    """Each layer is taken with its own number of experts; a layer of another size is refused."""
    model = identity(experts={1: 6, 3: 4})
    imported = import_reference_table(reference_file(tmp_path, {1: matrix(1, E=6), 3: matrix(3, E=4)}), model)
    assert [layer.num_experts for layer in imported.layers.values()] == [6, 4]
    with refuses(
        TableMismatch, "holds layers [1, 3] with 4 to 6 experts, but the model is 'tiny' (E=4 to 6, K=2"
    ):
        import_reference_table(reference_file(tmp_path, {1: matrix(1, E=4), 3: matrix(3, E=6)}), model)
