"""The proxy of one pod: what listens for it, and its life."""

import logging
import socket

import trio

from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.sockets import set_connection_options
from ztunnel.proxy.arrivals import Arrivals, end_revoked
from ztunnel.proxy.captured import accept_captured
from ztunnel.proxy.context import Context
from ztunnel.proxy.dns import PodDns
from ztunnel.proxy.gathering import ENOUGH, ENOUGH_TUNNELS, Gathered
from ztunnel.proxy.listener import Accepted, Listener
from ztunnel.proxy.local_pod import LocalPod, LocalPods, PodInfo
from ztunnel.proxy.neighbour import ToNeighbour
from ztunnel.proxy.outbound import Outbound
from ztunnel.proxy.plaintext import Plaintext
from ztunnel.proxy.pod_ports import open_listener, wanted_listeners
from ztunnel.proxy.socks import accept_socks
from ztunnel.tls.crl import RevocationList

log = logging.getLogger("ztunnel.proxy")


class PodProxy(LocalPod):
    """Serves one pod from inside its network namespace.

    Args:
        neighbours: the pods of this node, which it joins.
        namespace: the pod's; None means the process's own (dedicated mode, and ourselves).
        listeners: descriptors of a predecessor by kind, in place of new ones: what waits in
            their queues is served, not lost.
        only_tunnels: nothing is captured: take tunnels in, and connect to the application from
            our own address. So this proxy's own ports are reached by peers of the mesh.
    """

    def __init__(
        self,
        context: Context,
        neighbours: LocalPods,
        info: PodInfo,
        namespace: NetworkNamespace | None,
        listeners: dict[str, socket.socket],
        only_tunnels: bool = False,
    ) -> None:
        keep_source = context.keep_source and not only_tunnels
        super().__init__(context, neighbours, info, namespace, keep_source)
        self._only_tunnels = only_tunnels
        self.arrivals = Arrivals(self)
        self._listeners: dict[str, Listener] = {}
        self._dns: PodDns | None = None
        self._listen(listeners)
        neighbours[info.namespace, info.name] = self

    # ---- listeners

    def _listen(self, inherited: dict[str, socket.socket]) -> None:
        """Opens every listener or none. Raises OSError."""
        opened: dict[str, socket.socket] = {}
        taken_over = set(inherited)
        try:
            for kind, address, port, transparent in wanted_listeners(self, self._only_tunnels):
                if kind in inherited:
                    opened[kind] = inherited.pop(kind)
                else:
                    opened[kind] = open_listener(self, address, port, transparent)
            if self.context.config.dns.enabled and not self._only_tunnels:
                self._dns = PodDns(self, inherited)
        except BaseException:
            for sock in (*opened.values(), *inherited.values()):
                sock.close()
            raise
        for left in inherited.values():
            left.close()  # of a kind that this configuration does not have
        accept: dict[str, Accepted] = {
            "outbound": lambda sock, client: accept_captured(Outbound, self, sock, client),
            "plaintext": lambda sock, client: accept_captured(Plaintext, self, sock, client),
            "hbone": self.arrivals.accept,
            "socks": lambda sock, client: accept_socks(self, sock, client),
        }
        for kind, sock in opened.items():
            if kind != "hbone":  # tunnels have keepalive of their own (PING)
                # Accepted sockets inherit it: cheaper than setting it on each of them.
                set_connection_options(sock, self.context.keepalive)
            context = self.context
            gathered = None
            if context.has_company:
                enough = ENOUGH_TUNNELS if kind == "hbone" else ENOUGH
                gathered = Gathered(sock, enough, fresh=kind not in taken_over)
            self._listeners[kind] = Listener(
                context.engine, context.admission, sock, accept[kind], gathered
            )

    def sockets(self) -> dict[str, socket.socket]:
        """The listening sockets by kind, for the control process to keep."""
        found = {kind: listener.socket for kind, listener in self._listeners.items()}
        if self._dns is not None:
            found |= self._dns.sockets()
        return found

    def look_at_listeners(self, busy: bool) -> None:
        """Has new connections gathered here or spread over the workers (see `gathering`)."""
        connections = self.context.registry.count_of(self.uid)
        for kind, listener in self._listeners.items():
            if listener.gathered is not None:
                count = len(self.arrivals.tunnels) if kind == "hbone" else connections
                listener.gathered.look(count, busy)

    async def run(self) -> None:
        """Does what the pod needs tasks for, until it is closed."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                if self._dns is not None:
                    nursery.start_soon(self._dns.run)
                await trio.sleep_forever()

    # ---- life

    def tick(self, now: float) -> None:
        """Housekeeping, about once a second."""
        for listener in self._listeners.values():
            self.context.engine.call_later(listener.look)
        for pool in self._pools.values():
            pool.tick(now)
        self.arrivals.tick(now)

    def certificate_withdrawn(self, uri: str) -> None:
        """The certificate of that identity expired or was revoked, and there is no other: tunnels
        that were made with it take no new connections."""
        for identity, pool in self._pools.items():
            if identity.uri == uri:
                pool.retire()
        workload = self.workload()
        if workload is not None and workload.identity.uri == uri:
            self.arrivals.leave_all()

    def refuse_revoked(self, revocations: RevocationList) -> None:
        """Ends tunnels and joined connections whose ends' certificates have been revoked."""
        for pool in self._pools.values():
            for tunnel, why in pool.revoked(revocations):
                end_revoked(self.context, tunnel, why, False)
        self.arrivals.refuse_revoked(revocations)
        for connection in self.context.registry.of(self.uid):
            if isinstance(connection, ToNeighbour):
                connection.refuse_revoked(revocations)

    @property
    def tunnel_counts(self) -> tuple[int, int, int, int]:
        """(tunnels out, streams out, tunnels in, streams in)."""
        out = [pool.counts for pool in self._pools.values()]
        return sum(one[0] for one in out), sum(one[1] for one in out), *self.arrivals.counts

    def drain(self) -> None:
        """Accepts nothing new; what runs may end by itself."""
        for listener in self._listeners.values():
            listener.close()
        for pool in self._pools.values():
            pool.drain()
        self.arrivals.leave_all()

    def close(self, reason: str) -> None:
        """Ends everything of the pod now."""
        key = self.info.namespace, self.info.name
        if self.neighbours.get(key) is self:
            del self.neighbours[key]
        self.scope.cancel()
        for listener in self._listeners.values():
            listener.close()
        # Before their tunnels, whose loss they would take for an act of the other end.
        for connection in self.context.registry.of(self.uid):
            connection.leave(reason)
        for pool in self._pools.values():
            pool.close(reason)
        self.arrivals.close(reason)
        self.companions.close()
        self.sockets_ahead.close()
        if self.namespace is not None:
            self.namespace.close()
        log.info("pod %s is no longer served: %s", self, reason)
