"""Two captured pods of one node whose connections pass by the proxy: who may, and what ends it."""

import dataclasses
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.lab import lab
from tests.support.pair import ECHO, KEY, VIP, Pair
from tests.support.policies import DENY_CLIENT, STRICT
from tests.support.proxies import NAMESPACE, proxies, service
from tests.support.sockets import abort, ask, listen, receive_all, receive_exactly, serve_echo
from ztunnel.kernel import direct_rules
from ztunnel.linux.conntrack_entries import Conntrack
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.packet_queue import is_bound
from ztunnel.proxy import direct
from ztunnel.proxy.gate import Gate
from ztunnel.proxy.gate_rules import GateRules, leave_captured
from ztunnel.proxy.gatekeeper import Gatekeeper
from ztunnel.tls.crl import RevocationList

pytestmark = pytest.mark.root


@asynccontextmanager
async def gated_pair(*, ipv6: bool = False, ticking: bool = True) -> AsyncIterator[Pair]:
    """Both pods with open gates."""
    with lab(nodes=1, pods={"client": 1, "server": 1, "other": 1}, ipv6=ipv6) as room:
        async with (
            proxies(room, ZTUNNEL_JOIN_PODS="true") as mesh,
            trio.open_nursery() as nursery,
        ):
            mesh.gatekeeper = keeper = Gatekeeper(mesh.context, mesh.neighbours)
            versions = (4, 6) if ipv6 else (4,)
            client, server = (
                mesh.enroll(name, addresses=tuple(room.ip(name, version) for version in versions))
                for name in ("client", "server")
            )

            async def tick() -> None:
                while True:
                    keeper.tick()
                    await trio.sleep(0.1)

            if ticking:
                nursery.start_soon(tick)
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            keeper.tick()
            made = Pair(room, mesh, client, server)
            yield made
            made.close()
            nursery.cancel_scope.cancel()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with gated_pair() as made:
        yield made


def keeper_of(pair: Pair) -> Gatekeeper:
    keeper = pair.mesh.gatekeeper
    assert keeper is not None
    return keeper


def network(pair: Pair, name: str) -> NetworkNamespace:
    return pair.room.pod(name).network


def queued(pair: Pair, name: str) -> set[str]:
    """The addresses whose first packets a pod has queued."""
    with Nftables(network(pair, name)) as nftables:
        return {
            direct_rules.neighbour_address(element)
            for found in direct_rules.neighbour_sets()
            for element in nftables.elements(direct_rules.TABLE, found)
        }


async def is_cut(stream: trio.SocketStream) -> None:
    """The connection ends with an error, soon."""
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(stream)


def die(pair: Pair) -> None:
    """As after SIGKILL: the queues are nobody's, the sets are as they were, nobody watches."""
    keeper = keeper_of(pair)
    for pod in list(keeper.gates):
        gate = keeper.gates.pop(pod)
        pair.mesh.engine.unregister(gate._queue.fd)
        gate.unwatch()
        for held in (gate._queue, gate.sockets, gate._conntrack):
            held.close()
    for flow in list(keeper.flows.begun.values()):
        keeper.flows.forget(flow)
    keeper.drain()  # the ticks of this test go on
    pair.mesh.gatekeeper = Gatekeeper(pair.mesh.context, pair.mesh.neighbours)


def straight(pair: Pair) -> int:
    return len(keeper_of(pair).flows.begun)


def sent_again(stream: trio.SocketStream) -> int:
    """Segments that the kernel sent more than once (tcpi_total_retrans of linux/tcp.h)."""
    info = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[100:104], sys.byteorder)


async def lines(pair: Pair, *parts: str) -> None:
    """Both sides' lines hold all of this."""
    for direction in ("outbound", "inbound"):
        try:
            await pair.mesh.line(f'direction="{direction}"', *parts)
        except trio.TooSlowError:
            pytest.fail(f"no {direction} line with {parts} among {pair.mesh.lines}")


