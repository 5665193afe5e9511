"""Warnings that are logged once, however often their reason comes up."""

from __future__ import annotations

from collections.abc import Hashable
from logging import Logger


class WarnOnce:
    """Logs a warning the first time that its key comes up; the life of the object is what "once" refers to.

    Args:
        logger: Where to log.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._logged: set[Hashable] = set()

    def __call__(self, key: Hashable, message: str, *args: object) -> bool:
        """Log a warning unless one of this key was logged already.

        Args:
            key: What counts as the same warning.
            message: The message, with ``%`` placeholders.
            *args: Their values.

        Returns:
            Whether it was logged now.
        """
        if key in self._logged:
            return False
        self._logged.add(key)
        self._logger.warning(message, *args)
        return True

    def forget(self) -> None:
        """Log each warning once more."""
        self._logged.clear()
