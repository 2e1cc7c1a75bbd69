"""The numbers of one process: cumulative, changed by plain additions.

A process keeps the cell of a family and its labels where it counts, so that counting is one
attribute. :class:`~ztunnel.telemetry.shipping.Shipper` sends what has changed to the control
process.
"""

from __future__ import annotations

from bisect import bisect_left

from ztunnel.telemetry.families import FAMILIES, Kind
from ztunnel.telemetry.labels import LabelTable

Labels = tuple[str, ...]


class Cell:
    """A counter or a gauge: one number."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Adds; a counter only grows, a gauge may shrink."""
        self.value += amount

    def set(self, value: float) -> None:
        """For gauges only."""
        self.value = value

    def numbers(self) -> list[float]:
        return [self.value]


class Histogram:
    """Counts by bucket, and the sum of what was observed."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds: tuple[float, ...] = bounds
        self._counts: list[int] = [0] * (len(bounds) + 1)
        self._sum: float = 0.0

    def observe(self, value: float) -> None:
        """Counts ``value`` in the first bucket whose bound is not below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def numbers(self) -> list[float]:
        return [*self._counts, self._sum]


class Counters:
    """All numbers of this process. ``table`` holds those of connections."""

    __slots__ = ("cells", "table")

    def __init__(self, table: LabelTable | None = None) -> None:
        self.table: LabelTable = table if table is not None else LabelTable()
        self.cells: dict[tuple[str, Labels], Cell | Histogram] = {}

    def counter(self, name: str, *labels: str) -> Cell:
        """The cell of a counter. ``name`` is without "_total".

        Raises:
            ValueError: there is no such family, or it has other labels.
        """
        return self._cell(name, Kind.COUNTER, labels)

    def gauge(self, name: str, *labels: str) -> Cell:
        """The cell of a gauge. Raises as :meth:`counter` does."""
        return self._cell(name, Kind.GAUGE, labels)

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The cell of a histogram. Raises as :meth:`counter` does."""
        cell = self.cells.get((name, labels))
        if cell is None:
            _check(name, Kind.HISTOGRAM, labels)
            cell = self.cells[name, labels] = Histogram(FAMILIES[name].buckets)
        assert isinstance(cell, Histogram)
        return cell

    def forget(self, name: str, *labels: str) -> None:
        """Drops a gauge that stands for something that is no longer there."""
        self.cells.pop((name, labels), None)

    def _cell(self, name: str, kind: Kind, labels: Labels) -> Cell:
        cell = self.cells.get((name, labels))
        if cell is None:
            _check(name, kind, labels)
            cell = self.cells[name, labels] = Cell()
        assert isinstance(cell, Cell)
        return cell


def _check(name: str, kind: Kind, labels: Labels) -> None:
    family = FAMILIES.get(name)
    if family is None or family.kind is not kind:
        raise ValueError(f"there is no {kind.value} {name}")
    if len(labels) != len(family.labels):
        raise ValueError(f"{name} has the labels {family.labels}, not {labels}")
