"""The tunnels that peers open to a pod."""

import socket
import time
from typing import Final

import trio

from ztunnel.hbone.server import TunnelServer
from ztunnel.linux.sockets import SocketAddress, local_of
from ztunnel.mesh.workload import HBONE_PORT
from ztunnel.proxy.certificates import CertificateUnavailable
from ztunnel.proxy.connection import Connection
from ztunnel.proxy.context import Context
from ztunnel.proxy.handshake import shake_hands
from ztunnel.proxy.inbound import InboundTunnel
from ztunnel.proxy.local_pod import LOCAL_WORKLOAD_TIMEOUT, LocalPod
from ztunnel.relay.kernel_tunnel import make_tunnel
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.tunnel import Tunnel
from ztunnel.telemetry.labels import CERT_REVOKED
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.errors import Alert, PeerRefused, TlsError
from ztunnel.tls.handshake import Handshake
from ztunnel.tls.spiffe import ClientMustBe, refuse_revoked

GOAWAY_PAUSE: Final = 0.25  # seconds between the two GOAWAYs of a drain


class Arrivals:
    """Those of one pod.

    Attributes:
        tunnels: that are established.
    """

    def __init__(self, pod: LocalPod) -> None:
        self._pod = pod
        self.tunnels: set[InboundTunnel] = set()

    def accept(self, sock: socket.socket, client: SocketAddress) -> None:
        self._pod.context.spawn(self._establish, sock, client)

    async def _establish(self, sock: socket.socket, client: SocketAddress) -> None:
        """Shakes hands with a peer, as the pod."""
        pod = self._pod
        context = pod.context
        local: SocketAddress = ("", HBONE_PORT)
        started = time.monotonic()
        try:
            local = local_of(sock)
            with trio.fail_after(context.config.tunnel.handshake_timeout):
                workload = await pod.wait_for_workload()
                if workload is None:
                    raise CertificateUnavailable(f"local workload {pod} is not known")
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
        if pod.scope.cancel_called:
            context.engine.close_later(sock)
            return
        owner = InboundTunnel(pod, self.tunnels.discard, client, local[0], result.peer)
        self.tunnels.add(owner)
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
        context = self._pod.context
        context.engine.close_later(sock)
        context.took(True, "tls", False, started)
        context.refused(client, local, True, cause, reason)

    # ---- life

    def tick(self, now: float) -> None:
        """Housekeeping, about once a second."""
        for owner in list(self.tunnels):
            tunnel = owner.tunnel
            if tunnel is None:
                continue
            tunnel.tick(now, self._pod.context.pools.tunnel_keepalive)
            if owner.worn_out(time.time()):
                self._leave(owner)

    def refuse_revoked(self, revocations: RevocationList) -> None:
        """Ends those whose peers' certificates have been revoked."""
        for owner in list(self.tunnels):
            reason = revocations.revoked(owner.peer.chain)
            if reason is not None and owner.tunnel is not None:
                end_revoked(self._pod.context, owner.tunnel, reason, True)

    @property
    def counts(self) -> tuple[int, int]:
        """(tunnels, streams in them)."""
        open_ones = [owner.tunnel for owner in self.tunnels if owner.tunnel is not None]
        return len(open_ones), sum(len(tunnel.http.streams) for tunnel in open_ones)

    def leave_all(self) -> None:
        """Takes no new connections in any of them."""
        for owner in list(self.tunnels):
            self._leave(owner)

    def close(self, reason: str) -> None:
        """Ends them now."""
        for owner in list(self.tunnels):
            if owner.tunnel is not None:
                owner.tunnel.close(reason)

    def _leave(self, owner: InboundTunnel) -> None:
        """Takes no new streams in it; it ends with the last that is there."""
        tunnel = owner.tunnel
        if tunnel is None or tunnel.closed or owner.leaving:
            return
        owner.leaving = True
        tunnel.server.shutdown(final=False)
        tunnel.mark_dirty()
        self._pod.context.spawn(_end_tunnel, tunnel)


async def _end_tunnel(tunnel: Tunnel) -> None:
    """The second step of an orderly end, once the peer has had time to hear of the first."""
    await trio.sleep(GOAWAY_PAUSE)
    if not tunnel.closed:
        tunnel.server.shutdown(final=True)
        tunnel.mark_dirty()
        tunnel.finish_streams()


def end_revoked(context: Context, tunnel: Tunnel, reason: str, inbound: bool) -> None:
    """Ends a tunnel whose peer's certificate has been revoked, and says so of each connection."""
    words = f"connection closed: peer certificate revoked by CRL ({reason})"
    for stream in list(tunnel.http.streams.values()):
        connection = stream.owner.owner if isinstance(stream.owner, StreamFlow) else None
        if isinstance(connection, Connection):
            connection.end(CERT_REVOKED, words)
            context.revoked("certificate")
    tunnel.close(words)
    reporter = "destination" if inbound else "source"
    context.counters.counter("istio_crl_policy_rejections", reporter).add()
