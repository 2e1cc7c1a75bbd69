"""A peer of the mesh made by hand: it speaks HBONE on a node, and does what a test wants."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from tests.support.pair import Pair
from tests.support.proxies import workload
from tests.support.sockets import listen
from tests.support.tunnel import Flow, ServerTunnel, TunnelListener, listener
from ztunnel.http2.settings import LocalSettings
from ztunnel.mesh.workload import Workload
from ztunnel.tls.spiffe import ClientMustBe

HBONE = 15008


def server_of(flow: Flow) -> ServerTunnel:
    """The tunnel of a flow that a client asked for."""
    assert isinstance(flow.tunnel, ServerTunnel)
    return flow.tunnel


async def echo(flow: Flow) -> None:
    """Accept, and give everything back, the end as well."""
    await server_of(flow).accept(flow)
    while data := await flow.read_some():
        await flow.write(data)
    if flow.reset is None and flow.tunnel.lost is None:
        await flow.end()


class HandMade:
    """The peer as the mesh knows it, and as the test has it in its hands."""

    def __init__(self, pair: Pair, described: Workload, server: TunnelListener) -> None:
        self.pair = pair
        self.workload = described
        self.server = server

    @property
    def tunnels(self) -> list[ServerTunnel]:
        """All that were ever opened to it, in order."""
        return self.server.tunnels

    def renamed(self, account: str) -> Workload:
        """The workload under another service account, which it cannot prove to have."""
        return dataclasses.replace(self.workload, service_account=account)

    async def dial(self, port: int = 80) -> trio.SocketStream:
        """The client pod connects to it."""
        return await self.pair.dial(port, self.workload.addresses[0])


def node_address(pair: Pair, number: int = 2) -> str:
    """Of a node, where nothing is captured."""
    return str(list(pair.room.topology.nodes.values())[number - 1].addresses[0])


@asynccontextmanager
async def hand_made(
    pair: Pair,
    on_request: Callable[[Flow], Awaitable[None]] = echo,
    *,
    name: str = "peer",
    port: int = HBONE,
    settings: LocalSettings | None = None,
    lifetime: float = 86400.0,
    **changes: object,
) -> AsyncIterator[HandMade]:
    """Serves tunnels on the second node, and is known to the mesh as a workload there.

    Args:
        lifetime: of its certificate, in seconds from now.
        changes: of the workload.
    """
    values: dict[str, object] = {
        "uid": f"Kubernetes//Pod/shop/{name}",
        "name": name,
        "service_account": name,
        "canonical_name": name,
        "workload_name": name,
        "addresses": (node_address(pair),),
        **changes,
    }
    described = dataclasses.replace(workload(pair.room, "server"), **values)  # type: ignore[arg-type]
    certificate = pair.mesh.authority.workload(described.identity, lifetime=lifetime + 120)
    sock = listen(pair.room.node(2).network, port)
    verify = ClientMustBe([described.trust_domain])
    async with listener(certificate, verify, on_request, settings=settings, sock=sock) as server:
        pair.mesh.apply(described)
        yield HandMade(pair, described, server)
    await sock.aclose()