async def test_bytes_pass_by_the_proxy_and_both_lines_are_written(pair: Pair) -> None:
    pair.mesh.apply(STRICT)  # what has no identity may not come in
    listener = pair.listen(7001)
    stream = await pair.dial(7001)
    accepted = await pair.accept(listener)
    assert accepted.socket.getpeername() == stream.socket.getsockname()
    assert straight(pair) == 1
    await stream.send_all(b"hello")
    assert await receive_exactly(accepted, 5) == b"hello"
    await accepted.send_all(b"you")
    assert await receive_exactly(stream, 3) == b"you"
    await stream.aclose()
    assert await receive_all(accepted) == b""
    await accepted.aclose()
    await lines(
        pair,
        'path="direct"', 'closed_by="client"',
        'src.identity="spiffe://cluster.local/ns/shop/sa/client"',
        'dst.identity="spiffe://cluster.local/ns/shop/sa/server"',
        "straight", f"dst.addr={pair.room.ip('server')}:7001",
    )  # fmt: skip
    assert straight(pair) == 0
    await pair.mesh.line('direction="outbound"', "bytes_sent=5", "bytes_recv=3")
    await pair.mesh.line('direction="inbound"', "bytes_sent=3", "bytes_recv=5")


@pytest.mark.parametrize("ending", ["client", "server"])
async def test_half_close_and_who_closed_first(pair: Pair, ending: str) -> None:
    listener = pair.listen(7001)
    client = await pair.dial(7001)
    server = await pair.accept(listener)
    first, second = (client, server) if ending == "client" else (server, client)
    await first.send_eof()
    assert await receive_all(second) == b""
    await second.send_all(b"still here")
    await second.aclose()
    assert await receive_all(first) == b"still here"
    await first.aclose()
    await lines(pair, 'path="direct"', f'closed_by="{ending}"')


async def test_a_service_all_of_whose_endpoints_are_here(pair: Pair) -> None:
    pair.mesh.apply(
        service("echo", VIP, {80: ECHO}),
        dataclasses.replace(pair.server, services={KEY: {80: ECHO}}),
    )
    keeper_of(pair).tick()
    stream = await pair.dial(80, VIP)
    assert await ask(stream) == b"hello"
    assert straight(pair) == 1
    await stream.aclose()
    await lines(pair, 'path="direct"', 'dst.service="echo.shop.svc.cluster.local"')
    keeper = keeper_of(pair)
    elsewhere = dataclasses.replace(
        pair.server, uid="elsewhere", name="elsewhere", addresses=("10.244.9.9",), node="far",
        services={KEY: {80: ECHO}},
    )  # fmt: skip
    pair.mesh.apply(elsewhere)
    keeper.tick()
    assert VIP not in queued(pair, "client")  # or the choice between the two would not be even
    assert pair.room.ip("server") in queued(pair, "client")


async def test_over_ipv6() -> None:
    async with gated_pair(ipv6=True) as pair:
        with network(pair, "server").enter():
            server = socket.create_server(("::", 7001), family=socket.AF_INET6, dualstack_ipv6=True)
        with server:
            for version in (6, 4):
                stream = await pair.dial(7001, pair.room.ip("server", version))
                server.settimeout(10)
                accepted, _ = await trio.to_thread.run_sync(server.accept)
                with accepted:
                    accepted.settimeout(10)
                    await stream.send_all(b"hello")
                    assert accepted.recv(5) == b"hello"
                    assert straight(pair) == 1
                    await stream.aclose()
                # A socket that serves both families knows IPv4 addresses in another form.
                host = f"[{pair.room.ip('server', 6)}]" if version == 6 else pair.room.ip("server")
                await lines(pair, 'path="direct"', f"dst.addr={host}:7001")


async def test_bulk_is_counted_exactly(pair: Pair) -> None:
    stream = await pair.dial()
    data = bytes(3 << 20)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            assert await receive_exactly(stream, len(data)) == data
    # While it lives as well.
    keeper_of(pair).tick()
    for connection in pair.mesh.context.registry.describe():
        assert (connection["bytesSent"], connection["bytesRecv"]) == (len(data), len(data))
    await stream.aclose()
    await lines(pair, 'path="direct"', f"bytes_recv={len(data)}", f"bytes_sent={len(data)}")


