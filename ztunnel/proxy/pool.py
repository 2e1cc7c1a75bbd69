"""The tunnels of one pod to its peers, shared by the pod's connections.

Connections to the same peer with the same accepted identities share a tunnel,
up to the streams that the peer announced (and our own limit). A connection
that finds no room waits while one is opened; how many are opened at once
follows from how many wait. Everybody who waits is told, one way or the other.
"""

import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from ztunnel.hbone.client import TunnelClient
from ztunnel.http2.events import GoAwayReceived, SettingsReceived
from ztunnel.linux.socket_stock import SocketStock
from ztunnel.mesh.identity import Identity
from ztunnel.proxy.certificates import CertificateUnavailable
from ztunnel.proxy.failure import ConnectFailure
from ztunnel.proxy.outer import OuterStream
from ztunnel.proxy.peer_connection import by_revocation, connect_to, shake_hands_with
from ztunnel.proxy.peer_key import PeerKey
from ztunnel.proxy.pool_settings import PoolSettings
from ztunnel.relay.kernel_tunnel import make_tunnel
from ztunnel.relay.leaving import PATIENCE
from ztunnel.relay.tunnel import Tunnel
from ztunnel.telemetry.labels import (
    CERT_REVOKED,
    CONNECT,
    H2_HANDSHAKE_FAILURE,
    IDENTITY_ERROR,
    TLS_FAILURE,
)
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.errors import TlsError
from ztunnel.tls.spiffe import PeerCertificate

log = logging.getLogger("ztunnel.proxy")

_AT_ONCE: Final = 8  # tunnels opened to one peer at the same time
_INNER_IDLE: Final = 5.0  # seconds; an inner tunnel is not meant to be used again
_LAST_WORDS: Final = 1.0  # seconds for an alert to reach the end of an inner tunnel that failed
_RESETS_LEFT: Final = 50  # a tunnel whose peer takes fewer resets than this gets no new streams


class Waiting(Protocol):
    """A connection that wants a stream."""

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """Open your stream now; there is room for it."""

    def tunnel_failed(self, failure: ConnectFailure) -> None:
        """There will be no tunnel."""


class PooledTunnel:
    """A tunnel of the pool, and whom it leads to."""

    __slots__ = ("expires", "key", "outer", "peer", "pool", "ready", "tunnel")

    def __init__(
        self,
        pool: "Pool",
        key: PeerKey,
        peer: PeerCertificate,
        expires: float,
        outer: OuterStream | None,
    ) -> None:
        self.expires = expires  # the first of both ends' certificates, seconds since the epoch
        self.outer = outer  # the stream that an inner tunnel runs in
        self.pool = pool
        self.key = key
        self.peer = peer
        self.ready = False
        self.tunnel: Tunnel | None = None

    def worn_out(self, now: float) -> bool:
        """Whether new streams need a new handshake: a certificate or the key has had its time."""
        return now >= self.expires or (self.tunnel is not None and self.tunnel.session.exhausted)

    def event(self, tunnel: Tunnel, event: Any) -> None:
        if isinstance(event, SettingsReceived):
            if event.first:
                self.ready = True
                self.pool.settings_arrived(self)
        elif isinstance(event, GoAwayReceived):
            self.pool.forget(self)

    def tunnel_lost(self, tunnel: Tunnel, reason: str) -> None:
        if tunnel.http.terminated is not None:
            log.warning("tunnel of %s to %s: %s", self.pool.source, self.key, reason)
        self.pool.tunnel_lost(self, reason)


