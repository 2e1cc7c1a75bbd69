"""Which log lines are wanted: ``info,access=warn,ztunnel::proxy=debug``."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

TRACE: Final = 5
OFF: Final = 100
LEVELS: Final[Mapping[str, int]] = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "off": OFF,
}
_NAMES: Final = {number: name for name, number in LEVELS.items()}
_SCOPE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class LogFilter:
    """A level for everything, and levels for scopes. The longest scope that fits decides."""

    default: int = logging.INFO
    scopes: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> LogFilter:
        """Reads a filter as it stands in RUST_LOG. Levels go by name in any case; a scope may be
        written ``a.b`` or ``a::b`` and joined to its level by ``=`` or ``:``; a scope without a
        level means trace.

        Raises:
            ValueError: naming the part that cannot be read and what is allowed.
        """
        return LogFilter().with_changes(text)

    def with_changes(self, text: str) -> LogFilter:
        """This filter with the parts of ``text`` laid over it. Raises as :meth:`parse` does."""
        default, scopes = self.default, dict(self.scopes)
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            level = LEVELS.get(part.lower())
            if level is not None:
                default = level
                continue
            scope, level = _directive(part)
            scopes[scope] = level
        return LogFilter(default, scopes)

    def level_for(self, scope: str) -> int:
        """The lowest level, a number of the ``logging`` module, at which ``scope`` is wanted."""
        while scope:
            level = self.scopes.get(scope)
            if level is not None:
                return level
            scope = scope.rpartition(".")[0]
        return self.default

    def apply(self) -> None:
        """Sets the levels of the ``logging`` module's loggers accordingly."""
        logging.addLevelName(TRACE, "TRACE")
        for name, logger in list(logging.root.manager.loggerDict.items()):
            if isinstance(logger, logging.Logger):
                logger.setLevel(self.scopes.get(name, logging.NOTSET))
        for name, level in self.scopes.items():
            logging.getLogger(name).setLevel(level)
        logging.root.setLevel(self.default)

    def __str__(self) -> str:
        scopes = [f"{scope}={_NAMES[level]}" for scope, level in sorted(self.scopes.items())]
        return ",".join([_NAMES[self.default], *scopes])


def _directive(part: str) -> tuple[str, int]:
    text = part.replace("::", ".").replace(":", "=")
    scope, equals, name = text.partition("=")
    level = LEVELS.get(name.strip().lower()) if equals else TRACE
    scope = scope.strip()
    if level is None or not _SCOPE.fullmatch(scope):
        allowed = ", ".join(LEVELS)
        raise ValueError(f'cannot read "{part[:80]}": allowed are scope=level and levels {allowed}')
    return scope, level
