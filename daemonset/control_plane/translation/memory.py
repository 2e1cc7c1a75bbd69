"""What something came to, kept beside all that it was made from: as long as those inputs are equal
(unchanged objects are the same objects, which makes that cheap), so is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Results by key."""

    def __init__(self) -> None:
        self._known: dict[K, tuple[tuple[object, ...], V]] = {}

    def get(self, key: K, inputs: tuple[object, ...], make: Callable[[], V]) -> V:
        """The result for ``inputs``, which are all that ``make`` depends on."""
        known = self._known.get(key)
        if known is None or known[0] != inputs:
            known = self._known[key] = (inputs, make())
        return known[1]

    def drop(self, key: K) -> None:
        """There is no such thing any more."""
        self._known.pop(key, None)
