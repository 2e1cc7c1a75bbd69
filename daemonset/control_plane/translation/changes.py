"""What is different between two sets of objects. Pure.

Unchanged objects are usually the same objects in both, and unchanged kinds the same mappings: that
makes looking through thousands of them cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def changed(before: Mapping[K, V], after: Mapping[K, V]) -> dict[K, V | None]:
    """Key -> what is there now (None: nothing any more), where that is not what was there."""
    if before is after:
        return {}
    found: dict[K, V | None] = {}
    for key, item in after.items():
        old = before.get(key)
        if old is not item and old != item:
            found[key] = item
    found.update((key, None) for key in before if key not in after)
    return found