async def test_a_denied_client_is_refused_and_the_log_says_by_which_policy(pair: Pair) -> None:
    pair.mesh.apply(DENY_CLIENT)
    stream = await pair.dial()
    assert straight(pair) == 0
    with trio.fail_after(30):
        try:
            assert await receive_all(stream) == b""
        except trio.BrokenResourceError:
            pass  # an abort is as good
    line = await pair.mesh.line('direction="inbound"', "error=")
    assert f"denied by policy {NAMESPACE}/deny-client (rule 1)" in line
    assert 'response_flags="DENY"' in line


async def test_a_new_policy_resets_both_sides_at_once(pair: Pair) -> None:
    listener = pair.listen(7001)
    client = await pair.dial(7001)
    server = await pair.accept(listener)
    await client.send_all(b"hello")
    assert await receive_exactly(server, 5) == b"hello"
    pair.mesh.apply(DENY_CLIENT)
    await is_cut(client)
    await is_cut(server)
    line = await pair.mesh.line('direction="inbound"', "connection closed due to policy change")
    assert 'response_flags="DENY"' in line
    assert 'closed_by="proxy"' in await pair.mesh.line('direction="outbound"')
    assert straight(pair) == 0


async def test_an_application_that_does_not_listen_refuses_itself(pair: Pair) -> None:
    with pytest.raises(OSError, match="refused"):
        await pair.dial(7999)
    await lines(pair, "refused", 'response_flags="CONNECT"')


async def test_a_reset_goes_through_and_is_told(pair: Pair) -> None:
    listener = pair.listen(7001)
    stream = await pair.dial(7001)
    abort(await pair.accept(listener))
    await is_cut(stream)
    await stream.aclose()
    await lines(pair, 'closed_by="server"', "reset by peer")


async def test_a_workload_that_is_another_one_now_loses_its_connections(pair: Pair) -> None:
    live = await pair.dial()
    assert await ask(live) == b"hello"
    pair.mesh.apply(dataclasses.replace(pair.client, service_account="impostor"))
    await is_cut(live)
    line = await pair.mesh.line('direction="inbound"')
    assert "is spiffe://cluster.local/ns/shop/sa/impostor now" in line


async def test_a_revoked_certificate_ends_the_connection(pair: Pair) -> None:
    live = await pair.dial()
    assert await ask(live) == b"hello"
    held = pair.mesh.certificates.get(pair.client.identity)
    assert held is not None
    revocations = RevocationList.parse(pair.mesh.authority.crl([held.serial]))
    pair.mesh.context.pools.revocations = revocations
    for pod in pair.mesh.pods.values():
        pod.refuse_revoked(revocations)
    await is_cut(live)
    assert "revoked by CRL" in await pair.mesh.line('direction="inbound"')


@pytest.mark.parametrize("leaves", ["client", "server"])
async def test_a_pod_that_leaves_takes_its_connections_along(pair: Pair, leaves: str) -> None:
    live = await pair.dial()
    assert await ask(live) == b"hello"
    pair.mesh.pods[leaves].close("the pod left the mesh")
    await is_cut(live)
    await lines(pair, "the pod left the mesh")
    assert len(pair.mesh.context.registry) == 0
    assert not queued(pair, leaves)
    assert not is_bound(network(pair, leaves), direct_rules.QUEUE)
    keeper_of(pair).tick()
    assert not queued(pair, "client" if leaves == "server" else "server")


async def test_nothing_passes_while_nobody_judges(pair: Pair) -> None:
    """The worker is gone: a first packet waits in its sender for the next one."""
    die(pair)
    listener = pair.listen(7001)
    with network(pair, "client").enter():
        sock = trio.socket.socket()
    with trio.move_on_after(0.7):
        await sock.connect((pair.room.ip("server"), 7001))
        pytest.fail("a connection was made that nobody judged")
    sock.close()
    keeper_of(pair).tick()
    stream = await pair.dial(7001)
    await pair.accept(listener)
    assert stream.socket.fileno() >= 0


