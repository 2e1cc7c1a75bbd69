"""A stream of a tunnel to another network's gateway, for a second tunnel to run inside."""

import socket

import trio

from ztunnel.hbone.events import TunnelAccepted, TunnelRefused
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.stream import Stream
from ztunnel.proxy.failure import ConnectFailure
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import Outcome
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.tunnel import StreamOwner, Tunnel
from ztunnel.telemetry.labels import CONNECT


class OuterStream(StreamOwner):
    """Asks the gateway for `authority` once a tunnel to it has room."""

    __slots__ = ("_authority", "_done", "_engine", "_failure", "_ours", "_stream", "_tunnel",
                 "given_up")  # fmt: skip

    def __init__(self, engine: Engine, authority: str) -> None:
        self._engine = engine
        self._authority = authority
        self._done = trio.Event()
        self._failure: ConnectFailure | None = None
        self._ours: socket.socket | None = None
        self._tunnel: Tunnel | None = None
        self._stream: Stream | None = None
        self.given_up = False

    async def socket(self) -> socket.socket:
        """The near end, once the gateway has accepted. Raises ConnectFailure."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        assert self._ours is not None
        return self._ours

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """Ask the gateway."""
        if self.given_up:
            return
        self._tunnel = tunnel
        self._stream = tunnel.client.connect(self._authority)
        self._stream.owner = self
        tunnel.mark_dirty()

    def tunnel_failed(self, failure: ConnectFailure) -> None:
        """The gateway cannot be reached."""
        self._fail(failure)

    def accepted(self, event: TunnelAccepted) -> None:
        """The way is open."""
        tunnel = self._tunnel
        assert tunnel is not None
        if self.given_up:
            tunnel.http.reset(event.stream, ErrorCode.CANCEL, self._engine.now)
            event.stream.owner = None
            tunnel.mark_dirty()
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        StreamFlow(tunnel, event.stream, theirs, self, app_is_client=True)
        self._ours = ours
        self._done.set()
        self._engine.woken = True

    def refused(self, event: TunnelRefused) -> None:
        """The gateway does not know the service, or does not let us."""
        words = f"the gateway refused {self._authority}: {event.reason}"
        self._fail(ConnectFailure(words, CONNECT))

    def lost(self, reason: str) -> None:
        """The outer tunnel broke."""
        self._fail(ConnectFailure(f"the tunnel to the gateway broke: {reason}", CONNECT))

    def flow_ended(self, outcome: Outcome) -> None:
        """The inner tunnel sees its socket close, and says what that means."""

    def _fail(self, failure: ConnectFailure) -> None:
        self._failure = failure
        self._done.set()
        self._engine.woken = True
