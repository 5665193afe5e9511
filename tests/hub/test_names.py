"""Which names are those of repositories, and which are paths."""

from __future__ import annotations

import pytest

from sere.hub import Repository, parse_repository


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("owner/name", Repository("owner/name")),
        ("Owner.1/na-me_2", Repository("Owner.1/na-me_2")),
        ("owner/name@v2", Repository("owner/name", "v2")),
        ("owner/name@refs/pr/1", Repository("owner/name", "refs/pr/1")),
    ],
)
def test_a_repository_has_an_owner_and_a_name(text: str, found: Repository) -> None:
    """A revision may follow after @; the text is what was read."""
    assert parse_repository(text) == found
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    ["", "name", "owner/name/file", "/owner/name", "./name", "~/name", "owner/name@", "tables/moe.sere",
     "tables/moe.safetensors", "similarity_matrices.pt"],
)  # fmt: skip
def test_what_is_a_path_is_no_repository(text: str) -> None:
    """Too few or too many parts, or the ending of a file."""
    assert parse_repository(text) is None