async def test_a_successor_without_gates_has_everything_captured(pair: Pair) -> None:
    """It was told not to, or its probe has failed: first packets must not wait for it."""
    die(pair)
    pair.mesh.gatekeeper = None
    assert queued(pair, "client")
    for pod in pair.mesh.pods.values():
        leave_captured(pod)
    assert not queued(pair, "client")
    stream = await pair.dial()
    assert await ask(stream) == b"hello"
    await stream.aclose()
    await lines(pair, "joined with workload")


async def test_a_successor_ends_what_nobody_watches(pair: Pair) -> None:
    live = await pair.dial()
    assert await ask(live) == b"hello"
    die(pair)
    keeper_of(pair).tick()
    await is_cut(live)


async def test_a_successor_leaves_alone_what_is_watched(pair: Pair) -> None:
    """Both are there during a rolling update: the old one keeps what it has until it ends."""
    live = await pair.dial()
    assert await ask(live) == b"hello"
    old = keeper_of(pair)
    old.drain()
    assert not queued(pair, "client")
    pair.mesh.gatekeeper = new = Gatekeeper(pair.mesh.context, pair.mesh.neighbours)
    new.tick()
    assert len(new.gates) == 2
    assert await ask(live) == b"hello"
    another = await pair.dial()
    assert await ask(another) == b"hello"
    assert (len(old.flows.begun), len(new.flows.begun)) == (1, 1)
    await live.aclose()
    await lines(pair, 'path="direct"')
    old.close()


def open_connections(pair: Pair, name: str) -> int:
    """Those that go past the proxies, as connection tracking has them."""
    with Conntrack(network(pair, name)) as conntrack:
        return conntrack.count_open(direct_rules.TAG, direct_rules.TAG_MASK)


