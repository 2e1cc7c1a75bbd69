"""Every metric family: its name, kind, labels and meaning.

Names that begin with ``istio_`` or ``workload_manager_`` are Istio's, with its labels. Where
Istio's proxy reports on its Rust runtime, ours reports on its engine, under ``ztunnel_``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ztunnel.telemetry.labels import TCP_LABELS


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. A counter's name is without the ``_total`` that its samples carry.

    ``buckets`` are upper bounds, without infinity. ``values`` is how many numbers one set of
    labels has: one, or for a histogram a count for each bucket, one for infinity, and the sum.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def values(self) -> int:
        return len(self.buckets) + 2 if self.kind is Kind.HISTOGRAM else 1


# The five counters of a connection travel together, since they have the same labels.
TCP: Final = "istio_tcp"
TCP_FAMILIES: Final = tuple(
    Family(name, Kind.COUNTER, TCP_LABELS, help_text)
    for name, help_text in (
        ("istio_tcp_connections_opened", "Connections opened"),
        ("istio_tcp_connections_closed", "Connections closed"),
        ("istio_tcp_connections_failed", "Connections that ended with a response flag"),
        ("istio_tcp_received_bytes", "Bytes from the end that opened the connection"),
        ("istio_tcp_sent_bytes", "Bytes to the end that opened the connection"),
    )
)

_LATENCY: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_DNS_LATENCY: Final = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)
_DNS: Final = (
    "request_query_type",
    "request_protocol",
    "source_canonical_service",
    "source_canonical_revision",
)
_ON_DEMAND_DNS: Final = (
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "hostname",
)


def _counter(name: str, labels: tuple[str, ...], text: str) -> Family:
    return Family(name, Kind.COUNTER, labels, text)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> Family:
    return Family(name, Kind.GAUGE, labels, text)


def _histogram(
    name: str, labels: tuple[str, ...], text: str, buckets: tuple[float, ...] = _LATENCY
) -> Family:
    return Family(name, Kind.HISTOGRAM, labels, text, buckets)


_ALL: Final = (
    # Connections and names, as Istio reports them.
    _gauge("istio_tcp_sockets_open", ("reporter",), "Connections open now"),
    _counter("istio_on_demand_dns", _ON_DEMAND_DNS, "Host names of workloads resolved when needed"),
    _counter("istio_crl_policy_rejections", ("reporter",), "Connections refused by revocation"),
    _counter("istio_dns_requests", _DNS, "DNS requests"),
    _counter("istio_dns_upstream_requests", _DNS, "DNS requests sent on to a resolver"),
    _counter("istio_dns_upstream_failures", _DNS, "DNS requests that a resolver did not answer"),
    _histogram(
        "istio_dns_upstream_request_duration_seconds",
        _DNS,
        "How long a resolver took",
        _DNS_LATENCY,
    ),
    # The control plane.
    _counter("istio_xds_connection_terminations", ("reason",), "Ends of xDS connections"),
    _counter("istio_xds_message", ("url",), "xDS responses"),
    _counter("istio_xds_message_bytes", ("url",), "Bytes of xDS responses"),
    _gauge("ztunnel_xds_connected", (), "1 while a stream to the control plane is open"),
    _gauge("ztunnel_xds_last_response_timestamp_seconds", ("url",), "When the last response came"),
    _histogram("ztunnel_xds_apply_duration_seconds", ("url",), "From response to acknowledgement"),
    _counter("ztunnel_xds_rejected_resources", ("url",), "Resources that were refused"),
    _gauge("ztunnel_xds_resources", ("url",), "Resources in force"),
    _histogram("ztunnel_xds_lookup_duration_seconds", ("result",), "On-demand look-ups"),
    # The pods of the node.
    _gauge("istio_build", ("component", "tag"), "Version of this proxy"),
    _gauge("workload_manager_active_proxy_count", (), "Pods being served"),
    _gauge("workload_manager_pending_proxy_count", (), "Pods that could not be started yet"),
    _counter("workload_manager_proxies_started", (), "Pods started"),
    _counter("workload_manager_proxies_stopped", (), "Pods stopped"),
    _counter("ztunnel_zds_errors", ("reason",), "Errors towards the node agent"),
    # Certificates.
    _gauge(
        "ztunnel_certificate_expiry_timestamp_seconds", ("identity",), "When a certificate expires"
    ),
    _histogram("ztunnel_csr_duration_seconds", ("result",), "Requests for certificates"),
    # Decisions.
    _counter(
        "ztunnel_authorization_decisions",
        ("policy", "action", "mode"),
        "What policies decided; mode is enforced or dry_run, no policy reads none",
    ),
    _counter(
        "ztunnel_revoked_connections",
        ("reason",),
        "Live connections closed because they are no longer allowed",
    ),
    _counter(
        "ztunnel_early_denials",
        ("direction", "reason"),
        "Connections refused before it was known whose they are",
    ),
    # Tunnels.
    _gauge("ztunnel_tunnels", ("direction",), "HBONE tunnels open now"),
    _gauge("ztunnel_tunnel_streams", ("direction",), "Streams open now in tunnels"),
    _histogram(
        "ztunnel_handshake_duration_seconds",
        ("direction", "stage", "result"),
        "TCP connects, TLS and HTTP/2 handshakes, answers to CONNECT",
    ),
    # The engine.
    _gauge("ztunnel_compiled", (), "1 where the hot rooms run compiled, 0 as plain Python"),
    _gauge("ztunnel_workers", (), "Worker processes that have been given the mesh"),
    _counter("ztunnel_worker_restarts", (), "Worker processes that had to be replaced"),
    _counter("ztunnel_relay_connections", ("path",), "Connections by how their bytes moved"),
    _counter("ztunnel_relay_bytes", ("path",), "Bytes moved, both directions"),
    _gauge("ztunnel_kernel_path", ("path", "worker"), "1 where that kernel path is on, else 0"),
    _counter("ztunnel_engine_rounds", ("worker",), "Rounds of the relay engine"),
    _counter("ztunnel_engine_busy_seconds", ("worker",), "Time spent in rounds"),
    _gauge("ztunnel_engine_flows", ("worker",), "Flows in the relay engine"),
    # The telemetry itself.
    _counter("ztunnel_log_lines_dropped", (), "Log lines that nobody took in time"),
    _counter(
        "ztunnel_metric_series_folded",
        (),
        "Connections counted without labels because there are too many label sets",
    ),
    _gauge("process_open_fds", (), "Open descriptors of the control process"),
    _gauge("process_max_fds", (), "Descriptors that the control process may open"),
    _gauge("process_resident_memory_bytes", (), "Memory of the control process"),
)

FAMILIES: Final[dict[str, Family]] = {family.name: family for family in _ALL}
