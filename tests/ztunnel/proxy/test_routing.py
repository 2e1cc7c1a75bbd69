"""Where connections go: services, plain workloads, strangers, other networks, and what fails."""

import dataclasses
import ssl

import pytest
import trio

from tests.support.hand_made import node_address
from tests.support.pair import ECHO, KEY, VIP, Pair
from tests.support.proxies import service
from tests.support.sockets import (
    ask,
    connect,
    ends,
    listen,
    serve_echo,
)
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.workload import TunnelProtocol

pytestmark = pytest.mark.root


async def test_a_service_address_leads_to_an_endpoint(pair: Pair) -> None:
    pair.mesh.apply(
        service("echo", VIP, {80: ECHO}),
        dataclasses.replace(pair.server, services={KEY: {80: ECHO}}),
    )
    assert await ask(await pair.dial(80, VIP)) == b"hello"
    pair.mesh.pods["client"].close("enough")
    line = await pair.mesh.line('direction="outbound"')
    assert 'dst.service="echo.shop.svc.cluster.local"' in line


async def test_a_service_without_endpoints_is_refused_with_the_reason(pair: Pair) -> None:
    pair.mesh.apply(service("echo", VIP, {80: ECHO}))
    assert await ends(await pair.dial(80, VIP))
    assert "no healthy upstream" in await pair.mesh.line('direction="outbound"', "error=")


async def test_another_endpoint_is_tried_where_one_cannot_be_reached(pair: Pair) -> None:
    ghost = dataclasses.replace(
        pair.server,
        uid="Kubernetes//Pod/shop/ghost",
        name="ghost",
        addresses=("10.244.2.99",),
        services={KEY: {80: ECHO}},
        capacity=1000,  # chosen first, practically always
    )
    pair.mesh.apply(
        service("echo", VIP, {80: ECHO}),
        dataclasses.replace(pair.server, services={KEY: {80: ECHO}}),
        ghost,
    )
    assert await ask(await pair.dial(80, VIP)) == b"hello"


async def test_a_workload_outside_the_mesh_gets_plain_tcp(pair: Pair) -> None:
    plain = dataclasses.replace(pair.server, tunnel_protocol=TunnelProtocol.NONE)
    pair.mesh.apply(plain)
    assert await ask(await pair.dial()) == b"hello"
    pair.close()
    line = await pair.mesh.line('direction="outbound"')
    assert "plain TCP" in line
    assert 'path="copy"' in line


async def test_a_stranger_is_passed_through(pair: Pair) -> None:
    node = pair.room.node(2).network
    async with trio.open_nursery() as nursery:
        listener = listen(node, 7100)
        nursery.start_soon(serve_echo, listener)
        assert await ask(await pair.dial(7100, node_address(pair))) == b"hello"
        nursery.cancel_scope.cancel()
    pair.close()
    assert "passed through" in await pair.mesh.line('direction="outbound"')


async def test_a_server_with_another_identity_is_not_trusted(pair: Pair) -> None:
    other = pair.mesh.authority.workload(Identity("cluster.local", "shop", "impostor"))
    pair.mesh.certificates.received(dataclasses.replace(other, identity=pair.server.identity))
    assert await ends(await pair.dial())
    line = await pair.mesh.line('direction="outbound"', "error=")
    assert f"expected {pair.server.identity.uri}" in line
    assert "presented spiffe://cluster.local/ns/shop/sa/impostor" in line
    assert 'response_flags="TLS_FAILURE"' in line


@pytest.mark.parametrize("handshake_timeout", ["5s"])
async def test_a_peer_that_is_silent_in_the_handshake_costs_one_connection(pair: Pair) -> None:
    """It accepts TCP on the tunnel's port and never says a word."""
    silent = dataclasses.replace(
        pair.server,
        uid="Kubernetes//Pod/shop/silent",
        name="silent",
        addresses=(node_address(pair),),
    )
    pair.mesh.apply(silent)
    listener = listen(pair.room.node(2).network, 15008)
    async with listener:
        stream = await pair.dial(9, silent.addresses[0])
        # Others are served meanwhile.
        assert await ask(await pair.dial()) == b"hello"
        assert await ends(stream)
    assert "silent in the handshake" in await pair.mesh.line('direction="outbound"', "error=")


@pytest.mark.parametrize("handshake_timeout", ["1s"])
async def test_a_client_that_is_silent_in_the_handshake_is_closed(pair: Pair) -> None:
    stream = await connect(pair.room.node(1).network, pair.room.ip("server"), 15008)
    async with stream:
        with trio.fail_after(30):
            assert await stream.receive_some(1) == b""
    assert "silent in the TLS handshake" in await pair.mesh.line("connection failed")


async def test_a_client_without_certificate_is_refused(pair: Pair) -> None:
    stream = await connect(pair.room.node(1).network, pair.room.ip("server"), 15008)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    tls = trio.SSLStream(stream, context)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await tls.do_handshake()
        await tls.receive_some(1)
    await trio.aclose_forcefully(tls)
    assert "certificate" in await pair.mesh.line("connection failed")


async def test_without_a_certificate_of_our_own_nothing_is_sent(pair: Pair) -> None:
    pair.mesh.certificates.failed(pair.client.identity.uri, "the CA says no")
    pair.mesh.certificates._entries[pair.client.identity.uri].certificate = None
    assert await ends(await pair.dial())
    line = await pair.mesh.line('direction="outbound"', "error=")
    assert "the CA says no" in line
    assert 'response_flags="IDENTITY_ERROR"' in line
