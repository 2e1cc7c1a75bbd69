"""The making of a tunnel's connection: TCP to the peer, and the handshake with it."""

import socket
import time

import trio

from ztunnel.linux.socket_stock import SocketStock
from ztunnel.linux.sockets import start_connect
from ztunnel.proxy.failure import ConnectFailure
from ztunnel.proxy.handshake import connected, shake_hands
from ztunnel.proxy.peer_key import PeerKey
from ztunnel.proxy.pool_settings import PoolSettings, observe_stage
from ztunnel.telemetry.labels import NETWORK_POLICY, TLS_FAILURE
from ztunnel.tls.errors import Alert, PeerRefused
from ztunnel.tls.handshake import Handshake, HandshakeResult
from ztunnel.tls.spiffe import ServerMustBe, refuse_revoked
from ztunnel.tls.workload_certificate import WorkloadCertificate


async def connect_to(settings: PoolSettings, key: PeerKey, sockets: SocketStock) -> socket.socket:
    """A TCP connection to the peer. Raises ConnectFailure, OSError."""
    sock = start_connect(
        key.address,
        mark=settings.mark,
        keepalive=settings.keepalive,
        stock=sockets,
    )
    started, established = time.monotonic(), False
    try:
        with trio.move_on_after(settings.connect_timeout) as limit:
            await connected(settings.engine, sock)
        if limit.cancelled_caught:
            raise ConnectFailure(
                f"connect to {key}: no answer within {settings.connect_timeout:g}s; maybe a"
                f" NetworkPolicy blocks port {key.address[1]}",
                NETWORK_POLICY,
            )
        established = True
    except BaseException:
        settings.engine.close_later(sock)
        raise
    finally:
        observe_stage(settings.counters, False, "connect", established, started)
    return sock


async def shake_hands_with(
    settings: PoolSettings, key: PeerKey, certificate: WorkloadCertificate, sock: socket.socket
) -> HandshakeResult:
    """TLS with the peer, who must be one of those that `key` names. The socket is closed where
    that fails. Raises ConnectFailure, TlsError, OSError."""
    started, shaken = time.monotonic(), False
    try:
        handshake = Handshake(
            settings.contexts.client(certificate),
            ServerMustBe(key.inner_expected or key.expected, settings.revocations),
        )
        with trio.move_on_after(settings.handshake_timeout) as limit:
            result = await shake_hands(settings.engine, sock, handshake)
        if limit.cancelled_caught:
            raise ConnectFailure(
                f"TLS with {key}: the peer stayed silent in the handshake for"
                f" {settings.handshake_timeout:g}s",
                TLS_FAILURE,
            )
        # The lists may have changed while the handshake went on.
        refuse_revoked(result.peer, settings.revocations)
        shaken = True
    except BaseException as error:
        settings.engine.close_later(sock)
        if by_revocation(error):
            settings.counters.counter("istio_crl_policy_rejections", "source").add()
        raise
    finally:
        observe_stage(settings.counters, False, "tls", shaken, started)
    return result


def by_revocation(error: BaseException) -> bool:
    """Whether we refused the peer because its certificate is revoked."""
    return isinstance(error, PeerRefused) and error.alert is Alert.CERTIFICATE_REVOKED
