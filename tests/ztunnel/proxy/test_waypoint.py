"""Ways that are not straight: through waypoints, and through the gateway of another network."""

import dataclasses
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.support.hand_made import HandMade, hand_made, node_address, server_of
from tests.support.pair import ECHO, HOST, KEY, VIP, Pair
from tests.support.proxies import NAMESPACE, service
from tests.support.proxy_header import ProxyHeader, parse_proxy_header
from tests.support.sockets import ask, connect, ends, receive_all, receive_exactly, until
from tests.support.tunnel import Flow, Refused, client_on
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
)
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import (
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Workload,
    WorkloadStatus,
)
from ztunnel.tls.spiffe import ServerMustBe

pytestmark = pytest.mark.root

WAYPOINT_HOST = "waypoint.shop.svc.cluster.local"
WAYPOINT_KEY = f"{NAMESPACE}/{WAYPOINT_HOST}"
BY_NAME = GatewayAddress(NamespacedHostname(NAMESPACE, WAYPOINT_HOST))


class Waypoint:
    """Takes connections and makes them anew, under its own identity, to the server pod."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.requests: list[tuple[str, str, str]] = []
        """authority, baggage and forwarded of each"""

    async def serve(self, flow: Flow) -> None:
        request = flow.request
        assert request is not None
        self.requests.append((str(request.authority), request.baggage, request.forwarded))
        pair = self.pair
        certificate = pair.mesh.authority.workload(Identity("cluster.local", NAMESPACE, "waypoint"))
        address = pair.room.ip("server")
        transport = await connect(pair.room.node(2).network, address, 15008)
        verify = ServerMustBe([pair.server.identity])
        async with client_on(transport, certificate, verify) as tunnel:
            try:
                onward = await tunnel.connect(f"{address}:{ECHO}")
            except Refused as refusal:
                await server_of(flow).refuse(flow, 503, str(refusal))
                return
            await server_of(flow).accept(flow)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, flow, onward)
                nursery.start_soon(pump, onward, flow)


async def pump(source: Flow, target: Flow) -> None:
    while data := await source.read_some():
        await target.write(data)
    if source.ended:
        await target.end()


def by_address(pair: Pair) -> GatewayAddress:
    return GatewayAddress(NetworkAddress("", node_address(pair)))


def through(pair: Pair, waypoint: GatewayAddress | None) -> tuple[Service, Workload]:
    """The echo service with a waypoint, and the server pod as its endpoint."""
    return (
        dataclasses.replace(service("echo", VIP, {80: ECHO}), waypoint=waypoint),
        dataclasses.replace(pair.server, services={KEY: {80: ECHO}}),
    )


def principal(name: str) -> Authorization:
    exact = StringMatch(StringMatchKind.EXACT, f"cluster.local/ns/{NAMESPACE}/sa/{name}")
    return Authorization(
        f"only-{name}", NAMESPACE, PolicyScope.NAMESPACE, PolicyAction.ALLOW,
        rules=(((Match(principals=(exact,)),),),),
    )  # fmt: skip


def waypoint_service() -> Service:
    return Service(
        "waypoint", NAMESPACE, WAYPOINT_HOST, vips=(NetworkAddress("", "10.96.0.60"),),
        ports={15008: 15008},
    )  # fmt: skip


@pytest.mark.parametrize("how", ["address", "hostname"])
async def test_a_service_is_reached_through_its_waypoint(pair: Pair, how: str) -> None:
    waypoint = Waypoint(pair)
    async with hand_made(
        pair, waypoint.serve, name="waypoint", services={WAYPOINT_KEY: {15008: 15008}}
    ):
        pair.mesh.apply(waypoint_service())
        pair.mesh.apply(*through(pair, by_address(pair) if how == "address" else BY_NAME))
        pair.mesh.apply(principal("waypoint"))
        stream = await pair.dial(80, VIP)
        assert await ask(stream) == b"hello"
        await stream.aclose()
        [(authority, baggage, forwarded)] = waypoint.requests
        assert authority == f"{VIP}:80"
        assert "service.name=client" in baggage
        source = pair.room.ip("client")
        assert forwarded.startswith(f'for="{source}:')
        assert forwarded.endswith(f";host={HOST}")
        line = await pair.mesh.line('direction="outbound"', "connection complete")
        assert 'dst.workload="waypoint"' in line
        assert f"dst.hbone_addr={VIP}:80" in line
        # The destination knows the waypoint only.
        line = await pair.mesh.line('direction="inbound"', "connection complete")
        assert 'src.identity="spiffe://cluster.local/ns/shop/sa/waypoint"' in line
        assert "allowed by policy shop/only-waypoint" in line
        # Who goes past the waypoint is refused by that policy, as anybody else is.
        assert await ends(await pair.dial())
        await pair.mesh.line('direction="inbound"', 'response_flags="DENY"')


async def test_a_pod_is_reached_through_its_waypoint(pair: Pair) -> None:
    waypoint = Waypoint(pair)
    async with hand_made(pair, waypoint.serve, name="waypoint"):
        pair.mesh.apply(dataclasses.replace(pair.server, waypoint=by_address(pair)))
        assert await ask(await pair.dial()) == b"hello"
        [(authority, _, forwarded)] = waypoint.requests
        assert authority == f"{pair.room.ip('server')}:{ECHO}"
        assert ";host" not in forwarded


async def test_without_its_waypoint_nothing_is_reached(pair: Pair) -> None:
    pair.mesh.apply(*through(pair, BY_NAME))
    assert await ends(await pair.dial(80, VIP))
    line = await pair.mesh.line('direction="outbound"', "error=")
    assert f"service shop/echo requires waypoint {WAYPOINT_KEY}, which cannot be used" in line
    assert "is it deployed?" in line


async def test_an_unhealthy_waypoint_is_not_gone_past(pair: Pair) -> None:
    waypoint = Waypoint(pair)
    async with hand_made(pair, waypoint.serve, name="waypoint", status=WorkloadStatus.UNHEALTHY):
        pair.mesh.apply(*through(pair, by_address(pair)))
        assert await ends(await pair.dial(80, VIP))
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert "requires waypoint" in line
        assert "unhealthy" in line
        assert not waypoint.requests


async def test_a_waypoint_that_refuses_says_why(pair: Pair) -> None:
    waypoint = Waypoint(pair)
    async with hand_made(pair, waypoint.serve, name="waypoint"):
        pair.mesh.apply(*through(pair, by_address(pair)), principal("somebody-else"))
        assert await ends(await pair.dial(80, VIP))
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert "status 503: the peer answered CONNECT with status 401" in line


async def test_a_waypoint_that_is_added_leaves_live_connections_alone(pair: Pair) -> None:
    pair.mesh.apply(*through(pair, None))
    live = await pair.dial(80, VIP)
    assert await ask(live) == b"hello"
    waypoint = Waypoint(pair)
    async with hand_made(pair, waypoint.serve, name="waypoint"):
        pair.mesh.apply(*through(pair, by_address(pair)))
        pair.mesh.apply(
            dataclasses.replace(pair.server, services={KEY: {80: ECHO}}, waypoint=by_address(pair))
        )
        assert await ask(live) == b"hello"
        assert await ask(await pair.dial(80, VIP)) == b"hello"
        assert len(waypoint.requests) == 1
        assert await ask(live) == b"hello"


# ---- a waypoint that is itself a captured pod ("sandwich")


async def test_a_captured_waypoint_gets_what_is_for_its_services(pair: Pair) -> None:
    """It is asked for an address that is not its own, and that is right."""
    at_server = GatewayAddress(NetworkAddress("", pair.room.ip("server")))
    listener = pair.listen(80)
    pair.mesh.apply(dataclasses.replace(service("echo", VIP, {80: ECHO}), waypoint=at_server))
    stream = await pair.dial(80, VIP)
    accepted = await pair.accept(listener)
    await accepted.send_all(b"waypoint")
    with trio.fail_after(30):
        assert await receive_exactly(stream, 8) == b"waypoint"


async def test_a_captured_waypoint_learns_by_proxy_protocol_who_wants_what(pair: Pair) -> None:
    port = 15088
    at_server = GatewayAddress(NetworkAddress("", pair.room.ip("server")))
    listener = pair.listen(port)
    tunnel = ApplicationTunnel(ApplicationTunnelProtocol.PROXY, port)
    pair.mesh.apply(
        dataclasses.replace(pair.server, application_tunnel=tunnel),
        dataclasses.replace(service("echo", VIP, {80: ECHO}), waypoint=at_server),
    )
    stream = await pair.dial(80, VIP)
    await stream.send_all(b"payload")
    accepted = await pair.accept(listener)
    assert accepted.socket.getpeername()[0] == "127.0.0.1"
    received = b""
    found: tuple[ProxyHeader, int] | None = None
    with trio.fail_after(30):
        while found is None or len(received) < found[1] + 7:
            received += await accepted.receive_some(1000)
            found = parse_proxy_header(received)
    header, length = found
    assert received[length:] == b"payload"
    assert header.source[0] == pair.room.ip("client")
    assert header.destination == (VIP, 80)
    assert header.identity == pair.client.identity.uri
    await stream.aclose()
    await accepted.aclose()
    line = await pair.mesh.line('direction="inbound"', "handed on with a PROXY header")
    assert "bytes_recv=7" in line  # the header is not the client's


# ---- another network


def far(pair: Pair, *names: Identity) -> tuple[Service, Workload]:
    """The echo service with one endpoint, which is in another network."""
    return (
        dataclasses.replace(service("echo", VIP, {80: ECHO}), subject_alt_names=names),
        dataclasses.replace(
            pair.server,
            uid="far//Pod/shop/server",
            name="far",
            network="other",
            addresses=("10.244.2.99",),
            services={KEY: {80: ECHO}},
            network_gateway=GatewayAddress(NetworkAddress("", node_address(pair))),
        ),
    )


class NetworkGateway:
    """Ends the outer tunnel, and hands the bytes of the inner one on as they are."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.requests: list[tuple[str, str]] = []

    async def serve(self, flow: Flow) -> None:
        request = flow.request
        assert request is not None
        self.requests.append((str(request.authority), request.baggage))
        pair = self.pair
        network = pair.room.node(2).network
        async with await connect(network, pair.room.ip("server"), 15008) as onward:
            await server_of(flow).accept(flow)

            async def there() -> None:
                while data := await flow.read_some():
                    await onward.send_all(data)
                await onward.send_eof()

            async def back() -> None:
                async for data in onward:
                    await flow.write(bytes(data))
                await flow.end()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(there)
                nursery.start_soon(back)


