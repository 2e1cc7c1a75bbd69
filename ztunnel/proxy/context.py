"""What the connections of a worker share."""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from ztunnel.config import Config
from ztunnel.config.model import OriginalSource
from ztunnel.http2.settings import LocalSettings
from ztunnel.linux.sockets import Keepalive, SocketAddress
from ztunnel.mesh.authorize import Verdict
from ztunnel.mesh.outbound import ILLEGAL_PORTS
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.admission import Admission
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.proxy.pool_settings import PoolSettings, observe_stage
from ztunnel.proxy.registry import Registry
from ztunnel.relay.engine import Engine
from ztunnel.relay.tunnel import Keepalive as TunnelKeepalive
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.counters import Cell, Counters
from ztunnel.telemetry.labels import UNKNOWN_PEER, Peer
from ztunnel.telemetry.peers import PeerTable
from ztunnel.tls.contexts import ContextCache

log = logging.getLogger("ztunnel.proxy")

Resolve = Callable[[str], Awaitable[Sequence[str]]]
LookUp = Callable[[str], Awaitable[bool]]

_WINDOW = 256 * 1024  # bytes a stream starts with; see relay/stream.py
SOCKS_PORT = 15080


class Context:
    """One per worker.

    Args:
        worker: its name, for the list of connections.
        resolve: a hostname's addresses (canonical text), empty when there are none.
        look_up: asks the control plane for an on-demand key; false when nothing came.
    """

    def __init__(
        self,
        config: Config,
        worker: str,
        engine: Engine,
        nursery: trio.Nursery,
        state: MeshState,
        certificates: CertificateStore,
        access_log: AccessLog,
        counters: Counters,
        resolve: Resolve,
        look_up: LookUp,
    ) -> None:
        sockets, tunnel = config.sockets, config.tunnel
        self.config = config
        self.worker = worker
        self.engine = engine
        self.nursery = nursery
        self.state = state
        self.certificates = certificates
        self.access_log = access_log
        self.resolve = resolve
        self.look_up = look_up
        self.contexts = ContextCache(tunnel.tls_records.value)
        self.counters = counters
        self.labels = counters.table
        self.peers = PeerTable()
        self.registry = Registry()
        self.admission = Admission()
        self.rng = random.Random()
        self.warned_source = False
        self.mark = sockets.packet_mark
        self.keepalive = _keepalive(config)
        # Of every tunnelled connection, so that it is at hand.
        self.answered = counters.histogram(
            "ztunnel_handshake_duration_seconds", "outbound", "answer", "ok"
        )
        self._paths: dict[str, tuple[Cell, Cell]] = {}
        # Whether others listen on the same ports.
        self.has_company = sockets.port_reuse and config.workers > 1
        self.keep_source = sockets.original_source is not OriginalSource.NEVER
        self.must_keep_source = sockets.original_source is OriginalSource.ALWAYS
        self.illegal_ports = ILLEGAL_PORTS | {SOCKS_PORT} if config.socks5 else ILLEGAL_PORTS
        engine.buffers.windows.largest = tunnel.stream_window
        engine.buffers.windows.left = tunnel.window_budget
        # A tunnel may have to be opened, twice for another network, before a CONNECT is answered.
        self.answer_timeout: Final = 3 * tunnel.handshake_timeout
        self.http = LocalSettings(
            initial_window=min(_WINDOW, tunnel.stream_window),
            connection_window=tunnel.connection_window,
            max_frame_size=tunnel.frame_size,
        )
        self.pools = PoolSettings(
            engine,
            self.contexts,
            certificates,
            mark=self.mark,
            keepalive=self.keepalive,
            max_streams=tunnel.max_streams_per_connection,
            idle_timeout=tunnel.unused_release_timeout,
            connect_timeout=sockets.connect_timeout,
            handshake_timeout=tunnel.handshake_timeout,
            tunnel_keepalive=TunnelKeepalive(tunnel.ping_interval, tunnel.ping_timeout),
            http=self.http,
            counters=counters,
        )

    def may_join(self, workload: Workload) -> bool:
        """Whether it may be joined with other pods of this node."""
        return self.config.kernel.join_pods if workload.join is None else workload.join

    def refused(
        self,
        source: SocketAddress,
        destination: SocketAddress,
        inbound: bool,
        cause: str,
        reason: str,
    ) -> None:
        """A connection ended before it was known whose it is: logs and counts it.

        Args:
            cause: a value of the label `reason`: few words, never a peer's.
            reason: the same for people.
        """
        self.access_log.refused(source, destination, inbound, reason)
        direction = "inbound" if inbound else "outbound"
        self.counters.counter("ztunnel_early_denials", direction, cause).add()

    def took(self, inbound: bool, stage: str, ok: bool, started: float) -> None:
        """Observes how long a stage of a connection's making took.

        Args:
            stage: "connect" (TCP), "tls", or "answer" (to CONNECT).
            started: on the monotonic clock.
        """
        observe_stage(self.counters, inbound, stage, ok, started)

    def relayed(self, path: str, connections: int, count: int) -> None:
        """Counts what moved on a relay path."""
        cells = self._paths.get(path)
        if cells is None:
            cells = self._paths[path] = (
                self.counters.counter("ztunnel_relay_connections", path),
                self.counters.counter("ztunnel_relay_bytes", path),
            )
        cells[0].value += connections
        cells[1].value += count

    def revoked(self, cause: str) -> None:
        """Counts a live connection that was ended because it is no longer allowed."""
        self.counters.counter("ztunnel_revoked_connections", cause).add()

    def judged(self, verdict: Verdict) -> None:
        """Counts what the policies said."""
        self.counters.counter(
            "ztunnel_authorization_decisions",
            verdict.policy or "none",
            "allow" if verdict.allowed else "deny",
            "enforced",
        ).add()

    def dry_run(self, verdict: Verdict) -> None:
        """Tells what policies that are only tried out would have said."""
        level = logging.INFO if self.config.telemetry.policy_info_logging else logging.DEBUG
        for finding in verdict.dry_run:
            log.log(level, "%s", finding.words)
            self.counters.counter(
                "ztunnel_authorization_decisions",
                finding.policy or "none",
                "allow" if finding.allowed else "deny",
                "dry_run",
            ).add()

    def deadline(self, seconds: float) -> float:
        """A moment of the engine's clock, `seconds` from now."""
        return time.monotonic() + seconds

    def peer(self, workload: Workload | None) -> Peer:
        """What telemetry says of a workload."""
        return UNKNOWN_PEER if workload is None else self.peers.workload(workload)

    def spawn(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Starts a task for something that must wait. What it raises ends it alone."""
        self.nursery.start_soon(self._guarded, work, *arguments)

    async def _guarded(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            await work(*arguments)
        except Exception:
            log.exception("a connection could not be served")


def _keepalive(config: Config) -> Keepalive | None:
    settings = config.sockets.keepalive
    if not settings.enabled:
        return None
    return Keepalive(
        int(settings.time),
        int(settings.interval),
        settings.retries,
        settings.user_timeout is not None,
    )
