"""What a user should know about an object that can be read but does not do what it says."""

from __future__ import annotations

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
