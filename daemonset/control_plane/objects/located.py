"""Values that know the line they were written on.

A folder's YAML and the Kubernetes API's JSON both become trees of ``Located``, so that the readers
of objects are the same for both, and every error can name the line where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

Scalar = str | int | float | bool | None

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Located:
    """A value of a document and its line (from 1; 0 where the source has no lines)."""

    value: Scalar | list[Located] | dict[str, Located]
    line: int

    def line_of(self, path: str) -> int:
        """The line of the field ``path`` (``spec.rules[0].to``), or of its nearest parent."""
        node = self
        for step in _steps(path):
            inner = node.value
            if isinstance(step, int):
                if not isinstance(inner, list) or step >= len(inner):
                    break
                node = inner[step]
            else:
                if not isinstance(inner, dict) or step not in inner:
                    break
                node = inner[step]
        return node.line


def _steps(path: str) -> Iterator[str | int]:
    for name, index in _STEP.findall(path):
        yield int(index) if index else name


def locate(value: object) -> Located:
    """Plain data, as ``json.loads`` gives it, without lines.

    Raises:
        TypeError: the data holds something that JSON does not know.
    """
    if isinstance(value, dict):
        return Located({str(key): locate(item) for key, item in value.items()}, 0)
    if isinstance(value, list):
        return Located([locate(item) for item in value], 0)
    if value is None or isinstance(value, str | bool | int | float):
        return Located(value, 0)
    raise TypeError(f"not a JSON value: {type(value).__name__}")


def kind_of(value: Located) -> str:
    """What a value is, in the words of YAML, for error messages."""
    inner = value.value
    if inner is None:
        return "nothing (null)"
    if isinstance(inner, bool):
        return f"a boolean ({str(inner).lower()})"
    if isinstance(inner, int | float):
        return f"a number ({inner})"
    if isinstance(inner, str):
        return "a string"
    return "a list" if isinstance(inner, list) else "a mapping"
