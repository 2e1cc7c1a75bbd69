"""Two captured pods of one node, joined without a tunnel: who may, and what ends it."""

import dataclasses
import time
from collections.abc import AsyncIterator

import pytest
import trio

from tests.support.lab import lab
from tests.support.pair import ECHO, KEY, VIP, Pair
from tests.support.policies import DENY_CLIENT, STRICT
from tests.support.proxies import NAMESPACE, proxies, service
from tests.support.sockets import (
    abort,
    ask,
    connect,
    ends,
    listen,
    receive_all,
    receive_exactly,
    serve_echo,
)
from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.tls.crl import RevocationList

pytestmark = pytest.mark.root


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    with lab(nodes=1, pods={"client": 1, "server": 1, "other": 1}) as room:
        async with (
            proxies(room, ZTUNNEL_JOIN_PODS="true") as mesh,
            trio.open_nursery() as nursery,
        ):
            mesh.engine.use_paths(KernelPaths(pipes=Pipes()))
            client, server = mesh.enroll("client"), mesh.enroll("server")
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            made = Pair(room, mesh, client, server)
            yield made
            made.close()
            nursery.cancel_scope.cancel()


def tunnels(pair: Pair) -> int:
    return sum(pod.tunnel_counts[0] + pod.tunnel_counts[2] for pod in pair.mesh.pods.values())


async def test_joined_pods_write_both_lines_and_open_no_tunnel(pair: Pair) -> None:
    pair.mesh.apply(STRICT)  # what has no identity may not come in
    stream = await pair.dial()
    assert await ask(stream) == b"hello"
    assert tunnels(pair) == 0
    await stream.send_eof()
    assert await receive_all(stream) == b""
    for direction in ("outbound", "inbound"):
        line = await pair.mesh.line(f'direction="{direction}"')
        for part in (
            'path="copy"', 'closed_by="client"', "bytes_sent=5", "bytes_recv=5",
            'src.identity="spiffe://cluster.local/ns/shop/sa/client"',
            'dst.identity="spiffe://cluster.local/ns/shop/sa/server"',
            "joined with workload", f"dst.addr={pair.room.ip('server')}:{ECHO}",
        ):  # fmt: skip
            assert part in line
        assert "hbone" not in line


async def test_the_application_sees_its_clients_address(pair: Pair) -> None:
    listener = pair.listen(7001)
    await pair.dial(7001)
    accepted = await pair.accept(listener)
    assert accepted.socket.getpeername()[0] == pair.room.ip("client")


async def test_services_lead_to_joined_pods(pair: Pair) -> None:
    pair.mesh.apply(
        service("echo", VIP, {80: ECHO}),
        dataclasses.replace(pair.server, services={KEY: {80: ECHO}}),
    )
    stream = await pair.dial(80, VIP)
    assert await ask(stream) == b"hello"
    assert tunnels(pair) == 0
    await stream.aclose()
    assert 'dst.service="echo.shop.svc.cluster.local"' in await pair.mesh.line('"inbound"')


async def test_bulk_is_spliced_and_counted(pair: Pair) -> None:
    stream = await pair.dial()
    data = bytes(3 << 20)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            assert await receive_exactly(stream, len(data)) == data
        await stream.aclose()
    line = await pair.mesh.line('direction="inbound"')
    assert 'path="splice"' in line
    assert f"bytes_recv={len(data)}" in line


async def test_a_denied_client_is_refused_and_the_log_says_by_which_policy(pair: Pair) -> None:
    pair.mesh.apply(DENY_CLIENT)
    assert await ends(await pair.dial())
    line = await pair.mesh.line('direction="inbound"', "error=")
    assert f"denied by policy {NAMESPACE}/deny-client (rule 1)" in line
    assert 'response_flags="DENY"' in line
    # The source learns that it was refused, not why.
    line = await pair.mesh.line('direction="outbound"', "error=")
    assert "401" in line
    assert "deny-client" not in line


async def test_a_new_policy_ends_live_joined_connections(pair: Pair) -> None:
    live = await pair.dial()
    assert await ask(live) == b"hello"
    pair.mesh.apply(DENY_CLIENT)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(live)
    line = await pair.mesh.line('direction="inbound"', "connection closed due to policy change")
    assert 'response_flags="DENY"' in line
    assert 'closed_by="proxy"' in await pair.mesh.line('direction="outbound"')


