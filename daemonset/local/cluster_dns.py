"""The cluster's DNS: names of Services as kube-dns answers them, over UDP and TCP.

It forwards nothing: a mesh of namespaces has no way out, so a name outside the cluster does not
exist (NXDOMAIN), which resolvers believe at once, where a silent server would cost them seconds.
"""

import logging
import socket
import socketserver
import struct
import threading

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset

from daemonset.local.kube_services import ClusterServices
from ztunnel.linux.netns import NetworkNamespace

PORT = 53

TTL = 5
"""Seconds; CoreDNS gives cluster names this long too, so that changes are seen soon."""

_TCP_PATIENCE = 10.0

_log = logging.getLogger("daemonset.local.cluster_dns")


def answer(query: bytes, services: ClusterServices, cluster_domain: str) -> bytes | None:
    """Pure: the reply to one message, or None where none may be sent (RFC 1035 section 4.1)."""
    try:
        message = dns.message.from_wire(query)
    except dns.exception.DNSException:
        return None
    if message.flags & dns.flags.QR:
        return None
    reply = dns.message.make_response(message, recursion_available=True)
    if message.opcode() != dns.opcode.QUERY or len(message.question) != 1:
        reply.set_rcode(dns.rcode.NOTIMP)
        return reply.to_wire()
    question = message.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    in_cluster = name == cluster_domain or name.endswith(f".{cluster_domain}")
    if in_cluster:
        reply.flags |= dns.flags.AA
    # An alias may point to another name of the cluster: give both answers at once.
    owner = question.name
    for _ in range(8):
        alias = services.aliases.get(name)
        if alias is None:
            break
        target = dns.name.from_text(alias)
        reply.answer.append(_rrset(owner, "CNAME", target.to_text()))
        owner, name = target, alias
    kind = dns.rdatatype.to_text(question.rdtype)
    if name in services.addresses:
        chosen = [a for a in services.addresses[name] if (":" in a) == (kind == "AAAA")]
        if kind in ("A", "AAAA") and chosen:
            reply.answer.append(_rrset(owner, kind, *chosen))
    elif name in services.ports:
        if kind == "SRV":
            target_name, port = services.ports[name]
            reply.answer.append(_rrset(owner, kind, f"0 100 {port} {target_name}."))
    elif not reply.answer and not _has_names_below(name, services):
        reply.set_rcode(dns.rcode.NXDOMAIN)
    return reply.to_wire()


def _rrset(owner: dns.name.Name, kind: str, *data: str) -> dns.rrset.RRset:
    return dns.rrset.from_text(owner, TTL, "IN", kind, *data)


def _has_names_below(name: str, services: ClusterServices) -> bool:
    """Empty non-terminals exist (RFC 8020): ``shop.svc.cluster.local`` has services below it."""
    return any(known.endswith(f".{name}") for known in (*services.addresses, *services.ports))


class ClusterDns:
    """Serves in the background until closed; :attr:`services` may be replaced at any time."""

    def __init__(self, where: NetworkNamespace, addresses: list[str], cluster_domain: str) -> None:
        """Raises OSError when an address cannot be bound."""
        self.services = ClusterServices()
        self.cluster_domain = cluster_domain
        self.requests = 0
        self._servers: list[socketserver.BaseServer] = []
        with where.enter():
            for address in addresses:
                self._servers.append(_UdpServer((address, PORT), self))
                self._servers.append(_TcpServer((address, PORT), self))
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.1,), name="ambient-dns")
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def reply(self, query: bytes) -> bytes | None:
        self.requests += 1
        return answer(query, self.services, self.cluster_domain)

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


class _UdpServer(socketserver.UDPServer):
    def __init__(self, address: tuple[str, int], owner: ClusterDns) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.owner = owner
        super().__init__(address, _UdpHandler)


class _UdpHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _UdpServer)
        query, sock = self.request
        reply = self.server.owner.reply(query)
        if reply is not None:
            try:
                sock.sendto(reply, self.client_address)
            except OSError as error:  # the pod that asked is gone
                _log.info("no reply to %s: %s", self.client_address[0], error)


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], owner: ClusterDns) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.owner = owner
        super().__init__(address, _TcpHandler)


class _TcpHandler(socketserver.StreamRequestHandler):
    timeout = _TCP_PATIENCE

    def handle(self) -> None:
        assert isinstance(self.server, _TcpServer)
        try:
            while len(prefix := self.rfile.read(2)) == 2:
                (length,) = struct.unpack("!H", prefix)
                reply = self.server.owner.reply(self.rfile.read(length))
                if reply is None:
                    return
                self.wfile.write(struct.pack("!H", len(reply)) + reply)
        except OSError as error:
            _log.info("connection of %s ended: %s", self.client_address[0], error)
