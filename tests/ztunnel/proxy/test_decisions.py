"""Decisions that need an answer first, and services of the less usual kinds."""

import dataclasses
from collections.abc import AsyncIterator

import pytest
import trio

from tests.support.hand_made import node_address
from tests.support.lab import lab
from tests.support.pair import ECHO, HOST, KEY, VIP, Pair
from tests.support.proxies import NAMESPACE, proxies, service
from tests.support.sockets import ask, ends, listen, serve_echo
from ztunnel.mesh.service import HealthPolicy, LoadBalancing, LoadBalancingMode
from ztunnel.mesh.workload import NetworkMode, TunnelProtocol, Workload, WorkloadStatus

pytestmark = pytest.mark.root


def external(pair: Pair, **changes: object) -> Workload:
    """A machine outside the mesh that is known by its name only."""
    values: dict[str, object] = {
        "uid": "machine", "name": "machine", "service_account": "machine", "addresses": (),
        "hostname": "db.example.com", "tunnel_protocol": TunnelProtocol.NONE, **changes,
    }  # fmt: skip
    return dataclasses.replace(pair.server, **values)  # type: ignore[arg-type]


async def test_a_workload_with_only_a_hostname_is_resolved(pair: Pair) -> None:
    pair.mesh.names["db.example.com"] = [node_address(pair), "fd00:dead::1"]
    pair.mesh.apply(service("echo", VIP, {80: 7100}), external(pair, services={KEY: {80: 7100}}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, listen(pair.room.node(2).network, 7100))
        stream = await pair.dial(80, VIP)
        assert await ask(stream) == b"hello"
        await stream.aclose()
        nursery.cancel_scope.cancel()
    line = await pair.mesh.line('direction="outbound"', "bytes_sent=5")
    assert f"dst.addr={node_address(pair)}:7100" in line
    counted = [
        (labels, cell.numbers())
        for (name, labels), cell in pair.mesh.counters.cells.items()
        if name == "istio_on_demand_dns"
    ]
    identity = pair.client.identity.uri
    assert counted == [
        (
            ("client", "client", "unknown", NAMESPACE, identity, "client", "unknown",
             pair.client.cluster_id, "db.example.com"),
            [1],
        )
    ]  # fmt: skip


async def test_a_hostname_that_does_not_resolve_is_named(pair: Pair) -> None:
    pair.mesh.apply(service("echo", VIP, {80: 7100}), external(pair, services={KEY: {80: 7100}}))
    assert await ends(await pair.dial(80, VIP))
    line = await pair.mesh.line('direction="outbound"', "error=")
    assert "its hostname db.example.com gives none" in line


async def test_a_headless_service_is_reached_by_its_pods_addresses(pair: Pair) -> None:
    pair.mesh.apply(
        dataclasses.replace(service("echo", VIP, {80: ECHO}), vips=()),
        dataclasses.replace(pair.server, services={KEY: {80: ECHO}}),
    )
    stream = await pair.dial(ECHO)
    assert await ask(stream) == b"hello"
    await stream.aclose()
    assert 'dst.identity="' in await pair.mesh.line('direction="outbound"', "bytes_sent=5")
    inbound = await pair.mesh.line('direction="inbound"', "bytes_sent=5")
    assert f'dst.service="{HOST}"' in inbound


async def test_a_passthrough_service_goes_where_the_client_wants(pair: Pair) -> None:
    """ServiceEntry of resolution NONE: its address is the real one."""
    where = node_address(pair)
    through = LoadBalancing(mode=LoadBalancingMode.PASSTHROUGH)
    pair.mesh.apply(
        dataclasses.replace(service("echo", where, {7100: 7100}), load_balancing=through)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, listen(pair.room.node(2).network, 7100))
        stream = await pair.dial(7100, where)
        assert await ask(stream) == b"hello"
        await stream.aclose()
        nursery.cancel_scope.cancel()
    line = await pair.mesh.line('direction="outbound"', "bytes_sent=5")
    assert f'dst.service="{HOST}"' in line
    assert "passed through" in line


async def test_unhealthy_endpoints_are_used_only_where_all_are_allowed(pair: Pair) -> None:
    ill = dataclasses.replace(
        pair.server, services={KEY: {80: ECHO}}, status=WorkloadStatus.UNHEALTHY
    )
    web = service("echo", VIP, {80: ECHO})
    pair.mesh.apply(web, ill)
    assert await ends(await pair.dial(80, VIP))
    line = await pair.mesh.line('direction="outbound"', "no healthy upstream")
    assert "check the pods' readiness" in line
    anyone = LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL)
    pair.mesh.apply(dataclasses.replace(web, load_balancing=anyone))
    assert await ask(await pair.dial(80, VIP)) == b"hello"


