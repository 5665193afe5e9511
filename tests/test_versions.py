"""Which releases are tested, and that another one is named once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sere import versions


@pytest.mark.parametrize(
    "release", ["5.17.0", "5.24.9", "5.20.0.dev0", "2.9.0", "2.13.0+cpu", "2.15.0+cu132"], ids=str
)
def test_a_release_within_the_range_is_no_news(release: str) -> None:
    """Both ends belong to the range, whatever follows the minor release."""
    package = "torch" if release.startswith("2.") else "transformers"
    assert versions.why_outside(package, release) is None


@pytest.mark.parametrize(
    ("package", "release", "text"),
    [
        ("transformers", "5.25.0.dev0", "Transformers 5.25.0.dev0 is newer than the releases .* tested with"),
        ("transformers", "5.9.0", "Transformers 5.9.0 is older .*5.17 to 5.24"),
        ("torch", "3.0", "PyTorch 3.0 is newer .*2.9 to 2.15"),
    ],
)
def test_a_release_outside_the_range_is_named(package: str, release: str, text: str) -> None:
    """Minor releases are compared as numbers, not as text, and the range is given."""
    reason = versions.why_outside(package, release)
    assert reason is not None
    assert re.search(text, reason)


def test_it_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One line a process; a package that is not installed gives none."""
    versions.warn_once.forget()
    monkeypatch.setattr(versions, "installed_version", {"transformers": "6.0.0"}.get)
    for _ in range(2):
        versions.warn_untested()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("sere: Transformers 6.0.0 is newer")
    versions.warn_once.forget()


@pytest.mark.checkout
def test_the_two_ends_are_what_the_suite_runs_with() -> None:
    """Transformers' ends are what `make test` and `make test-oldest` install; its PyTorch is in the range."""
    folder = Path(__file__).resolve().parents[1]
    pinned = {name: _pinned(folder / name) for name in ("constraints.txt", "constraints-oldest.txt")}
    oldest, newest = pinned["constraints-oldest.txt"], pinned["constraints.txt"]
    assert versions.TESTED["transformers"] == (oldest["transformers"], newest["transformers"])
    assert versions.why_outside("torch", newest["torch"]) is None
    bounds = dict(re.findall(r'"(transformers|torch)>=([\d.]+)"', (folder / "pyproject.toml").read_text()))
    assert bounds == {name: first for name, (first, _) in versions.TESTED.items()}


def _pinned(path: Path) -> dict[str, str]:
    """The minor releases that a file pins."""
    return dict(re.findall(r"^([\w-]+)==(\d+\.\d+)", path.read_text(), flags=re.MULTILINE))
