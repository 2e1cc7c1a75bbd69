"""What a peer may ask a pod's proxy for, and what it is told: a client made by hand, on a node."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.pair import ECHO, HOST, Pair
from tests.support.proxies import NAMESPACE, service
from tests.support.proxy_header import parse_proxy_header
from tests.support.sockets import connect, receive_all
from tests.support.tunnel import ClientTunnel, Flow, Refused, client_on
from ztunnel.hbone.baggage import Baggage, format_baggage
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.workload import ApplicationTunnel, ApplicationTunnelProtocol
from ztunnel.tls.spiffe import ServerMustBe

pytestmark = pytest.mark.root

CALLER = Identity("cluster.local", "street", "caller")


@asynccontextmanager
async def tunnel_to(pair: Pair, version: int = 4) -> AsyncIterator[ClientTunnel]:
    """As `CALLER`, from the first node."""
    certificate = pair.mesh.authority.workload(CALLER)
    address = pair.room.ip("server", version)
    transport = await connect(pair.room.node(1).network, address, 15008)
    verify = ServerMustBe((pair.server.identity,), None)
    async with client_on(transport, certificate, verify) as tunnel:
        yield tunnel


async def echoes(flow: Flow) -> bool:
    await flow.write(b"hello", end=True)
    return await flow.read_to_end() == b"hello"


async def test_the_pods_own_address_and_the_services_name(pair: Pair) -> None:
    pair.mesh.apply(service("echo", "10.96.0.50", {80: ECHO}))
    async with tunnel_to(pair) as tunnel:
        for authority in (f"{pair.room.ip('server')}:{ECHO}", f"{HOST}:80"):
            assert await echoes(await tunnel.connect(authority))
            line = await pair.mesh.line('direction="inbound"', f"dst.hbone_addr={authority}")
            assert f'src.identity="{CALLER.uri}"' in line
            assert f"dst.addr={pair.room.ip('server')}:15008" in line
            assert "bytes_sent=5 bytes_recv=5" in line


@pytest.mark.parametrize(
    ("authority", "status", "words"),
    [
        ("10.244.9.9:80", 400, "ip mismatch: {server} != 10.244.9.9"),
        ("[fd00:244:2::99]:80", 400, "ip mismatch"),
        ("{server}:15008", 503, "attempted recursive call to ourselves: port 15008"),
        ("{server}:15006", 503, "attempted recursive call to ourselves: port 15006"),
        ("{server}:15001", 503, "attempted recursive call to ourselves: port 15001"),
        ("{server}:7999", 503, "connect to {server}:7999: Connection refused"),
        ("unknown.example:80", 503, "no service unknown.example is known"),
        (f"{HOST}:81", 503, "has no port 81"),
        ("127.0.0.1:7000", 400, "ip mismatch: {server} != 127.0.0.1"),
    ],
)
async def test_what_is_not_for_this_pod_is_refused_and_says_why(
    pair: Pair, authority: str, status: int, words: str
) -> None:
    pair.mesh.apply(service("echo", "10.96.0.50", {80: ECHO}))
    at = {"server": pair.room.ip("server")}
    async with tunnel_to(pair) as tunnel:
        with pytest.raises(Refused) as refused:
            await tunnel.connect(authority.format(**at))
        assert refused.value.status == status
        line = await pair.mesh.line('direction="inbound"', words.format(**at))
        assert 'response_flags="CONNECT"' in line
        # The tunnel lives on.
        assert await echoes(await tunnel.connect(f"{at['server']}:{ECHO}"))


async def test_an_authority_that_is_none_is_a_bad_request(pair: Pair) -> None:
    async with tunnel_to(pair) as tunnel:
        with pytest.raises(Refused) as refused:
            await tunnel.connect("nonsense")
        assert refused.value.status == 400
        assert "nonsense" in await pair.mesh.line("connection failed", 'direction="inbound"')
        assert pair.mesh.counters.counter("ztunnel_early_denials", "inbound", "request").value == 1


async def test_the_answer_describes_the_pod(pair: Pair) -> None:
    async with tunnel_to(pair) as tunnel:
        flow = await tunnel.connect(f"{pair.room.ip('server')}:{ECHO}")
        assert flow.accepted is not None
        assert f"k8s.namespace.name={NAMESPACE}" in flow.accepted.baggage
        assert "service.name=server" in flow.accepted.baggage


async def test_the_answer_describes_nobody_where_that_is_switched_off(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pair.mesh.context.config
    silent = dataclasses.replace(config.tunnel, response_baggage=False)
    monkeypatch.setattr(pair.mesh.context, "config", dataclasses.replace(config, tunnel=silent))
    async with tunnel_to(pair) as tunnel:
        flow = await tunnel.connect(f"{pair.room.ip('server')}:{ECHO}")
        assert flow.accepted is not None
        assert flow.accepted.baggage == ""
        assert await echoes(flow)


async def test_a_client_that_the_mesh_does_not_know_is_reported_by_its_own_words(
    pair: Pair,
) -> None:
    said = format_baggage(Baggage("far", "street", "deployment", "hawker", "hawker", "v7", "", ""))
    async with tunnel_to(pair) as tunnel:
        authority = f"{pair.room.ip('server')}:{ECHO}"
        flow = await tunnel.connect(authority, baggage=said, forwarded=f"for=1.2.3.4;host={HOST}")
        assert await echoes(flow)
    line = await pair.mesh.line('direction="inbound"', "bytes_sent=5")
    assert 'src.workload="hawker" src.namespace="street"' in line
    assert 'src.cluster="far"' in line


@pytest.mark.parametrize("said", ["", f"for=1.2.3.4;host={HOST}", "host=other.example"])
async def test_the_service_that_a_client_meant_is_reported_if_it_is_the_pods(
    pair: Pair, said: str
) -> None:
    key = f"{NAMESPACE}/{HOST}"
    pair.mesh.apply(
        service("echo", "10.96.0.50", {80: ECHO}),
        dataclasses.replace(pair.server, services={key: {80: ECHO}}),
    )
    async with tunnel_to(pair) as tunnel:
        authority = f"{pair.room.ip('server')}:{ECHO}"
        assert await echoes(await tunnel.connect(authority, forwarded=said))
    line = await pair.mesh.line('direction="inbound"', "bytes_sent=5")
    assert f'dst.service="{HOST}"' in line


async def test_the_application_is_reached_from_the_clients_address(pair: Pair) -> None:
    listener = pair.listen(7001)
    async with tunnel_to(pair) as tunnel:
        ours = tunnel.transport.socket.getsockname()[0]
        flow = await tunnel.connect(f"{pair.room.ip('server')}:7001")
        accepted = await pair.accept(listener)
        assert accepted.socket.getpeername()[0] == ours
        await flow.end()


async def test_a_client_that_loses_interest_before_it_is_answered_leaves_a_line(
    pair: Pair,
) -> None:
    """The application's queue is full, so that the connect hangs; the client goes away."""
    network = pair.room.pod("server").network
    with network.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM) as full:
        full.bind(("0.0.0.0", 7002))
        full.listen(0)
        fillers = []
        with trio.move_on_after(2):
            while True:
                # From inside, where loopback is not captured.
                fillers.append(await connect(network, "127.0.0.1", 7002))
        async with tunnel_to(pair) as tunnel:
            with trio.move_on_after(1):
                await tunnel.connect(f"{pair.room.ip('server')}:7002")
        line = await pair.mesh.line('direction="inbound"', "error=")
        assert 'closed_by="' in line
        for filler in fillers:
            filler.socket.close()
    assert len(pair.mesh.context.registry) == 0