async def test_another_network_is_reached_by_a_tunnel_in_a_tunnel(pair: Pair) -> None:
    gateway = NetworkGateway(pair)
    pair.mesh.pods["client"].network_header = ((b"x-forwarded-network", b"here"),)
    async with hand_made(pair, gateway.serve, name="gateway") as peer:
        pair.mesh.apply(*far(pair, pair.server.identity))
        streams = [await pair.dial(80, VIP) for _ in range(3)]
        for stream in streams:
            assert await ask(stream) == b"hello"
        # One tunnel to the gateway, and in it one for each connection.
        assert len(peer.tunnels) == 1
        assert {authority for authority, _ in gateway.requests} == {f"{HOST}:80"}
        assert all("service.name=client" in baggage for _, baggage in gateway.requests)
        assert pair.mesh.pods["server"].tunnel_counts[2:] == (3, 3)
        for stream in streams:
            await stream.send_eof()
            with trio.fail_after(30):
                assert await receive_all(stream) == b""
        line = await pair.mesh.line('direction="outbound"', "connection complete")
        assert f"dst.hbone_addr={HOST}:80" in line
        assert f'dst.identity="{pair.server.identity.uri}"' in line
        assert "error=" not in line
        line = await pair.mesh.line('direction="inbound"', "connection complete")
        assert f'src.identity="{pair.client.identity.uri}"' in line
        assert 'src.workload="client"' in line  # by its own words: the address is the gateway's
        # What is left of it goes away by itself.
        pair.mesh.pods["client"].tick(time.monotonic() + 6)
        await until(lambda: pair.mesh.pods["client"].tunnel_counts[:2] == (1, 0))


