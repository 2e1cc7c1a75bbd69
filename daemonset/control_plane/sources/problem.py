"""What is wrong with a file of a source, or with an object of the Kubernetes API."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One reason why a file or object is refused. What is not known is empty: ``file`` (and line 0)
    for objects of the Kubernetes API, ``object`` and ``field`` where none can be named."""

    file: str
    line: int
    object: str
    field: str
    message: str

    def __str__(self) -> str:
        parts = [f"{self.file}:{self.line}"] if self.file else []
        if self.object:
            parts.append(self.object)
        if self.field:
            parts.append(self.field)
        return ": ".join([*parts, self.message])
