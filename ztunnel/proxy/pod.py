"""The proxy of one pod: its listeners, its tunnels, and who it is."""

import errno
import logging
import socket
import time
from typing import Final

import trio

from ztunnel.config.model import OriginalSource
from ztunnel.dns.lookup import Client
from ztunnel.hbone.baggage import Baggage, format_baggage, parse_baggage
from ztunnel.hbone.server import TunnelServer
from ztunnel.http2.headers import Header
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.socket_stock import SocketStock
from ztunnel.linux.sockets import (
    SocketAddress,
    listen_tcp,
    local_of,
    set_connection_options,
)
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.certificates import CertificateUnavailable
from ztunnel.proxy.connection import Connection
from ztunnel.proxy.context import SOCKS_PORT, Context
from ztunnel.proxy.dns import PodDns, make_resolver, search_domains
from ztunnel.proxy.gathering import ENOUGH, ENOUGH_TUNNELS, Gathered
from ztunnel.proxy.handshake import shake_hands
from ztunnel.proxy.inbound import InboundTunnel
from ztunnel.proxy.listener import Accepted, Listener
from ztunnel.proxy.neighbour import ToNeighbour
from ztunnel.proxy.outbound import accept_outbound
from ztunnel.proxy.plaintext import accept_plaintext
from ztunnel.proxy.pool import Pool
from ztunnel.proxy.routes import Routes
from ztunnel.proxy.socks import accept_socks
from ztunnel.relay.kernel_tunnel import make_tunnel
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.tunnel import Tunnel
from ztunnel.telemetry.labels import CERT_REVOKED, NO_FLAGS
from ztunnel.telemetry.record import ConnectionRecord
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.errors import Alert, PeerRefused, TlsError
from ztunnel.tls.handshake import Handshake
from ztunnel.tls.spiffe import ClientMustBe, refuse_revoked

log = logging.getLogger("ztunnel.proxy")

OUTBOUND_PORT: Final = 15001
PLAINTEXT_PORT: Final = 15006
HBONE_PORT: Final = 15008
_DENIED: Final = (errno.EPERM, errno.EACCES, errno.ENOPROTOOPT)
GOAWAY_PAUSE: Final = 0.25  # seconds between the two GOAWAYs of a drain
LOCAL_WORKLOAD_TIMEOUT: Final = 5.0  # seconds until the control plane must know a new pod