async def test_a_host_network_workload_owns_no_address(pair: Pair) -> None:
    """Its node's address is passed through, and as an endpoint it is used all the same."""
    where = node_address(pair)
    pair.mesh.apply(
        service("echo", VIP, {80: 7100}),
        external(pair, hostname="", addresses=(where,), network_mode=NetworkMode.HOST_NETWORK,
                 services={KEY: {80: 7100}}),
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, listen(pair.room.node(2).network, 7100))
        for host, port, words in (
            (where, 7100, "passed through: no service or workload"),
            (VIP, 80, "plain TCP"),
        ):
            stream = await pair.dial(port, host)
            assert await ask(stream) == b"hello"
            await stream.aclose()
            assert f"dst.addr={where}:7100" in await pair.mesh.line('direction="outb', words)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [15001, 15006])
@pytest.mark.parametrize("own", [False, True], ids=["loopback", "own address"])
async def test_a_pod_that_calls_its_own_proxy_is_told_so(
    pair: Pair, version: int, port: int, own: bool
) -> None:
    """It would go round and round for ever."""
    loopback = "127.0.0.1" if version == 4 else "::1"
    pair.mesh.apply(
        dataclasses.replace(
            pair.client, addresses=(pair.room.ip("client"), pair.room.ip("client", 6))
        )
    )
    stream = await pair.dial(port, pair.room.ip("client", version) if own else loopback)
    assert await ends(stream)
    line = await pair.mesh.line("attempted recursive call to ourselves", f"port {port}")
    assert 'response_flags="' in line
    # Nothing goes on behind it.
    assert len(pair.mesh.context.registry) == 0


# -- on demand ---


@pytest.fixture
async def asking() -> AsyncIterator[Pair]:
    """The control plane tells of the client only; all else is asked for."""
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with (
            proxies(room, XDS_ON_DEMAND="true", ISTIO_META_DNS_CAPTURE="false") as mesh,
            trio.open_nursery() as nursery,
        ):
            client, server = mesh.enroll("client"), mesh.enroll("server")
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            mesh.apply(removed=[server.uid])
            made = Pair(room, mesh, client, server)
            yield made
            made.close()
            nursery.cancel_scope.cancel()


async def test_an_address_is_asked_for_once(asking: Pair) -> None:
    """What is found goes through a tunnel; the workload is named by its uid, not by the key."""
    mesh, key = asking.mesh, f"/{asking.room.ip('server')}"
    mesh.on_demand[key] = (asking.server,)
    assert await ask(await asking.dial()) == b"hello"
    assert await ask(await asking.dial()) == b"hello"
    assert mesh.looked_up.count(key) == 1
    asking.close()
    assert 'dst.identity="' in await mesh.line('direction="outbound"', "bytes_sent=5")


async def test_a_service_brings_its_endpoints(asking: Pair) -> None:
    server = dataclasses.replace(asking.server, services={KEY: {80: ECHO}})
    asking.mesh.on_demand[f"/{VIP}"] = (service("echo", VIP, {80: ECHO}), server)
    assert await ask(await asking.dial(80, VIP)) == b"hello"


async def test_what_does_not_exist_is_passed_through(asking: Pair) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, listen(asking.room.node(2).network, 7100))
        stream = await asking.dial(7100, node_address(asking))
        assert await ask(stream) == b"hello"
        await stream.aclose()
        nursery.cancel_scope.cancel()
    assert "passed through" in await asking.mesh.line('direction="outbound"', "bytes_sent=5")


async def test_without_an_answer_nothing_goes_out_in_the_clear(asking: Pair) -> None:
    """It may be a pod of the mesh; the log says what was asked and of whom."""
    where = node_address(asking)
    asking.mesh.on_demand[f"/{where}"] = None
    listener = listen(asking.room.node(2).network, 7100)
    async with listener:
        assert await ends(await asking.dial(7100, where))
        with trio.move_on_after(0.2):
            await listener.accept()
            raise AssertionError("the connection went out")
    line = await asking.mesh.line('direction="outbound"', "error=")
    assert f"no answer about /{where} has come; is the control plane reachable?" in line
    assert asking.mesh.looked_up.count(f"/{where}") == 1
    # It is asked again for the next connection, which a better answer then serves.
    asking.mesh.on_demand[f"/{where}"] = ()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, listen(asking.room.node(2).network, 7100))
        assert await ask(await asking.dial(7100, where)) == b"hello"
        nursery.cancel_scope.cancel()
