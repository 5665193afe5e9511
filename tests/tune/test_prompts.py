"""What the model continues where nobody gives prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sere.errors import DataError
from sere.eval.questions import held_out
from sere.tune.prompts import own_questions, pieces_of


def test_texts_become_pieces(tmp_path: Path) -> None:
    """Each begins and ends with a whole word and is long enough; the choice is seeded."""
    path = tmp_path / "notes.txt"
    path.write_text(" ".join(f"word{i}" for i in range(9000)))
    found = pieces_of(path, seed=1)
    assert len(found) == len(set(found))
    assert all(120 <= len(piece) <= 240 for piece in found)
    assert found == pieces_of(path, seed=1) != pieces_of(path, seed=2)
    words = {f"word{i}" for i in range(9000)}
    assert all(piece.split()[-1] in words for piece in found)
    assert len(found) > 50
    assert pieces_of(path, count=7, seed=1) == found[:7]


def test_texts_that_are_too_short_are_refused(tmp_path: Path) -> None:
    """A few words say too little of what is to follow."""
    path = tmp_path / "notes.txt"
    path.write_text("only this")
    with pytest.raises(DataError, match="at least 120 characters"):
        pieces_of(path)


def test_the_bundled_models_questions_are_not_those_of_evaluations() -> None:
    """So an evaluation of a tier asks what it was not tuned on."""
    mine = {question.prompt for question in own_questions()}
    assert len(mine) >= 256
    assert len({question.prompt for question in own_questions(count=600)}) >= 600
    assert not mine & {question.prompt for question in held_out(50)}