class Pool:
    """The pool of one pod, which connects from inside its namespace as its identity.

    Args:
        source: the local pod's identity; its certificate is shown to peers.
        baggage: what gateways of other networks are told of the pod.
    """

    def __init__(
        self,
        settings: PoolSettings,
        nursery: trio.Nursery,
        sockets: SocketStock,
        source: Identity,
        baggage: Callable[[], str],
    ) -> None:
        self.settings = settings
        self._sockets = sockets
        self._baggage = baggage
        self.source = source
        self._nursery = nursery
        self._tunnels: dict[PeerKey, list[PooledTunnel]] = {}
        self._waiting: dict[PeerKey, deque[Waiting]] = {}
        self._opening: dict[PeerKey, int] = {}
        self._all: set[PooledTunnel] = set()
        self.closed = False

    def request(self, key: PeerKey, waiting: Waiting) -> None:
        """Calls `waiting.tunnel_ready` at once where there is room, else when there is."""
        tunnel = self._room(key)
        if tunnel is not None:
            waiting.tunnel_ready(tunnel)
            return
        if self.closed:
            waiting.tunnel_failed(ConnectFailure("the pod is leaving the mesh", CONNECT))
            return
        self._waiting.setdefault(key, deque()).append(waiting)
        self._open_more(key)

    def _room(self, key: PeerKey) -> Tunnel | None:
        for pooled in self._tunnels.get(key, ()):
            tunnel = pooled.tunnel
            if (
                pooled.ready
                and tunnel is not None
                and not tunnel.closed  # its streams hear of it before the pool does
                and tunnel.client.can_open()
                and tunnel.answers
                and len(tunnel.http.streams) < self._limit(key)
                and tunnel.http.resets.left(tunnel.engine.now) > _RESETS_LEFT
                and not pooled.worn_out(time.time())
            ):
                tunnel.used = tunnel.engine.now
                return tunnel
        return None

    def _limit(self, key: PeerKey) -> int:
        # Behind a gateway each tunnel leads to an endpoint that was chosen there: sharing it
        # would send everything to one of them.
        return 1 if key.inner_authority else self.settings.max_streams

    def _open_more(self, key: PeerKey) -> None:
        waiting = len(self._waiting.get(key, ()))
        # As many in each as the peer has taken so far.
        each = self._limit(key)
        for pooled in self._tunnels.get(key, ()):
            if pooled.ready and pooled.tunnel is not None:
                each = min(each, max(1, pooled.tunnel.http.peer.max_concurrent_streams))
        wanted = min(_AT_ONCE, -(-waiting // each))
        for _ in range(wanted - self._under_way(key)):
            self._opening[key] = self._opening.get(key, 0) + 1
            self._nursery.start_soon(self._connect, key)

    def _under_way(self, key: PeerKey) -> int:
        """Tunnels that are being opened, or whose SETTINGS are still to come."""
        arriving = sum(not pooled.ready for pooled in self._tunnels.get(key, ()))
        return self._opening.get(key, 0) + arriving

    async def _connect(self, key: PeerKey) -> None:
        failure: ConnectFailure | None = None
        try:
            await self._establish(key)
        except ConnectFailure as error:
            failure = error
        except TlsError as error:
            flags = CERT_REVOKED if by_revocation(error) else TLS_FAILURE
            failure = ConnectFailure(f"TLS with {key}: {error}", flags)
        except OSError as error:
            failure = ConnectFailure(f"connect to {key}: {error.strerror or error}", CONNECT)
        finally:
            opening = self._opening.get(key, 1) - 1
            if opening:
                self._opening[key] = opening
            else:
                self._opening.pop(key, None)
            if failure is None and trio.current_effective_deadline() == -float("inf"):
                failure = ConnectFailure("the pod is leaving the mesh", CONNECT)
            if failure is not None and not self._under_way(key):
                self._fail(key, failure)

    async def _establish(self, key: PeerKey) -> None:
        settings = self.settings
        try:
            certificate = await settings.certificates.wait(self.source, settings.handshake_timeout)
        except CertificateUnavailable as error:
            raise ConnectFailure(str(error), IDENTITY_ERROR) from error
        outer: OuterStream | None = None
        if key.inner_authority:
            outer = OuterStream(settings.engine, key.inner_authority, self._baggage())
            sock = await self._inner_socket(key, outer)
        else:
            sock = await connect_to(settings, key, self._sockets)
        try:
            result = await shake_hands_with(settings, key, certificate, sock)
        except BaseException:
            if outer is not None:
                outer.over(_LAST_WORDS)
            raise
        expires = min(certificate.not_after, result.peer.not_after)
        pooled = PooledTunnel(self, key, result.peer, expires, outer)
        self._tunnels.setdefault(key, []).append(pooled)
        self._all.add(pooled)
        pooled.tunnel = make_tunnel(
            settings.engine,
            sock,
            result.session,
            TunnelClient(settings.http),
            result.leftover,
            pooled,
        )
        self._nursery.start_soon(self._settings_due, pooled)

    async def _inner_socket(self, key: PeerKey, outer: OuterStream) -> socket.socket:
        """One end of a socket pair whose other end is relayed to a stream of the outer tunnel.

        So the inner tunnel is a tunnel like any other: it does not know that its socket is none
        of the network's. The extra copy is paid only between networks. Raises ConnectFailure.
        """
        self.request(key.outer, outer)
        try:
            with trio.fail_after(self.settings.handshake_timeout):
                return await outer.socket()
        except trio.TooSlowError:
            raise ConnectFailure(
                f"gateway {key.outer} did not answer the CONNECT request for"
                f" {key.inner_authority} in time",
                CONNECT,
            ) from None
        finally:
            self.give_up(key.outer, outer)
            outer.release()

    async def _settings_due(self, pooled: PooledTunnel) -> None:
        """A peer that shakes hands and then says nothing must not hold connections."""
        await trio.sleep(self.settings.handshake_timeout)
        if not pooled.ready and pooled.tunnel is not None:
            pooled.tunnel.close(
                f"the peer sent no HTTP/2 SETTINGS for {self.settings.handshake_timeout:g}s"
            )

    def settings_arrived(self, pooled: PooledTunnel) -> None:
        """A new tunnel's limits are known: serve those who wait."""
        key = pooled.key
        waiting = self._waiting.get(key)
        served = False
        while waiting:
            tunnel = self._room(key)
            if tunnel is None:
                break
            served = True
            waiting.popleft().tunnel_ready(tunnel)
        if not waiting:
            self._waiting.pop(key, None)
        elif served or self._under_way(key):
            self._open_more(key)
        else:
            # More of the same would be opened without end.
            self._fail(
                key, ConnectFailure(f"tunnel to {key}: the peer takes no streams in it", CONNECT)
            )

    def forget(self, pooled: PooledTunnel) -> None:
        """No new streams on this one."""
        tunnels = self._tunnels.get(pooled.key)
        if tunnels and pooled in tunnels:
            tunnels.remove(pooled)
            if not tunnels:
                del self._tunnels[pooled.key]

    def tunnel_lost(self, pooled: PooledTunnel, reason: str) -> None:
        """A tunnel is gone. Who waited for its SETTINGS must hear of it."""
        self.forget(pooled)
        self._all.discard(pooled)
        if pooled.outer is not None:
            pooled.outer.over(PATIENCE)
        if not pooled.ready and not self._under_way(pooled.key):
            # A server refuses our certificate only after our own handshake has ended well.
            flags = TLS_FAILURE if reason.startswith("TLS:") else H2_HANDSHAKE_FAILURE
            self._fail(pooled.key, ConnectFailure(f"tunnel to {pooled.key}: {reason}", flags))

    def _fail(self, key: PeerKey, failure: ConnectFailure) -> None:
        for waiting in self._waiting.pop(key, ()):
            waiting.tunnel_failed(failure)

    def give_up(self, key: PeerKey, waiting: Waiting) -> None:
        """`waiting` no longer wants a stream."""
        queue = self._waiting.get(key)
        if queue is not None and waiting in queue:
            queue.remove(waiting)

    def peer_of(self, tunnel: Tunnel) -> PeerCertificate | None:
        """Who is at the other end of a tunnel of this pool."""
        owner = tunnel.owner
        return owner.peer if isinstance(owner, PooledTunnel) else None

    def tick(self, now: float) -> None:
        """Keepalive, and the end of tunnels that nobody has used for long."""
        for pooled in list(self._all):
            tunnel = pooled.tunnel
            if tunnel is None:
                continue
            tunnel.tick(now, self.settings.tunnel_keepalive)
            allowed = _INNER_IDLE if pooled.key.inner_authority else self.settings.idle_timeout
            unused = pooled.ready and tunnel.idle and now - tunnel.used > allowed
            if unused or pooled.worn_out(time.time()):
                self.forget(pooled)
                tunnel.finish_streams()

    def retire(self) -> None:
        """No new streams on any tunnel that there is; those that are open go on."""
        for pooled in self._all:
            pooled.expires = 0.0

    def revoked(self, revocations: RevocationList) -> list[tuple[Tunnel, str]]:
        """Tunnels to peers whose certificates have been revoked, each with the reason."""
        found = []
        for pooled in self._all:
            reason = revocations.revoked(pooled.peer.chain)
            if reason is not None and pooled.tunnel is not None:
                found.append((pooled.tunnel, reason))
        return found

    @property
    def counts(self) -> tuple[int, int]:
        """(tunnels, streams)."""
        tunnels = [pooled.tunnel for pooled in self._all if pooled.tunnel is not None]
        return len(tunnels), sum(len(tunnel.http.streams) for tunnel in tunnels)

    def drain(self) -> None:
        """No new tunnels; existing ones end with their last stream."""
        self.closed = True
        for pooled in list(self._all):
            if pooled.tunnel is not None:
                pooled.tunnel.finish_streams()

    def close(self, reason: str) -> None:
        """Ends everything now."""
        self.closed = True
        for key in list(self._waiting):
            self._fail(key, ConnectFailure(reason, CONNECT))
        for pooled in list(self._all):
            if pooled.tunnel is not None:
                pooled.tunnel.close(reason)
