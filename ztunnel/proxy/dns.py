"""The DNS proxy of one pod: sockets in its namespace, answers from the mesh."""

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ztunnel.config.model import ProxyMode
from ztunnel.dns.forward import Upstream
from ztunnel.dns.lookup import BOTH_FAMILIES, Client, EndpointRecord, Family, ServiceRecord
from ztunnel.dns.names import Labels
from ztunnel.dns.resolv_conf import ResolvConf, parse_resolv_conf
from ztunnel.dns.resolver import Resolver
from ztunnel.dns.server import DnsServer
from ztunnel.linux.sockets import listen_tcp, set_mark, udp
from ztunnel.mesh.service import HealthPolicy, IPFamilies, Service, Visibility
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import WorkloadStatus
from ztunnel.telemetry.labels import UNKNOWN

if TYPE_CHECKING:
    from ztunnel.proxy.context import Context
    from ztunnel.proxy.pod import PodProxy

RESOLV_CONF: Final = Path("/etc/resolv.conf")

_FAMILIES: Final = {
    IPFamilies.AUTOMATIC: BOTH_FAMILIES,
    IPFamilies.IPV4_ONLY: frozenset({Family.IPV4}),
    IPFamilies.IPV6_ONLY: frozenset({Family.IPV6}),
    IPFamilies.DUAL: BOTH_FAMILIES,
}


class MeshLookup:
    """The mesh state as DNS reads it."""

    def __init__(self, state: MeshState) -> None:
        self._state = state

    def services_named(self, hostname: str) -> Iterable[ServiceRecord]:
        """Every service of that name, in any namespace."""
        return [_record(service) for service in self._state.services_by_hostname(hostname)]

    def endpoints_of(self, service: ServiceRecord) -> Iterable[EndpointRecord]:
        """The endpoints of a headless service that clients may be sent to."""
        key = f"{service.namespace}/{service.hostname}"
        known = self._state.service(key)
        anyone = known is not None and known.load_balancing.health_policy is HealthPolicy.ALLOW_ALL
        return [
            EndpointRecord(workload.name, workload.network, workload.addresses)
            for workload in self._state.endpoints(key)
            if anyone or workload.status is WorkloadStatus.HEALTHY
        ]


def _record(service: Service) -> ServiceRecord:
    return ServiceRecord(
        service.hostname,
        service.namespace,
        tuple((vip.network, vip.address) for vip in service.vips),
        _FAMILIES[service.ip_families],
        service.canonical,
        service.visibility is Visibility.NAMESPACE,
    )


class _Observer:
    """Counts the questions of one pod."""

    def __init__(self, pod: "PodProxy") -> None:
        self._pod = pod

    def _labels(self, query_type: str, protocol: str) -> tuple[str, str, str, str]:
        workload = self._pod.workload()
        if workload is None:
            return query_type, protocol, UNKNOWN, UNKNOWN
        service, revision = workload.canonical_name, workload.canonical_revision
        return query_type, protocol, service or UNKNOWN, revision or UNKNOWN

    def _count(self, name: str, query_type: str, protocol: str) -> None:
        self._pod.context.counters.counter(name, *self._labels(query_type, protocol)).add()

    def request(self, query_type: str, protocol: str) -> None:
        self._count("istio_dns_requests", query_type, protocol)

    def upstream_request(self, query_type: str, protocol: str) -> None:
        self._count("istio_dns_upstream_requests", query_type, protocol)

    def upstream_answer(self, query_type: str, protocol: str, seconds: float) -> None:
        self._pod.context.counters.histogram(
            "istio_dns_upstream_request_duration_seconds", *self._labels(query_type, protocol)
        ).observe(seconds)

    def upstream_failure(self, query_type: str, protocol: str) -> None:
        self._count("istio_dns_upstream_failures", query_type, protocol)


class PodDns:
    """Listens on the pod's loopback, where capture sends its questions.

    Args:
        inherited: listening sockets of a predecessor; those that fit are taken out.
    """

    def __init__(self, pod: "PodProxy", inherited: dict[str, socket.socket]) -> None:
        self._pod = pod
        self._udp: dict[str, socket.socket] = {}
        self._tcp: dict[str, socket.socket] = {}
        self._open(inherited)
        self._server = DnsServer(
            pod.resolver,
            pod.dns_client,
            self._wait_for_client,
            Upstream(read_resolv_conf(), self._socket),
            _Observer(pod),
        )

    async def _wait_for_client(self) -> Client | None:
        await self._pod.wait_for_workload()
        return self._pod.dns_client()

    def _open(self, inherited: dict[str, socket.socket]) -> None:
        context = self._pod.context
        host, port = context.config.dns.host, context.config.dns.port
        addresses = ["127.0.0.1", "::1"] if host == "localhost" else [host]
        try:
            for address in addresses:
                try:
                    self._open_at(address, port, inherited)
                except OSError as error:
                    if address != "::1":
                        words = f"DNS on {address} port {port}: {error.strerror}"
                        raise OSError(error.errno, words) from error
                    # A pod without IPv6 asks by IPv4.
        except BaseException:
            for sock in self.sockets().values():
                sock.close()
            raise

    def _open_at(self, address: str, port: int, inherited: dict[str, socket.socket]) -> None:
        mark, namespace = self._pod.context.mark, self._pod.namespace
        for kind, found in (("udp", self._udp), ("tcp", self._tcp)):
            name = f"dns-{kind}-{address}"
            sock = inherited.pop(name, None)
            if sock is None:
                make = udp if kind == "udp" else listen_tcp
                sock = make(address, port, mark=mark, namespace=namespace)
            found[name] = sock

    def sockets(self) -> dict[str, socket.socket]:
        """By kind, for a successor."""
        return self._udp | self._tcp

    def _socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        namespace, mark = self._pod.namespace, self._pod.context.mark
        sock = socket.socket(family, kind) if namespace is None else namespace.socket(family, kind)
        try:
            if mark is not None:
                set_mark(sock, mark)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        return sock

    async def run(self) -> None:
        """Serves until cancelled."""
        await self._server.serve(list(self._udp.values()), list(self._tcp.values()))


def make_resolver(context: "Context") -> Resolver:
    """Answers from the mesh as `context` knows it."""
    config = context.config
    return Resolver(
        MeshLookup(context.state),
        config.node.cluster_domain,
        config.dns.preferred_service_namespace or "",
        config.sockets.ipv6,
        context.rng,
    )


def search_domains(context: "Context") -> tuple[Labels, ...] | None:
    """Those of our own resolv.conf if it is the workload's too; None: what the kubelet writes.

    A node's proxy does not know each pod's search domains.
    """
    if context.config.mode is ProxyMode.DEDICATED:
        return read_resolv_conf().search
    return None


def read_resolv_conf() -> ResolvConf:
    """As it is now."""
    try:
        text = RESOLV_CONF.read_text(errors="replace")
    except FileNotFoundError:
        text = ""  # then only the mesh's own names resolve
    return parse_resolv_conf(text)