async def test_an_application_that_does_not_listen_is_told_on_both_sides(pair: Pair) -> None:
    assert await ends(await pair.dial(7999))
    assert "refused" in await pair.mesh.line('direction="inbound"', "error=")
    assert "503" in await pair.mesh.line('direction="outbound"', "error=")


async def test_a_reset_goes_through(pair: Pair) -> None:
    listener = pair.listen(7001)
    stream = await pair.dial(7001)
    accepted = await pair.accept(listener)
    abort(accepted)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(stream)
    assert 'closed_by="server"' in await pair.mesh.line('direction="outbound"')


@pytest.mark.parametrize("whose", ["client", "server"])
@pytest.mark.parametrize("state", ["missing", "expired", "withdrawn"])
async def test_without_a_good_certificate_nothing_is_joined(
    pair: Pair, whose: str, state: str
) -> None:
    identity = (pair.client if whose == "client" else pair.server).identity
    certificates = pair.mesh.certificates
    held = certificates.get(identity)
    assert held is not None
    if state == "expired":
        certificates.received(dataclasses.replace(held, not_after=time.time() - 1))
    elif state == "withdrawn":
        certificates.withdrawn(identity.uri, "the CA has withdrawn it")
    else:
        certificates.forget(identity)
    stream = await pair.dial()
    with trio.move_on_after(0.5):  # the tunnel waits for a certificate, or fails at once
        await stream.send_all(b"hello")
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            await receive_exactly(stream, 5)
    assert not any("joined" in line for line in pair.mesh.lines)
    assert all("path=" not in line for line in pair.mesh.lines)


async def test_a_workload_that_is_another_one_now_loses_its_connections(pair: Pair) -> None:
    live = await pair.dial()
    assert await ask(live) == b"hello"
    pair.mesh.apply(dataclasses.replace(pair.client, service_account="impostor"))
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(live)
    line = await pair.mesh.line('direction="inbound"')
    assert "is spiffe://cluster.local/ns/shop/sa/impostor now" in line


async def test_a_revoked_certificate_ends_the_connection_and_joins_no_more(pair: Pair) -> None:
    live = await pair.dial()
    assert await ask(live) == b"hello"
    held = pair.mesh.certificates.get(pair.client.identity)
    assert held is not None
    revocations = RevocationList.parse(pair.mesh.authority.crl([held.serial]))
    pair.mesh.context.pools.revocations = revocations
    for pod in pair.mesh.pods.values():
        pod.refuse_revoked(revocations)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(live)
    assert "revoked by CRL" in await pair.mesh.line('direction="inbound"')
    assert await ends(await pair.dial())
    assert len([line for line in pair.mesh.lines if "joined" in line]) == 2


@pytest.mark.parametrize("leaves", ["client", "server"])
async def test_a_pod_that_leaves_takes_its_connections_along(pair: Pair, leaves: str) -> None:
    live = await pair.dial()
    assert await ask(live) == b"hello"
    pair.mesh.pods[leaves].close("the pod left the mesh")
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(live)
    for direction in ("outbound", "inbound"):
        assert "the pod left the mesh" in await pair.mesh.line(f'direction="{direction}"')
    assert len(pair.mesh.context.registry) == 0


async def test_a_pod_outside_of_the_mesh_gets_no_identity_by_its_address(pair: Pair) -> None:
    """It is on the same node, but no listener of ours took its connection."""
    pair.mesh.apply(STRICT)
    stream = await connect(pair.room.pod("other").network, pair.room.ip("server"), ECHO)
    async with stream:
        assert await ends(stream)
    assert "shop/strict" in await pair.mesh.line('direction="inbound"', "DENY")


@pytest.mark.parametrize("node", ["true", "false"])
@pytest.mark.parametrize("one", [True, False, None])
@pytest.mark.parametrize("other", [True, False, None])
async def test_both_pods_must_be_for_it(node: str, one: bool | None, other: bool | None) -> None:
    """What the mesh says of a pod counts for more than what its ztunnel was told."""
    with lab(nodes=1, pods={"client": 1, "server": 1}) as room:
        async with proxies(room, ZTUNNEL_JOIN_PODS=node) as mesh, trio.open_nursery() as nursery:
            client, server = mesh.enroll("client", join=one), mesh.enroll("server", join=other)
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            pair = Pair(room, mesh, client, server)
            assert await ask(await pair.dial()) == b"hello"
            wanted = all(node == "true" if said is None else said for said in (one, other))
            assert tunnels(pair) == (0 if wanted else 2)
            pair.close()
            nursery.cancel_scope.cancel()