async def test_connections_to_a_pod_that_is_about_to_leave(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rules ask nobody any more, and what was let go just then arrives all the same."""
    monkeypatch.setattr(direct, "ARRIVAL", 0.3)
    keeper = keeper_of(pair)
    before = await pair.dial()
    assert await ask(before) == b"hello"
    assert (open_connections(pair, "client"), open_connections(pair, "server")) == (1, 1)
    [_, captured] = pair.mesh.captures
    with monkeypatch.context() as patch:
        patch.setattr(GateRules, "keep_filled", lambda *_: None)  # nobody has noticed yet
        captured.release()
        early = await pair.dial()
    assert straight(pair) == 2
    assert await ask(early) == b"hello"
    await trio.sleep(1)
    assert not keeper.gates[pair.mesh.pods["server"]].is_open
    for live in (before, early):
        assert await ask(live) == b"hello"
    late = await pair.dial()  # as ever, until its client hears that there is no tunnel any more
    assert await ask(late) == b"hello"
    assert straight(pair) == 2
    await early.aclose()
    await before.aclose()
    await lines(pair, 'path="direct"')
    assert open_connections(pair, "client") == 0


async def test_a_first_packet_that_waits_when_a_pod_leaves_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in the queue of the pod's rules, and is not lost when these are taken away."""
    keeper = keeper_of(pair)
    far = keeper.gates[pair.mesh.pods["server"]]
    judge = Gate.ready

    def all_but_there(gate: Gate, events: int) -> None:
        if gate is not far:
            judge(gate, events)

    [_, captured] = pair.mesh.captures
    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(Gate, "ready", all_but_there)

        async def connect() -> None:
            stream = await pair.dial()
            assert await ask(stream) == b"hello"
            assert sent_again(stream) == 0

        nursery.start_soon(connect)
        with trio.fail_after(10):
            while not straight(pair):
                await trio.sleep(0.01)
        captured.release()
        pair.mesh.pods["server"].close("the pod left the mesh")
        monkeypatch.setattr(Gate, "ready", judge)
    assert straight(pair) == 0
    await lines(pair, "the pod left the mesh before it was connected")


async def test_a_pod_without_identity_cannot_use_an_address(pair: Pair) -> None:
    """What no gate let go is captured, even if it comes from an address of the mesh."""
    pair.mesh.apply(STRICT)
    keeper = keeper_of(pair)
    from_client = pair.room.ip("client")
    gate = keeper.gates[pair.mesh.pods["server"]]
    assert from_client in queued(pair, "server")
    forged = dataclasses.make_dataclass("Syn", ["source", "destination", "sequence", "hook"])(
        (from_client, 40000), (pair.room.ip("server"), ECHO), 1, 0
    )
    assert gate._arrives(forged) == 0


async def test_a_mark_that_the_pod_sets_is_no_verdict(pair: Pair) -> None:
    """A container that may set marks does not get past capture by one."""
    pair.mesh.apply(STRICT)
    with network(pair, "client").enter():
        sock = socket.socket()
    mark = direct_rules.verdict(1, 0)
    sock.setsockopt(socket.SOL_SOCKET, 36, mark)
    sock.setblocking(False)
    wrapped = trio.socket.from_stdlib_socket(sock)
    with trio.move_on_after(5):
        await wrapped.connect((pair.room.ip("other"), 7000))  # which is no neighbour
    with Conntrack(network(pair, "client")) as conntrack:
        assert conntrack.marked(direct_rules.TAG, direct_rules.TAG_MASK) == []
    await pair.mesh.line('direction="outbound"', f"dst.addr={pair.room.ip('other')}:7000")
    wrapped.close()


async def test_a_pod_that_may_not_be_joined_any_more(pair: Pair) -> None:
    """A NetworkPolicy selects it now, or a label says so."""
    live = await pair.dial()
    assert await ask(live) == b"hello"
    pair.mesh.apply(dataclasses.replace(pair.server, join=False))
    await is_cut(live)
    await lines(pair, "may not be joined with others any more")
    keeper_of(pair).tick()
    assert not queued(pair, "client")
    through_a_tunnel = await pair.dial()
    assert await ask(through_a_tunnel) == b"hello"
    assert straight(pair) == 0
    assert sum(pod.tunnel_counts[0] for pod in pair.mesh.pods.values()) == 1


async def test_a_pair_whose_packets_get_lost_takes_tunnels(pair: Pair) -> None:
    """Something between the pods lets no plain connection pass."""
    keeper = keeper_of(pair)
    near, far = pair.mesh.pods["client"], pair.mesh.pods["server"]
    gate = keeper.gates[far]
    gate._arrives = lambda syn: 0  # type: ignore[method-assign]  # it goes elsewhere: to capture
    first = await pair.dial()
    await is_cut(first)
    await lines(pair, "answered from elsewhere", 'response_flags="CONNECT"')
    assert not keeper.flows.trusts(near, far)
    second = await pair.dial()
    assert await ask(second) == b"hello"
    assert straight(pair) == 0
    await second.aclose()
    await lines(pair, "joined with workload")


async def test_a_gate_opens_when_its_pod_is_captured_and_its_neighbour_is_there() -> None:
    """Without a tick, at which a gate might open as well."""
    async with gated_pair(ticking=False) as pair:
        keeper = keeper_of(pair)
        [_, captured] = pair.mesh.captures
        captured.remove()
        for _ in range(4):
            keeper.tick()  # the pauses between attempts get longer

        def is_open() -> bool:
            return keeper.gates[pair.mesh.pods["server"]].is_open

        assert not is_open()
        both = {pair.room.ip("client"), pair.room.ip("server")}
        with trio.fail_after(30):
            captured.apply()
            while not is_open():
                await trio.sleep(0.01)
            assert queued(pair, "server") == both
            # Another pod, of which nobody has been told by a tick.
            pair.mesh.enroll("other")
            keeper.stir()
            while queued(pair, "server") != {*both, pair.room.ip("other")}:
                await trio.sleep(0.01)
        assert await ask(await pair.dial()) == b"hello"
        assert straight(pair) == 1