class PodInfo:
    """Who a pod is, as the node agent says."""

    __slots__ = ("name", "namespace", "service_account", "uid")

    def __init__(self, uid: str, name: str, namespace: str, service_account: str) -> None:
        self.uid = uid
        self.name = name
        self.namespace = namespace
        self.service_account = service_account

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class PodProxy:
    """Serves one pod from inside its network namespace.

    Args:
        namespace: the pod's; None means the process's own (dedicated mode, and ourselves).
        listeners: descriptors of a predecessor by kind, in place of new ones: what waits in
            their queues is served, not lost.
        only_tunnels: nothing is captured: take tunnels in, and connect to the application from
            our own address. So this proxy's own ports are reached by peers of the mesh.
    """

    def __init__(
        self,
        context: Context,
        info: PodInfo,
        namespace: NetworkNamespace | None,
        listeners: dict[str, socket.socket],
        only_tunnels: bool = False,
    ) -> None:
        self._only_tunnels = only_tunnels
        self.keep_source = context.keep_source and not only_tunnels
        self.context = context
        self.info = info
        self.uid = info.uid
        self.namespace = namespace
        self.sockets_ahead = SocketStock(namespace)
        self._pools: dict[Identity, Pool] = {}
        self._tunnels: set[InboundTunnel] = set()
        self._baggage: tuple[Workload | None, str] = (None, "")
        self.routes = Routes(context.state)
        self._workload: tuple[int, Workload | None] = (-1, None)
        self._known = trio.Event()
        self._listeners: dict[str, Listener] = {}
        self.resolver = make_resolver(context)
        self._search = search_domains(context)
        self._dns: PodDns | None = None
        self.identities: set[Identity] = set()  # that it has had; the pod may outlive its workload
        self._scope = trio.CancelScope()
        network = context.config.node.network
        self.network_header: tuple[Header, ...] = (
            ((b"x-forwarded-network", network.encode()),) if network else ()
        )
        self._listen(listeners)
        context.local_pods[info.namespace, info.name] = self

    def __str__(self) -> str:
        return str(self.info)

    def is_same(self, info: PodInfo, namespace: NetworkNamespace | None) -> bool:
        """Whether that is this very pod, in this very namespace."""
        mine = self.info
        if (info.name, info.namespace, info.service_account) != (
            mine.name, mine.namespace, mine.service_account,
        ):  # fmt: skip
            return False
        if namespace is None or self.namespace is None:
            return namespace is self.namespace
        return namespace.identity == self.namespace.identity

    # ---- listeners

    def _listen(self, inherited: dict[str, socket.socket]) -> None:
        """Opens every listener or none. Raises OSError."""
        opened: dict[str, socket.socket] = {}
        taken_over = set(inherited)
        try:
            for kind, address, port, transparent in self._wanted():
                sock = self._inherit(inherited, kind)
                opened[kind] = sock or self._open(address, port, transparent)
            if self.context.config.dns.enabled and not self._only_tunnels:
                self._dns = PodDns(self, inherited)
        except BaseException:
            for sock in (*opened.values(), *inherited.values()):
                sock.close()
            raise
        for left in inherited.values():
            left.close()  # of a kind that this configuration does not have
        accept: dict[str, Accepted] = {
            "outbound": lambda sock, client: accept_outbound(self, sock, client),
            "plaintext": lambda sock, client: accept_plaintext(self, sock, client),
            "hbone": self._accept_tunnel,
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

    def _wanted(self) -> list[tuple[str, str, int, bool]]:
        """(kind, address or "" for any, port, transparent) of each listener for TCP but DNS."""
        tunnels = ("hbone", "", HBONE_PORT, self.keep_source)
        if self._only_tunnels:
            return [tunnels]
        wanted = [
            ("outbound", "", OUTBOUND_PORT, False),
            ("plaintext", "", PLAINTEXT_PORT, self.keep_source),
            tunnels,
        ]
        if self.context.config.socks5:
            wanted.append(("socks", "127.0.0.1", SOCKS_PORT, False))
        return wanted

    @staticmethod
    def _inherit(inherited: dict[str, socket.socket], kind: str) -> socket.socket | None:
        return inherited.pop(kind) if kind in inherited else None

    def _open(self, address: str, port: int, transparent: bool) -> socket.socket:
        sockets = self.context.config.sockets
        wanted = address or ("::" if sockets.ipv6 else "0.0.0.0")
        try:
            try:
                return self._open_at(wanted, port, transparent)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and wanted == "::":
                    return self._open_at("0.0.0.0", port, transparent)
                if not transparent or self.context.must_keep_source or error.errno not in _DENIED:
                    raise
                return self._open_at(wanted, port, False)
        except OSError as error:
            raise OSError(error.errno, f"listen on port {port}: {error.strerror}") from error

    def _open_at(self, address: str, port: int, transparent: bool) -> socket.socket:
        sockets = self.context.config.sockets
        return listen_tcp(
            address,
            port,
            mark=self.context.mark,
            reuse_port=sockets.port_reuse,
            transparent=transparent and sockets.original_source is not OriginalSource.NEVER,
            backlog=sockets.listen_backlog,
            namespace=self.namespace,
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
                count = len(self._tunnels) if kind == "hbone" else connections
                listener.gathered.look(count, busy)

    async def run(self) -> None:
        """Does what the pod needs tasks for, until it is closed."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                if self._dns is not None:
                    nursery.start_soon(self._dns.run)
                await trio.sleep_forever()

    # ---- who it is

    def workload(self) -> Workload | None:
        """The pod as the control plane describes it now."""
        state = self.context.state
        generation, workload = self._workload
        if generation != state.generation:
            info = self.info
            workload = state.local_workload(
                info.name, info.namespace, info.service_account, self.context.config.node.node_name
            )
            self._workload = (state.generation, workload)
        return workload

    def dns_client(self) -> Client | None:
        """The pod as it asks for names; None while the control plane has not described it."""
        workload = self.workload()
        if workload is None:
            return None
        return Client(workload.namespace, workload.network, self._search)

    async def wait_for_workload(self) -> Workload | None:
        """The same, waiting a little for the control plane: a new pod may be quicker than it."""
        with trio.move_on_after(LOCAL_WORKLOAD_TIMEOUT):
            while self.workload() is None:
                await self._known.wait()
        return self.workload()

    def mesh_changed(self) -> None:
        """The mesh state has changed: whoever waits for the workload looks again."""
        self._known.set()
        self._known = trio.Event()
        workload = self.workload()
        if workload is not None:
            self.identities.add(workload.identity)
            self.context.certificates.want(workload.identity)

    def baggage(self, workload: Workload) -> str:
        """What the pod's tunnels say of it."""
        if self._baggage[0] is not workload:
            text = format_baggage(
                Baggage(
                    workload.cluster_id,
                    workload.namespace,
                    workload.workload_type.name.lower(),
                    workload.workload_name,
                    workload.canonical_name,
                    workload.canonical_revision,
                    workload.locality.region,
                    workload.locality.zone,
                )
            )
            self._baggage = (workload, text)
        return self._baggage[1]

    def _own_baggage(self) -> str:
        workload = self.workload()
        return self.baggage(workload) if workload is not None else ""

    def describe_far_end(
        self, record: ConnectionRecord, baggage: str, identity: Identity | None
    ) -> None:
        """Fills in who answered in another network, from its own words."""
        said = parse_baggage(baggage)
        ends = record.ends
        context = self.context
        peer = context.peers.described(
            said.namespace,
            said.workload_name,
            said.service,
            said.revision,
            identity.uri if identity is not None else "",
            said.cluster,
            said.region,
            said.zone,
        )
        record.replace_ends(
            context.labels.ends(
                ends.inbound,
                ends.source,
                peer,
                ends.service,
                ends.source_principal,
                ends.destination_principal,
                ends.mutual_tls,
            )
        )

    # ---- tunnels out

    def pool(self, identity: Identity) -> Pool:
        """The tunnels of the pod under that identity."""
        pool = self._pools.get(identity)
        if pool is None:
            context = self.context
            pool = Pool(
                context.pools, context.nursery, self.sockets_ahead, identity, self._own_baggage
            )
            pool.closed = self._scope.cancel_called
            self._pools[identity] = pool
        return pool

    # ---- tunnels in

    def _accept_tunnel(self, sock: socket.socket, client: SocketAddress) -> None:
        self.context.spawn(self._establish, sock, client)

    async def _establish(self, sock: socket.socket, client: SocketAddress) -> None:
        """Shakes hands with a peer, as the pod."""
        context = self.context
        local: SocketAddress = ("", HBONE_PORT)
        started = time.monotonic()
        try:
            local = local_of(sock)
            with trio.fail_after(context.config.tunnel.handshake_timeout):
                workload = await self.wait_for_workload()
                if workload is None:
                    raise CertificateUnavailable(f"local workload {self} is not known")
                certificate = await context.certificates.wait(
                    workload.identity, LOCAL_WORKLOAD_TIMEOUT
                )
                handshake = Handshake(
                    context.contexts.server(certificate),
                    ClientMustBe([workload.identity.trust_domain], context.pools.revocations),
                )
                result = await shake_hands(context.engine, sock, handshake)
                # The lists may have changed while the handshake went on.
                refuse_revoked(result.peer, context.pools.revocations)
        except trio.TooSlowError:
            reason = (
                "the peer stayed silent in the TLS handshake for"
                f" {context.config.tunnel.handshake_timeout:g}s"
            )
            self._refuse(sock, client, local, started, "silent", reason)
            return
        except CertificateUnavailable as error:
            self._refuse(sock, client, local, started, "no certificate", f"tunnel: {error}")
            return
        except (TlsError, OSError) as error:
            if isinstance(error, PeerRefused) and error.alert is Alert.CERTIFICATE_REVOKED:
                context.counters.counter("istio_crl_policy_rejections", "destination").add()
            self._refuse(sock, client, local, started, "tls", f"tunnel: {error}")
            return
        except BaseException:
            context.engine.close_later(sock)
            raise
        context.took(True, "tls", True, started)
        if self._scope.cancel_called:
            context.engine.close_later(sock)
            return
        owner = InboundTunnel(self, client, local[0], result.peer)
        self._tunnels.add(owner)
        owner.tunnel = make_tunnel(
            context.engine,
            sock,
            result.session,
            TunnelServer(context.http),
            result.leftover,
            owner,
        )

    def _refuse(
        self,
        sock: socket.socket,
        client: SocketAddress,
        local: SocketAddress,
        started: float,
        cause: str,
        reason: str,
    ) -> None:
        self.context.engine.close_later(sock)
        self.context.took(True, "tls", False, started)
        self.context.refused(client, local, True, cause, reason)

    def inbound_tunnel_ended(self, owner: InboundTunnel) -> None:
        """A peer's tunnel is over."""
        self._tunnels.discard(owner)

    # ---- life

    def tick(self, now: float) -> None:
        """Housekeeping, about once a second."""
        for listener in self._listeners.values():
            self.context.engine.call_later(listener.look)
        for pool in self._pools.values():
            pool.tick(now)
        for owner in list(self._tunnels):
            tunnel = owner.tunnel
            if tunnel is None:
                continue
            tunnel.tick(now, self.context.pools.tunnel_keepalive)
            if not owner.leaving and owner.worn_out(time.time()):
                owner.leaving = True
                self._leave(tunnel)

    def certificate_withdrawn(self, uri: str) -> None:
        """The certificate of that identity expired or was revoked, and there is no other: tunnels
        that were made with it take no new connections."""
        for identity, pool in self._pools.items():
            if identity.uri == uri:
                pool.retire()
        workload = self.workload()
        if workload is None or workload.identity.uri != uri:
            return
        for owner in self._tunnels:
            if owner.tunnel is not None and not owner.leaving:
                owner.leaving = True
                self._leave(owner.tunnel)

    def refuse_revoked(self, revocations: RevocationList) -> None:
        """Ends tunnels and joined connections whose ends' certificates have been revoked."""
        for pool in self._pools.values():
            for tunnel, why in pool.revoked(revocations):
                self._end_revoked(tunnel, why, False)
        for owner in list(self._tunnels):
            reason = revocations.revoked(owner.peer.chain)
            if reason is not None and owner.tunnel is not None:
                self._end_revoked(owner.tunnel, reason, True)
        for connection in self.context.registry.of(self.uid):
            if isinstance(connection, ToNeighbour):
                connection.refuse_revoked(revocations)

    def _end_revoked(self, tunnel: Tunnel, reason: str, inbound: bool) -> None:
        words = f"connection closed: peer certificate revoked by CRL ({reason})"
        for stream in list(tunnel.http.streams.values()):
            connection = stream.owner.owner if isinstance(stream.owner, StreamFlow) else None
            if isinstance(connection, Connection):
                connection.end(CERT_REVOKED, words)
                self.context.revoked("certificate")
        tunnel.close(words)
        reporter = "destination" if inbound else "source"
        self.context.counters.counter("istio_crl_policy_rejections", reporter).add()

    @property
    def tunnel_counts(self) -> tuple[int, int, int, int]:
        """(tunnels out, streams out, tunnels in, streams in)."""
        out = [pool.counts for pool in self._pools.values()]
        inside = [o.tunnel for o in self._tunnels if o.tunnel is not None]
        return (
            sum(count[0] for count in out),
            sum(count[1] for count in out),
            len(inside),
            sum(len(tunnel.http.streams) for tunnel in inside),
        )

    def drain(self) -> None:
        """Accepts nothing new; what runs may end by itself."""
        for listener in self._listeners.values():
            listener.close()
        for pool in self._pools.values():
            pool.drain()
        for owner in list(self._tunnels):
            tunnel = owner.tunnel
            if tunnel is not None and not tunnel.closed:
                owner.leaving = True
                self._leave(tunnel)

    def _leave(self, tunnel: Tunnel) -> None:
        """Takes no new streams in it; it ends with the last that is there."""
        tunnel.server.shutdown(final=False)
        tunnel.mark_dirty()
        self.context.spawn(self._end_tunnel, tunnel)

    async def _end_tunnel(self, tunnel: Tunnel) -> None:
        """The second step of an orderly end, once the peer has had time to hear of the first."""
        await trio.sleep(GOAWAY_PAUSE)
        if not tunnel.closed:
            tunnel.server.shutdown(final=True)
            tunnel.mark_dirty()
            tunnel.finish_streams()

    def close(self, reason: str) -> None:
        """Ends everything of the pod now."""
        key = self.info.namespace, self.info.name
        if self.context.local_pods.get(key) is self:
            del self.context.local_pods[key]
        self._scope.cancel()
        for listener in self._listeners.values():
            listener.close()
        # Before their tunnels, whose loss they would take for an act of the other end.
        for connection in self.context.registry.of(self.uid):
            connection.end(NO_FLAGS, reason)
        for pool in self._pools.values():
            pool.close(reason)
        for owner in list(self._tunnels):
            if owner.tunnel is not None:
                owner.tunnel.close(reason)
        if self.context.gatekeeper is not None:
            self.context.gatekeeper.leave(self)
        self.sockets_ahead.close()
        if self.namespace is not None:
            self.namespace.close()
        log.info("pod %s is no longer served: %s", self, reason)
