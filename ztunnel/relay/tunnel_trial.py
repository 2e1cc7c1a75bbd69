"""The probe of kTLS: a connection through a tunnel whose two ends move into the kernel.

No handshake is needed for it: both ends are given the same random secrets.
"""

import os
from typing import Any

import trio

from ztunnel.hbone.client import TunnelClient
from ztunnel.hbone.events import ConnectRequested, TunnelAccepted
from ztunnel.hbone.server import TunnelServer
from ztunnel.http2.events import SettingsReceived
from ztunnel.http2.settings import LocalSettings
from ztunnel.relay.engine import Engine
from ztunnel.relay.kernel_tunnel import KernelTunnel
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.stream_owner import StreamOwner
from ztunnel.relay.trial import Ending, ProbeError, Room, Trial
from ztunnel.relay.tunnel import Tunnel
from ztunnel.tls.key_schedule import SUITES
from ztunnel.tls.records import Direction, OwnRecords

_SETTINGS = LocalSettings(max_frame_size=1 << 20)
_PLACE = "ktls.invalid:1"


class TunnelTrial(Trial):
    """See the module's docstring.

    Args:
        suite: name of the cipher suite.
    """

    def __init__(self, engine: Engine, suite: str) -> None:
        with Room() as room:
            client, self._near = room.pair()
            server, self._far = room.pair()
            near, far = room.pair()
        super().__init__(engine, client, server)
        self._suite = SUITES[suite]
        self._secrets = [os.urandom(self._suite.hash_length) for _ in range(2)]
        self._endings = Ending(), Ending()
        self._settings_came = trio.Event()
        self._running = trio.Event()
        self._lost = ""
        self._client_end = KernelTunnel(
            engine, near, self._records(False), TunnelClient(_SETTINGS), b"", self
        )
        self._server_end = KernelTunnel(
            engine, far, self._records(True), TunnelServer(_SETTINGS), b"", self
        )
        self.flows: list[StreamFlow] = []

    def _records(self, server_side: bool) -> OwnRecords:
        client, server = (Direction(self._suite, secret) for secret in self._secrets)
        ours, theirs = (server, client) if server_side else (client, server)
        return OwnRecords(ours, theirs, server_side=server_side)

    def event(self, tunnel: Tunnel, event: Any) -> None:
        """See `TunnelOwner`."""
        if isinstance(event, SettingsReceived) and tunnel is self._client_end:
            self._settings_came.set()
        elif isinstance(event, ConnectRequested):
            tunnel.server.accept(event.stream)
            tunnel.mark_dirty()
            self.run_flow(tunnel, event.stream, False)

    def tunnel_lost(self, tunnel: Tunnel, reason: str) -> None:
        """See `TunnelOwner`."""
        self._lost = self._lost or reason

    def run_flow(self, tunnel: Tunnel, stream: Any, app_is_client: bool) -> None:
        """The stream is open: relays from here on."""
        sock, ending = (
            (self._near, self._endings[0]) if app_is_client else (self._far, self._endings[1])
        )
        self.flows.append(StreamFlow(tunnel, stream, sock, ending, app_is_client))
        if app_is_client:
            self._running.set()

    async def prepare(self) -> None:
        await self._settings_came.wait()
        stream = self._client_end.client.connect(_PLACE)
        stream.owner = _Opening(self, self._client_end)
        self._client_end.mark_dirty()
        await self._running.wait()

    def half_way(self) -> None:
        self._client_end.enter_kernel()
        self._server_end.enter_kernel()

    def between(self) -> None:
        self._client_end.renew_keys()

    async def check(self, expected: int) -> None:
        for ending in self._endings:
            await ending.check(expected)
        for end in (self._client_end, self._server_end):
            if not (end.sending and end.receiving):
                raise ProbeError(self.engine.paths.reasons["ktls"] or "the kernel took no keys")
            if self.engine.paths.pipes is not None and not (end.spliced_in and end.spliced_out):
                raise ProbeError("the payload did not go through pipes")

    def why(self) -> str:
        return self._lost

    def close(self) -> None:
        for flow in self.flows:
            flow.abort("the probe is over")
        for end in (self._client_end, self._server_end):
            end.close("the probe is over")
        for sock in (self._near, self._far):
            self.engine.close_later(sock)
        super().close()


class _Opening(StreamOwner):
    """The stream until it is accepted."""

    def __init__(self, trial: TunnelTrial, tunnel: Tunnel) -> None:
        self._trial = trial
        self._tunnel = tunnel

    def accepted(self, event: TunnelAccepted) -> None:
        self._trial.run_flow(self._tunnel, event.stream, True)
