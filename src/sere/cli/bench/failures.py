"""Engines or servers of a timing that failed, while the others went on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sere.cli.output import say
from sere.errors import SereError, name_some


@dataclass(slots=True)
class Failures:
    """What failed.

    Attributes:
        errors: By the name of what failed.
    """

    errors: dict[str, SereError] = field(default_factory=dict)

    def add(self, what: str, error: SereError) -> None:
        """Note a failure, and say it at once."""
        say(f"failed: {what}: {error}")
        self.errors.setdefault(what, error)

    def named(self) -> str:
        """Return what failed, for a note at the end."""
        return f"failed: {name_some(self.errors, separator='; ')}"

    def checked(self, records: Iterable[dict[str, Any]], earlier: int = 0) -> Iterator[dict[str, Any]]:
        """Yield records.

        Args:
            records: Of what did not fail.
            earlier: How many there were before.

        Raises:
            SereError: There is none because of the first failure.
        """
        for record in records:
            earlier += 1
            yield record
        if self.errors and not earlier:
            raise next(iter(self.errors.values()))
