"""The control plane's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class ControlPlaneMetrics:
    """One set of metrics in a registry of its own, so that several can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._clients = Gauge(
            "ambient_xds_clients", "Connected node proxies and waypoints.", registry=registry
        )
        self._resources = Gauge(
            "ambient_resources", "Resources in force, by type.", ["type"], registry=registry
        )
        self._findings = Gauge(
            "ambient_findings",
            "Findings about objects, by severity.",
            ["severity"],
            registry=registry,
        )
        self._problems = Gauge(
            "ambient_refused_files", "Files that are refused because of errors.", registry=registry
        )
        self._translations = Histogram(
            "ambient_translation_seconds",
            "Time from objects to resources.",
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        self._rejections = Counter(
            "ambient_xds_rejections", "Pushes that a client rejected.", registry=registry
        )
        self._signed = Counter(
            "ambient_certificates_signed", "Workload certificates signed.", registry=registry
        )
        self._refused = Counter(
            "ambient_certificates_refused",
            "Certificate requests refused, by reason.",
            ["reason"],
            registry=registry,
        )

    def push_rejected(self) -> None:
        self._rejections.inc()

    def certificate_signed(self) -> None:
        self._signed.inc()

    def certificate_refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def translated(
        self, seconds: float, resources: dict[str, int], findings: dict[str, int], problems: int
    ) -> None:
        """One translation: ``resources`` by type, ``findings`` by severity."""
        self._translations.observe(seconds)
        for kind, number in resources.items():
            self._resources.labels(kind).set(number)
        for severity, number in findings.items():
            self._findings.labels(severity).set(number)
        self._problems.set(problems)

    def render(self, clients: int) -> bytes:
        """Prometheus text."""
        self._clients.set(clients)
        return generate_latest(self._registry)
