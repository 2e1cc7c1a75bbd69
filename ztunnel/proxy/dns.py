"""The DNS proxy of one pod: sockets in its namespace, answers from the mesh."""

import socket

from ztunnel.dns.forward import Upstream
from ztunnel.dns.lookup import Client
from ztunnel.dns.server import DnsServer
from ztunnel.linux.sockets import listen_tcp, set_mark, udp
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.names import read_resolv_conf
from ztunnel.telemetry.labels import UNKNOWN


class _Observer:
    """Counts the questions of one pod."""

    def __init__(self, pod: LocalPod) -> None:
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

    def __init__(self, pod: LocalPod, inherited: dict[str, socket.socket]) -> None:
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