@pytest.mark.parametrize("loopback", [True, False], ids=["loopback", "own address"])
async def test_an_application_tunnel_hands_on_who_calls_in_a_proxy_header(
    pair: Pair, loopback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a waypoint behind this proxy: any address is taken, and the header says which."""
    tunnel_config = pair.mesh.context.config.tunnel
    changed = dataclasses.replace(
        pair.mesh.context.config,
        tunnel=dataclasses.replace(tunnel_config, localhost_app_tunnel=loopback),
    )
    monkeypatch.setattr(pair.mesh.context, "config", changed)
    proxied = ApplicationTunnel(ApplicationTunnelProtocol.PROXY, 15088)
    pair.mesh.apply(dataclasses.replace(pair.server, application_tunnel=proxied))
    listener = pair.listen(15088)
    async with tunnel_to(pair) as tunnel:
        ours = tunnel.transport.socket.getsockname()[0]
        flow = await tunnel.connect("10.96.0.99:80")
        accepted = await pair.accept(listener)
        seen = accepted.socket.getpeername()[0]
        assert seen == ("127.0.0.1" if loopback else ours)
        await flow.write(b"payload", end=True)
        with trio.fail_after(30):
            data = await receive_all(accepted)
        parsed = parse_proxy_header(data)
        assert parsed is not None
        header, length = parsed
        assert header.source[0] == ours
        assert header.destination == ("10.96.0.99", 80)
        assert header.identity == CALLER.uri
        assert data[length:] == b"payload"
        await accepted.aclose()
    line = await pair.mesh.line('direction="inbound"', "bytes_recv=7")
    assert "handed on with a PROXY header" in line
