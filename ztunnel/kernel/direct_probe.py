"""Tries, between two namespaces made for it, whether connections can pass by the proxy here.

The rules are those of the pods; so are queues, verdicts, counts and resets. A path that does not do
all of it is not used.
"""

import select
import socket
from contextlib import ExitStack
from typing import Final

from ztunnel.kernel import direct_rules
from ztunnel.linux import netns
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.conntrack_entries import Conntrack
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import Chain, Rule, Table
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.packet_queue import OUTPUT, PREROUTING, PacketQueue, Syn
from ztunnel.linux.sockets import SocketAddress
from ztunnel.linux.tcp_sockets import TcpEndings, TcpSockets
from ztunnel.linux.veth import join_namespaces

_PATIENCE: Final = 2.0  # seconds for each step
_CLIENT, _SERVER, _SERVICE = "192.0.2.1", "192.0.2.2", "192.0.2.3"
_PORT: Final = 7000
_MARK: Final = 0x9A2D0001  # of a proxy that is not there
_CAPTURED: Final = 15001


class DirectProbeError(Exception):
    """Connections cannot pass by the proxy here; the message says at which step."""


def probe_direct() -> None:
    """Synchronous, and takes some ten milliseconds: run it in a thread. Raises DirectProbeError."""
    try:
        with ExitStack() as stack:
            near = stack.enter_context(netns.create())
            far = stack.enter_context(netns.create())
            join_namespaces(near, far, (f"{_CLIENT}/24", f"{_SERVER}/24"))
            queueing = direct_rules.find_queueing()
            for namespace in (near, far):
                _put_rules(namespace, queueing)
            _Trial(stack, near, far).run()
    except OSError as error:
        raise DirectProbeError(f"{error.strerror or error}") from error


def _put_rules(namespace: NetworkNamespace, queueing: direct_rules.Queueing) -> None:
    tcp = nft.protocol(socket.IPPROTO_TCP)
    captured = Rule((*tcp, *nft.redirect(_CAPTURED)))
    chains = (
        *direct_rules.direct_chains(_MARK, 0xFFFFFFFF, queueing),
        Chain("out", (*direct_rules.outbound_rules(), captured), "output", "nat", -100),
        Chain("in", (*direct_rules.inbound_rules(), captured), "prerouting", "nat", -100),
    )
    with Nftables(namespace) as nftables:
        nftables.replace(Table(direct_rules.TABLE, chains, direct_rules.direct_sets()))
        for address in (_CLIENT, _SERVER, _SERVICE):
            name, element = direct_rules.neighbour_element(address)
            nftables.add_elements(direct_rules.TABLE, name, [element])
        name, element = direct_rules.target_element(direct_rules.verdict(0, 1), _SERVER, _PORT)
        nftables.add_elements(direct_rules.TABLE, name, [element])


class _Trial:
    def __init__(self, stack: ExitStack, near: NetworkNamespace, far: NetworkNamespace) -> None:
        self._stack = stack
        self._near = near
        self._queues = {OUTPUT: PacketQueue(near, (direct_rules.QUEUE,))}
        stack.callback(self._queues[OUTPUT].close)
        self._queues[PREROUTING] = PacketQueue(far, (direct_rules.QUEUE,))
        stack.callback(self._queues[PREROUTING].close)
        self._sockets = TcpSockets(near)
        stack.callback(self._sockets.close)
        self._endings = TcpEndings(near)
        stack.callback(self._endings.close)
        with far.enter():
            self._listener = stack.enter_context(socket.create_server((_SERVER, _PORT)))

    def run(self) -> None:
        """Raises DirectProbeError, OSError."""
        service = (_SERVICE, 80)
        client = self._stack.enter_context(self._begin(service))
        syn = self._first_packet(OUTPUT)
        self._queues[OUTPUT].accept(syn, direct_rules.verdict(0, 1))
        arrived = self._first_packet(PREROUTING)
        if (arrived.sequence, arrived.source) != (syn.sequence, syn.source):
            raise DirectProbeError("another packet arrived than had been let go")
        self._queues[PREROUTING].accept(arrived, direct_rules.verdict(0, 0))
        self._wait(self._listener, select.POLLIN, "a connection that was let go did not arrive")
        server, _ = self._listener.accept()
        with client, server:
            self._wait(client, select.POLLOUT, "a connection that was let go was not answered")
            client.send(b"ping!")
            server.sendall(b"pong")
            for end, text in ((server, b"ping!"), (client, b"pong")):
                self._wait(end, select.POLLIN, "bytes did not arrive")
                if end.recv(16) != text:
                    raise DirectProbeError("other bytes arrived than were sent")
            with Conntrack(self._near) as conntrack:
                if not conntrack.marked(direct_rules.TAG, direct_rules.TAG_MASK):
                    raise DirectProbeError("connections that were let go cannot be found again")
                if conntrack.ending(syn.source, service) is None:
                    raise DirectProbeError("who closes a connection first cannot be known")
            if not self._sockets.abort(syn.source, service):
                raise DirectProbeError("a connection cannot be found to be reset")
            for end in (client, server):
                self._wait(end, select.POLLIN, "a connection that was reset lives on")
                if end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    raise DirectProbeError("a connection that was reset looks whole")
        self._told_of_the_end(syn.source, service)
        self._without_a_verdict()

    def _begin(self, destination: SocketAddress) -> socket.socket:
        with self._near.enter():
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect_ex(destination)
        return client

    def _told_of_the_end(self, source: SocketAddress, destination: SocketAddress) -> None:
        self._wait(self._endings.fd, select.POLLIN, "the end of a connection is not told")
        for local, remote, tally in self._endings.take():
            if (local, remote) == (source, destination):
                if (tally.sent, tally.received) != (5, 4):
                    raise DirectProbeError("the bytes were miscounted")
                return
        raise DirectProbeError("the end of a connection is not told")

    def _without_a_verdict(self) -> None:
        """It must be captured: nobody listens there, so it is refused."""
        with self._begin((_SERVER, _PORT)) as client:
            self._queues[OUTPUT].accept(self._first_packet(OUTPUT))
            self._wait(client, select.POLLIN, "a connection without a verdict was not captured")
            if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                raise DirectProbeError("a connection without a verdict was not captured")

    def _first_packet(self, hook: int) -> Syn:
        self._wait(self._queues[hook].fd, select.POLLIN, "a first packet was not queued")
        found = self._queues[hook].take(1)
        if not found or found[0].hook != hook:
            raise DirectProbeError("a first packet was not queued")
        return found[0]

    @staticmethod
    def _wait(what: socket.socket | int, events: int, otherwise: str) -> None:
        poll = select.poll()
        poll.register(what, events)
        if not poll.poll(_PATIENCE * 1000):
            raise DirectProbeError(otherwise)
