"""Names of repositories on the hub, and how they differ from the paths of files."""

from __future__ import annotations

import re
from typing import NamedTuple

from sere.defaults import SUFFIX

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
"""What the hub allows; a name that it does not know, it says itself."""

# Whoever writes such a name means a file, whether or not it is there.
_FILE_LIKE = (SUFFIX, ".safetensors", ".pt", ".bin", ".json", ".txt")


class Repository(NamedTuple):
    """A repository on the hub.

    Attributes:
        name: ``owner/name``.
        revision: A branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def parse_repository(text: str) -> Repository | None:
    """Read ``owner/name`` or ``owner/name@revision``; None for anything else, such as a path.

    Args:
        text: What a user gave. A name that ends like a file, such as ``tables/moe.sere``, is a path.
    """
    name, at, revision = text.partition("@")
    if HUB_NAME.fullmatch(name) is None or name.endswith(_FILE_LIKE) or (at and not revision):
        return None
    return Repository(name, revision or None)
