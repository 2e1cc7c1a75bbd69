"""What a user should know about an object that can be read but does not do what it says."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from daemonset.control_plane.objects.meta import ObjectKey


class Severity(IntEnum):
    """ERROR: the mesh refuses more than the object asks for, or cannot do what it asks for.

    WARNING: part of the object has no effect. INFO: worth knowing.
    """

    INFO = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One finding. ``reason`` is a CamelCase word for programs, ``advice`` says what to do."""

    object: ObjectKey
    field: str
    severity: Severity
    reason: str
    message: str
    advice: str

    def __str__(self) -> str:
        place = f"{self.object}: {self.field}" if self.field else str(self.object)
        advice = f" {self.advice}" if self.advice else ""
        return f"{self.severity.name.lower()}: {place}: {self.message}{advice} [{self.reason}]"


class Findings:
    """Collects findings; the same finding twice counts once."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[Finding, None] = {}

    def add(
        self,
        severity: Severity,
        key: ObjectKey,
        field: str,
        reason: str,
        message: str,
        advice: str = "",
    ) -> None:
        self._found[Finding(key, field, severity, reason, message, advice)] = None

    def error(self, key: ObjectKey, field: str, reason: str, message: str, advice: str) -> None:
        self.add(Severity.ERROR, key, field, reason, message, advice)

    def warning(
        self, key: ObjectKey, field: str, reason: str, message: str, advice: str = ""
    ) -> None:
        self.add(Severity.WARNING, key, field, reason, message, advice)

    def sorted(self) -> tuple[Finding, ...]:
        return tuple(sorted(self._found))


class Ledger(Findings):
    """Findings by the part that they were found in, so that one part can be looked at again."""

    __slots__ = ("_counts", "_parts", "_sorted")

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[Hashable, dict[Finding, None]] = {}
        self._counts: dict[Finding, int] = {}
        self._sorted: tuple[Finding, ...] | None = ()

    @contextmanager
    def part(self, part: Hashable) -> Iterator[None]:
        """What is found inside is all that there is about this part: what was there is dropped."""
        outside, self._found = self._found, {}
        try:
            yield
            self._replace(part, self._found)
        finally:
            self._found = outside

    def drop(self, part: Hashable) -> None:
        """The part is gone."""
        self._replace(part, {})

    def sorted(self) -> tuple[Finding, ...]:
        """The same tuple as before where nothing has changed."""
        if self._sorted is None:
            self._sorted = tuple(sorted(self._counts, key=_order))
        return self._sorted

    def _replace(self, part: Hashable, found: dict[Finding, None]) -> None:
        before = self._parts.get(part, {})
        if before == found:
            return
        if found:
            self._parts[part] = found
        else:
            del self._parts[part]
        for finding in found:
            self._counts[finding] = self._counts.get(finding, 0) + 1
        for finding in before:
            left = self._counts[finding] - 1
            if left:
                self._counts[finding] = left
            else:
                del self._counts[finding]
        self._sorted = None


def _order(finding: Finding) -> tuple[str, str, str, str, int, str, str, str]:
    """That of the dataclass, several times faster."""
    key = finding.object
    place = (key.kind, key.namespace, key.name, finding.field)
    return (*place, finding.severity, finding.reason, finding.message, finding.advice)
