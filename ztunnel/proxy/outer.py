"""A stream of a tunnel to another network's gateway, for a second tunnel to run inside."""

import secrets
import socket
import time

import trio

from ztunnel.hbone.events import TunnelAccepted, TunnelRefused
from ztunnel.hbone.traceparent import RANDOM_BITS, new_traceparent
from ztunnel.http2.errors import UsageError
from ztunnel.http2.stream import Stream
from ztunnel.proxy.failure import ConnectFailure
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import Outcome
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.stream_owner import StreamOwner
from ztunnel.relay.tunnel import Tunnel
from ztunnel.telemetry.labels import CONNECT


class OuterStream(StreamOwner):
    """Asks the gateway for `authority` once a tunnel to it has room."""

    __slots__ = ("_authority", "_baggage", "_done", "_engine", "_failure", "_flow", "_given_up",
                 "_ours", "_stream", "_tunnel")  # fmt: skip

    def __init__(self, engine: Engine, authority: str, baggage: str) -> None:
        self._engine = engine
        self._authority = authority
        self._baggage = baggage
        self._done = trio.Event()
        self._failure: ConnectFailure | None = None
        self._ours: socket.socket | None = None
        self._tunnel: Tunnel | None = None
        self._stream: Stream | None = None
        self._flow: StreamFlow | None = None
        self._given_up = False

    async def socket(self) -> socket.socket:
        """The near end, once the gateway has accepted. Raises ConnectFailure."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        assert self._ours is not None
        ours, self._ours = self._ours, None
        return ours

    def release(self) -> None:
        """Nobody waits any more: lets go of what `socket` has not handed out."""
        self._given_up = True
        if self._ours is not None:
            self._engine.close_later(self._ours)
            self._ours = None
        stream, tunnel = self._stream, self._tunnel
        if stream is not None and tunnel is not None and not self._done.is_set():
            tunnel.client.abandon(stream, self._engine.now)
            tunnel.mark_dirty()

    def over(self, seconds: float) -> None:
        """The inner tunnel has ended. The gateway gets so long to end its half as well."""
        if self._flow is not None and not self._flow.closed:
            self._engine.expire_at(self, time.monotonic() + seconds)

    def expired(self) -> None:
        """A gateway that never ends its half must not keep a stream of ours."""
        if self._flow is not None:
            self._flow.abort("the gateway did not end the stream")

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """Ask the gateway."""
        if self._given_up:
            return
        try:
            self._stream = tunnel.client.connect(
                self._authority,
                baggage=self._baggage,
                traceparent=new_traceparent(secrets.randbits(RANDOM_BITS)),
            )
        except UsageError as error:
            self._fail(ConnectFailure(f"the gateway cannot be asked: {error}", CONNECT))
            return
        self._tunnel = tunnel
        self._stream.owner = self
        tunnel.mark_dirty()

    def tunnel_failed(self, failure: ConnectFailure) -> None:
        """The gateway cannot be reached."""
        self._fail(failure)

    def accepted(self, event: TunnelAccepted) -> None:
        """The way is open."""
        tunnel = self._tunnel
        assert tunnel is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._flow = StreamFlow(tunnel, event.stream, theirs, self, app_is_client=True)
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
        self._engine.in_time(self)

    def _fail(self, failure: ConnectFailure) -> None:
        self._failure = failure
        self._done.set()
        self._engine.woken = True
