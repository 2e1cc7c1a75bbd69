"""IPv4 and IPv6: each way through the proxies works in both, and addresses stay themselves."""

import dataclasses
from collections.abc import AsyncIterator

import pytest
import trio

from tests.support.lab import lab
from tests.support.pair import KEY, Pair
from tests.support.proxies import NAMESPACE, proxies, service
from tests.support.sockets import connect, listen, receive_exactly, serve_echo
from ztunnel.mesh.address import IPNetwork, format_address, parse_network
from ztunnel.mesh.policy import Authorization, Match, PolicyAction, PolicyScope
from ztunnel.mesh.service import IPFamilies
from ztunnel.mesh.workload import NetworkAddress, TunnelProtocol

pytestmark = [pytest.mark.root, pytest.mark.parametrize("version", [4, 6])]

PORT = 7001
VIPS = {4: "10.96.0.50", 6: "fd00:10:96::50"}


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Every pod has an address of each family."""
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with proxies(room) as mesh:
            client, server = (
                mesh.enroll(name, addresses=(room.ip(name), room.ip(name, 6)))
                for name in ("client", "server")
            )
            made = Pair(room, mesh, client, server)
            yield made
            made.close()


async def travels(pair: Pair, version: int, host: str, port: int, seen: str) -> str:
    """One byte each way; the application sees `seen` as its client. The outbound log line."""
    at = pair.room.ip("server", version)
    listener = listen(pair.room.pod("server").network, PORT, at)
    async with listener:
        stream = await pair.dial(port, host)
        accepted = await pair.accept(listener)
        with trio.fail_after(30):
            await stream.send_all(b"there")
            assert await receive_exactly(accepted, 5) == b"there"
            await accepted.send_all(b"back")
            assert await receive_exactly(stream, 4) == b"back"
        assert accepted.socket.getpeername()[0] == seen
        await stream.aclose()
        await accepted.aclose()
    return await pair.mesh.line('direction="outbound"', "bytes_sent=5 bytes_recv=4")


def vips(pair: Pair, families: IPFamilies = IPFamilies.DUAL) -> None:
    described = dataclasses.replace(
        service("echo", VIPS[4], {80: PORT}),
        vips=tuple(NetworkAddress("", vip) for vip in VIPS.values()),
        ip_families=families,
    )
    pair.mesh.apply(described, dataclasses.replace(pair.server, services={KEY: {80: PORT}}))


async def test_outbound_to_a_pod_and_inbound(pair: Pair, version: int) -> None:
    server, client = pair.room.ip("server", version), pair.room.ip("client", version)
    line = await travels(pair, version, server, PORT, client)
    assert f"dst.addr={format_address((server, 15008))}" in line
    assert f"dst.hbone_addr={format_address((server, PORT))}" in line
    assert f"src.addr={format_address((client, 0))[:-2]}" in line
    assert f'dst.identity="{pair.server.identity.uri}"' in line
    inbound = await pair.mesh.line('direction="inbound"', "bytes_sent=4 bytes_recv=5")
    assert f"src.addr={format_address((client, 0))[:-2]}" in inbound
    assert 'src.workload="client"' in inbound


async def test_outbound_to_a_service_stays_in_the_clients_family(pair: Pair, version: int) -> None:
    vips(pair)
    client = pair.room.ip("client", version)
    line = await travels(pair, version, VIPS[version], 80, client)
    assert f"dst.hbone_addr={format_address((pair.room.ip('server', version), PORT))}" in line
    assert f'dst.service="echo.{NAMESPACE}.svc.cluster.local"' in line


async def test_a_service_of_the_other_family_only(pair: Pair, version: int) -> None:
    """The address asked for is of one family, and the endpoints may only be used in the other."""
    other = 10 - version
    vips(pair, IPFamilies.IPV4_ONLY if other == 4 else IPFamilies.IPV6_ONLY)
    line = await travels(pair, other, VIPS[version], 80, pair.room.ip("client", other))
    assert f"dst.hbone_addr={format_address((pair.room.ip('server', other), PORT))}" in line


async def test_plain_tcp_to_a_pod_outside_the_mesh(pair: Pair, version: int) -> None:
    pair.mesh.pods.pop("server").close("leaves")
    pair.mesh.captures.pop().remove()
    pair.mesh.apply(dataclasses.replace(pair.server, tunnel_protocol=TunnelProtocol.NONE))
    server, client = pair.room.ip("server", version), pair.room.ip("client", version)
    line = await travels(pair, version, server, PORT, client)
    assert f"dst.addr={format_address((server, PORT))}" in line
    assert "plain TCP" in line
    assert "dst.hbone_addr" not in line


async def test_passthrough(pair: Pair, version: int) -> None:
    node = next(iter(list(pair.room.topology.nodes.values())[1:]))
    address = next(str(a) for a in node.addresses if a.version == version)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, listen(pair.room.node(2).network, PORT, address))
        stream = await pair.dial(PORT, address)
        with trio.fail_after(30):
            await stream.send_all(b"abc")
            assert await receive_exactly(stream, 3) == b"abc"
        await stream.aclose()
        nursery.cancel_scope.cancel()
    line = await pair.mesh.line('direction="outbound"', "bytes_sent=3")
    assert f"passed through: no service or workload of the mesh has the address {address}" in line


async def test_plaintext_from_outside(pair: Pair, version: int) -> None:
    """Judged and handed on with the address that it came from; a policy on it takes effect."""
    server = pair.room.ip("server", version)
    network = pair.room.node(1).network
    listener = listen(pair.room.pod("server").network, PORT, server)
    async with listener:
        stream = await connect(network, server, PORT)
        mine = stream.socket.getsockname()[0]
        async with stream, await pair.accept(listener) as accepted:
            assert accepted.socket.getpeername()[0] == mine
            await stream.send_all(b"plain")
            assert await receive_exactly(accepted, 5) == b"plain"
        line = await pair.mesh.line('direction="inbound"', "bytes_recv=5")
        assert f"dst.addr={format_address((server, PORT))}" in line
        assert "src.identity" not in line
        rule = ((Match(not_source_ips=_networks("192.0.2.0/24", "2001:db8::/32")),),)
        pair.mesh.apply(
            Authorization(
                "known-only", NAMESPACE, PolicyScope.NAMESPACE, PolicyAction.DENY, rules=(rule,)
            )
        )
        async with await connect(network, server, PORT) as stream:
            with trio.fail_after(30):
                assert await stream.receive_some(1) == b""
        assert "shop/known-only (rule 1)" in await pair.mesh.line("DENY")


def _networks(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(parse_network(text) for text in texts)