async def refuse(flow: Flow) -> None:
    await server_of(flow).refuse(flow, 503, "no such service here")


async def say_nothing(flow: Flow) -> None:
    """The CONNECT stays without an answer."""


async def accept_and_say_nothing(flow: Flow) -> None:
    await server_of(flow).accept(flow)
    await flow.read_to_end()


async def accept_and_cut(flow: Flow) -> None:
    """Bytes that are no TLS come in the same breath as the answer, and then the end."""
    server_of(flow).connection.accept(flow.stream)
    await flow.write(b"HTTP/1.1 400 Bad Request\r\n\r\n", end=True)


@pytest.mark.parametrize("handshake_timeout", ["2s"])
@pytest.mark.parametrize(
    ("gateway", "words"),
    [
        (refuse, "no such service here"),
        (say_nothing, "did not answer the CONNECT request"),
        (accept_and_say_nothing, "silent in the handshake"),
        (accept_and_cut, "the peer does not speak TLS"),
    ],
)
async def test_a_gateway_that_fails_costs_the_connection_and_nothing_else(
    pair: Pair, gateway: Callable[[Flow], Awaitable[None]], words: str
) -> None:
    async with hand_made(pair, gateway, name="gateway") as peer:
        pair.mesh.apply(*far(pair, pair.server.identity))
        stream = await pair.dial(80, VIP)
        assert await ends(stream)
        assert words in await pair.mesh.line('direction="outbound"', "error=")
        nothing_is_left_in(peer)
        await until(lambda: pair.mesh.pods["client"].tunnel_counts[:2] == (1, 0))
        assert await ask(await pair.dial()) == b"hello"


def nothing_is_left_in(peer: HandMade) -> None:
    """Nobody waits for a tunnel any more, and none is being opened."""
    for pool in peer.pair.mesh.pods["client"]._pools.values():
        assert not pool._waiting
        assert not pool._opening


async def test_the_end_of_the_inner_tunnel_must_be_the_service(pair: Pair) -> None:
    gateway = NetworkGateway(pair)
    async with hand_made(pair, gateway.serve, name="gateway"):
        somebody = Identity("cluster.local", NAMESPACE, "somebody")
        pair.mesh.apply(*far(pair, somebody))
        assert await ends(await pair.dial(80, VIP))
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert f"expected {somebody.uri}, peer presented {pair.server.identity.uri}" in line


async def test_a_service_that_names_nobody_is_not_reached_in_another_network(pair: Pair) -> None:
    async with hand_made(pair, refuse, name="gateway") as peer:
        pair.mesh.apply(*far(pair))
        assert await ends(await pair.dial(80, VIP))
        assert "names no identities" in await pair.mesh.line('direction="outbound"', "error=")
        assert not peer.tunnels
