"""What the tunnels of all pods of a worker have in common."""

import time

from ztunnel.http2.settings import LocalSettings
from ztunnel.linux.sockets import Keepalive
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.relay.engine import Engine
from ztunnel.relay.tunnel import Keepalive as TunnelKeepalive
from ztunnel.telemetry.counters import Counters
from ztunnel.tls.contexts import ContextCache
from ztunnel.tls.crl import RevocationList


class PoolSettings:
    """What all pools of a worker have in common."""

    def __init__(
        self,
        engine: Engine,
        contexts: ContextCache,
        certificates: CertificateStore,
        *,
        mark: int | None,
        keepalive: Keepalive | None,
        max_streams: int,
        idle_timeout: float,
        connect_timeout: float,
        handshake_timeout: float,
        tunnel_keepalive: TunnelKeepalive,
        http: LocalSettings,
        counters: Counters,
    ) -> None:
        self.engine = engine
        self.counters = counters
        self.contexts = contexts
        self.certificates = certificates
        self.mark = mark
        self.keepalive = keepalive
        self.max_streams = max_streams
        self.idle_timeout = idle_timeout
        self.connect_timeout = connect_timeout
        self.handshake_timeout = handshake_timeout
        self.tunnel_keepalive = tunnel_keepalive
        self.http = http
        self.revocations: RevocationList | None = None


def observe_stage(counters: Counters, inbound: bool, stage: str, ok: bool, started: float) -> None:
    """See `Context.took`."""
    counters.histogram(
        "ztunnel_handshake_duration_seconds",
        "inbound" if inbound else "outbound",
        stage,
        "ok" if ok else "failed",
    ).observe(time.monotonic() - started)
