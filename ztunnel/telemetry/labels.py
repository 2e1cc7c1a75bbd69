"""The labels of connection metrics, put together once for each pair of ends.

A connection is counted under 27 labels. Building those for each connection would cost more than
the connection, so they are made once for each :class:`Ends`, which is looked up by the few objects
that it follows from, and the connection then only adds to the integers of a :class:`TcpSeries`.

Names, values and their order are Istio's standard TCP metric labels.
"""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = "unknown"

TCP_LABELS: Final = (
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
)

# Values of response_flags.
NO_FLAGS: Final = "-"
DENY: Final = "DENY"
CONNECT: Final = "CONNECT"
TLS_FAILURE: Final = "TLS_FAILURE"
H2_HANDSHAKE_FAILURE: Final = "H2_HANDSHAKE_FAILURE"
NETWORK_POLICY: Final = "NETWORK_POLICY"
IDENTITY_ERROR: Final = "IDENTITY_ERROR"
CERT_REVOKED: Final = "CERT_REVOKED"


class Peer:
    """What telemetry says of one end of a connection; "" where it is not known.

    ``name`` is the pod (or machine), ``workload`` what owns it. One object per workload, kept as
    long as the workload: lookups go by object, not by content.
    """

    __slots__ = (
        "canonical_revision",
        "canonical_service",
        "cluster",
        "identity",
        "name",
        "namespace",
        "region",
        "workload",
        "zone",
    )

    def __init__(
        self,
        name: str = "",
        namespace: str = "",
        workload: str = "",
        canonical_service: str = "",
        canonical_revision: str = "",
        identity: str = "",
        cluster: str = "",
        region: str = "",
        zone: str = "",
    ) -> None:
        self.name: str = name
        self.namespace: str = namespace
        self.workload: str = workload
        self.canonical_service: str = canonical_service
        self.canonical_revision: str = canonical_revision
        self.identity: str = identity
        self.cluster: str = cluster
        self.region: str = region
        self.zone: str = zone


class ServiceLabels:
    """The Service that a connection was addressed to."""

    __slots__ = ("hostname", "name", "namespace")

    def __init__(self, hostname: str, namespace: str, name: str) -> None:
        self.hostname: str = hostname
        self.namespace: str = namespace
        self.name: str = name


UNKNOWN_PEER: Final = Peer()


class TcpSeries:
    """The counters of all connections with the same labels.

    ``received`` and ``sent`` are bytes from and to the end that opened the connection, for both
    reporters, as in Istio (so a source's counters read the other way round).
    """

    __slots__ = ("closed", "failed", "labels", "opened", "received", "sent")

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels: tuple[str, ...] = labels
        self.opened: int = 0
        self.closed: int = 0
        self.failed: int = 0
        self.received: int = 0
        self.sent: int = 0


class Ends:
    """Who talks to whom: what all connections between the same two ends share.

    The principals are SPIFFE ids that mutual TLS proved, "" without one.
    """

    __slots__ = (
        "destination",
        "destination_principal",
        "inbound",
        "log_text",
        "mutual_tls",
        "series",
        "service",
        "source",
        "source_principal",
    )

    def __init__(self, key: EndsKey, series: TcpSeries) -> None:
        self.inbound: bool = key[0]
        self.source: Peer = key[1]
        self.destination: Peer = key[2]
        self.service: ServiceLabels | None = key[3]
        self.source_principal: str = key[4]
        self.destination_principal: str = key[5]
        self.mutual_tls: bool = key[6]
        self.series: TcpSeries = series
        # The access log's rendering of what is fixed, made when first needed.
        self.log_text: tuple[str, str] | None = None

    @property
    def local(self) -> Peer:
        """The end that is a pod of this node's."""
        return self.destination if self.inbound else self.source


EndsKey = tuple[bool, Peer, Peer, ServiceLabels | None, str, str, bool]


class LabelTable:
    """Finds or makes the :class:`Ends` and the :class:`TcpSeries` of a connection.

    Peers of other networks describe themselves, so the number of label sets is not ours to
    choose: past ``limit`` a new set is counted without what the ends say of themselves, and
    ``folded`` tells how often that happened.
    """

    RECENT_LIMIT: Final = 16384

    def __init__(self, limit: int = 50_000) -> None:
        self.limit: int = limit
        self.folded: int = 0
        self.series: dict[tuple[str, ...], TcpSeries] = {}
        self._recent: dict[EndsKey, Ends] = {}

    def ends(
        self,
        inbound: bool,
        source: Peer,
        destination: Peer,
        service: ServiceLabels | None = None,
        source_principal: str = "",
        destination_principal: str = "",
        mutual_tls: bool = False,
    ) -> Ends:
        """The shared object for these ends."""
        key = (
            inbound,
            source,
            destination,
            service,
            source_principal,
            destination_principal,
            mutual_tls,
        )
        found = self._recent.get(key)
        if found is None:
            if len(self._recent) >= self.RECENT_LIMIT:
                self._recent.clear()
            found = self._recent[key] = Ends(key, self._series(key, NO_FLAGS))
        return found

    def flagged(self, ends: Ends, flags: str) -> TcpSeries:
        """The series of the same ends for connections that ended with ``flags``."""
        if flags == NO_FLAGS:
            return ends.series
        key = (
            ends.inbound,
            ends.source,
            ends.destination,
            ends.service,
            ends.source_principal,
            ends.destination_principal,
            ends.mutual_tls,
        )
        return self._series(key, flags)

    def _series(self, key: EndsKey, flags: str) -> TcpSeries:
        labels = tcp_labels(key, flags)
        series = self.series.get(labels)
        if series is None and len(self.series) >= self.limit:
            self.folded += 1
            labels = tcp_labels((key[0], UNKNOWN_PEER, UNKNOWN_PEER, None, "", "", key[6]), flags)
            series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = TcpSeries(labels)
        return series


def tcp_labels(key: EndsKey, flags: str) -> tuple[str, ...]:
    """Values for :data:`TCP_LABELS`, in that order. What is not known reads "unknown"."""
    inbound, source, destination, service, source_principal, destination_principal, mutual = key
    source_app = source.canonical_service or UNKNOWN
    source_version = source.canonical_revision or UNKNOWN
    destination_app = destination.canonical_service or UNKNOWN
    destination_version = destination.canonical_revision or UNKNOWN
    return (
        "destination" if inbound else "source",
        source.workload or UNKNOWN,
        source_app,
        source_version,
        source.namespace or UNKNOWN,
        source_principal or UNKNOWN,
        source_app,
        source_version,
        source.cluster or UNKNOWN,
        (service.hostname if service is not None else "") or UNKNOWN,
        (service.namespace if service is not None else "") or UNKNOWN,
        (service.name if service is not None else "") or UNKNOWN,
        destination.workload or UNKNOWN,
        destination_app,
        destination_version,
        destination.namespace or UNKNOWN,
        destination_principal or destination.identity or UNKNOWN,
        destination_app,
        destination_version,
        destination.cluster or UNKNOWN,
        "tcp",
        flags,
        "mutual_tls" if mutual else UNKNOWN,
        source.region or UNKNOWN,
        source.zone or UNKNOWN,
        destination.region or UNKNOWN,
        destination.zone or UNKNOWN,
    )
