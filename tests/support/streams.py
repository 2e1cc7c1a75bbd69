"""Connections through one tunnel, both of whose ends are here, with an application at each."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.support import pki, tls
from tests.support.sockets import loopback, tcp_pair
from ztunnel.hbone.client import TunnelClient
from ztunnel.hbone.events import ConnectRequested, TunnelAccepted
from ztunnel.hbone.server import TunnelServer
from ztunnel.http2.events import SettingsReceived
from ztunnel.http2.settings import LocalSettings
from ztunnel.kernel.paths import KernelPaths
from ztunnel.mesh.identity import Identity
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import Outcome
from ztunnel.relay.kernel_tunnel import make_tunnel
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.stream_owner import StreamOwner
from ztunnel.relay.tunnel import Tunnel
from ztunnel.tls.contexts import Records

AUTHORITY = pki.make_root()
PATIENCE = 60  # seconds, on a machine that may be busy or emulated


class End:
    """One application with its proxy's side of a stream."""

    def __init__(self) -> None:
        self.app, self.near = tcp_pair()
        self.outcome: Outcome | None = None
        self.ended = trio.Event()
        self.flow: StreamFlow | None = None

    def flow_ended(self, outcome: Outcome) -> None:
        assert self.outcome is None
        self.outcome = outcome
        self.ended.set()

    async def result(self) -> Outcome:
        with trio.fail_after(PATIENCE):
            await self.ended.wait()
        assert self.outcome is not None
        return self.outcome


class Opening(StreamOwner):
    """A client's stream until it is accepted."""

    def __init__(self, tunnel: Tunnel, end: End, running: trio.Event) -> None:
        self.tunnel = tunnel
        self.end = end
        self.running = running

    def accepted(self, event: TunnelAccepted) -> None:
        end = self.end
        end.flow = StreamFlow(self.tunnel, event.stream, end.near, end, app_is_client=True)
        self.running.set()


class Owner:
    """Of a tunnel: remembers why it was lost, hands on what happens."""

    def __init__(self, handle: Callable[[Tunnel, Any], None]) -> None:
        self.handle = handle
        self.lost: str | None = None
        self.ended = trio.Event()

    def event(self, tunnel: Tunnel, event: Any) -> None:
        self.handle(tunnel, event)

    def tunnel_lost(self, tunnel: Tunnel, reason: str) -> None:
        self.lost = reason
        self.ended.set()

    async def end(self) -> str:
        """Why the tunnel was lost, when it is."""
        with trio.fail_after(PATIENCE):
            await self.ended.wait()
        return self.lost or ""


class Joined:
    """Both tunnel ends, and connections through them.

    Args:
        client_path, server_path: "tls" for an end that never moves into the kernel; "ktls" for one
            that does where the engine has that path.
    """

    def __init__(
        self,
        engine: Engine,
        settings: LocalSettings,
        records: Records = "own",
        client_path: str = "tls",
        server_path: str = "tls",
    ) -> None:
        certificate = AUTHORITY.workload(Identity("cluster.local", "ns", "sa"))
        near, far = tls.shake(tls.client(certificate, records), tls.server(certificate, records))
        near_socket, far_socket = loopback()
        self.ready = trio.Event()
        self.servers: list[End] = []
        self.client_owner = Owner(self._client_event)
        self.server_owner = Owner(self._server_event)
        make: dict[str, Callable[..., Tunnel]] = {"tls": Tunnel, "ktls": make_tunnel}
        self.client = make[client_path](
            engine, near_socket, near.session, TunnelClient(settings), near.leftover,
            self.client_owner,
        )  # fmt: skip
        self.server = make[server_path](
            engine, far_socket, far.session, TunnelServer(settings), far.leftover,
            self.server_owner,
        )  # fmt: skip

    def _client_event(self, tunnel: Tunnel, event: Any) -> None:
        if isinstance(event, SettingsReceived) and event.first:
            self.ready.set()

    def _server_event(self, tunnel: Tunnel, event: Any) -> None:
        if isinstance(event, ConnectRequested):
            end = End()
            self.servers.append(end)
            tunnel.server.accept(event.stream)
            tunnel.mark_dirty()
            end.flow = StreamFlow(tunnel, event.stream, end.near, end, app_is_client=False)

    async def connect(self) -> tuple[End, End]:
        """A connection through the tunnel: the client's end and the server's."""
        with trio.fail_after(PATIENCE):
            await self.ready.wait()
            end, running = End(), trio.Event()
            stream = self.client.client.connect("10.0.0.1:80")
            stream.owner = Opening(self.client, end, running)
            self.client.mark_dirty()
            await running.wait()
        return end, self.servers[-1]


@asynccontextmanager
async def joined(
    frame: int = 1 << 20,
    window: int = 256 * 1024,
    records: Records = "own",
    paths: KernelPaths | None = None,
    client_path: str = "tls",
    server_path: str = "tls",
) -> AsyncIterator[Joined]:
    """A tunnel in a running engine."""
    engine = Engine()
    if paths is not None:
        engine.use_paths(paths)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        settings = LocalSettings(initial_window=window, max_frame_size=frame)
        made = Joined(engine, settings, records, client_path, server_path)
        yield made
        made.client.close("test over")
        with trio.CancelScope(shield=True):
            await trio.sleep(0.02)
        made.server.close("test over")
        for end in made.servers:
            end.app.socket.close()
        nursery.cancel_scope.cancel()
    engine.close()
