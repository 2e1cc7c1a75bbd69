"""Endpoints that a connection may go to, and the choice among them by capacity."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from random import Random

from ztunnel.mesh.workload import Workload


class Selection:
    """Endpoints to choose from, with the target port of each."""

    __slots__ = ("_cumulative", "_uniform", "choices")

    def __init__(self, choices: list[tuple[Workload, int]]) -> None:
        weights = [workload.capacity for workload, _ in choices]
        self.choices = choices
        self._uniform = len(set(weights)) <= 1
        self._cumulative = list(accumulate(weights))

    def choose(self, rng: Random) -> tuple[Workload, int] | None:
        """One of them, at random by capacity; None when there is none."""
        choices = self.choices
        count = len(choices)
        if count <= 1:
            return choices[0] if count else None
        if self._uniform:
            return choices[int(rng.random() * count)]
        cumulative = self._cumulative
        return choices[bisect_right(cumulative, rng.random() * cumulative[-1], 0, count - 1)]
