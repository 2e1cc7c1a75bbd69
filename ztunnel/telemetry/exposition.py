"""The totals as Prometheus text or OpenMetrics, compressed where the scraper likes that."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from ztunnel.telemetry.aggregate import Key
from ztunnel.telemetry.counters import Labels
from ztunnel.telemetry.families import FAMILIES, TCP, TCP_FAMILIES, Family, Kind


@dataclass(frozen=True, slots=True)
class Page:
    """What a scrape gets. ``encoding`` is the value of Content-Encoding, or None."""

    body: bytes
    content_type: str
    encoding: str | None


class _Snapshot(Collector):
    """Families with at least one sample; a family that never counted is absent, as in Istio."""

    def __init__(self, totals: dict[Key, list[float]]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        by_family: dict[str, list[tuple[Labels, list[float]]]] = {}
        for (name, labels), numbers in self._totals.items():
            by_family.setdefault(name, []).append((labels, numbers))
        connections = by_family.get(TCP)
        if connections:
            for at, family in enumerate(TCP_FAMILIES):
                # Most series have no failures, and those with flags have no openings.
                samples = [(labels, [n[at]]) for labels, n in connections if n[at]]
                if samples:
                    yield _metric(family, samples)
        for name, family in FAMILIES.items():
            if name in by_family:
                yield _metric(family, by_family[name])


def render(totals: dict[Key, list[float]], accept: str, accept_encoding: str) -> Page:
    """Renders ``totals`` (of :meth:`Aggregate.snapshot`) as the two request headers ask for it.

    Meant for a thread: a mesh of thousands of workloads takes a while.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(totals))
    encoder, content_type = choose_encoder(accept)
    body = encoder(registry)
    if not accepts_gzip(accept_encoding):
        return Page(body, content_type, None)
    # Level 1: a scrape crosses one link once, and the processor is the scarcer good.
    return Page(gzip.compress(body, 1, mtime=0), content_type, "gzip")


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether Accept-Encoding (RFC 9110 section 12.5.3) names gzip and does not exclude it."""
    for part in accept_encoding.lower().split(","):
        coding, _, parameters = part.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            name, _, weight = parameters.strip().partition("=")
            if name != "q":
                return True
            return weight.strip().strip("0.") != ""
    return False


def _metric(family: Family, samples: list[tuple[Labels, list[float]]]) -> Metric:
    if family.kind is Kind.COUNTER:
        counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
        for labels, numbers in samples:
            counter.add_metric(labels, numbers[0])
        return counter
    if family.kind is Kind.GAUGE:
        gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
        for labels, numbers in samples:
            gauge.add_metric(labels, numbers[0])
        return gauge
    histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    bounds = [*map(str, family.buckets), "+Inf"]
    for labels, numbers in samples:
        running: float = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip(bounds, numbers[:-1], strict=True):
            running += count
            buckets.append((bound, running))
        histogram.add_metric(labels, buckets, numbers[-1])
    return histogram
