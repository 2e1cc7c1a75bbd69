"""Tunnels to peers: how many there are, how many streams they carry, and when they are left."""

import dataclasses
import socket
import time
from collections.abc import Callable

import pytest
import trio

from tests.support.hand_made import echo, hand_made, node_address, server_of
from tests.support.pair import ECHO, KEY, VIP, Pair
from tests.support.proxies import service
from tests.support.sockets import abort, ask, connect, ends, receive_all, receive_exactly, until
from tests.support.tunnel import Flow
from ztunnel.http2 import frames
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.settings import MAX_CONCURRENT_STREAMS, LocalSettings
from ztunnel.mesh.workload import TunnelProtocol
from ztunnel.proxy.outbound import Outbound

pytestmark = pytest.mark.root


def out(pair: Pair) -> tuple[int, int]:
    """Tunnels and streams that the client pod has."""
    tunnels, streams, _, _ = pair.mesh.pods["client"].tunnel_counts
    return tunnels, streams


def nothing_is_left(pair: Pair) -> bool:
    """Whether the client's proxy holds nothing for connections that are over."""
    pools = pair.mesh.pods["client"]._pools.values()
    return (
        not len(pair.mesh.context.registry)
        and not any(isinstance(item, Outbound) for item in pair.mesh.engine._deadlines)
        and not any(pool._waiting or pool._opening for pool in pools)
    )


@pytest.mark.parametrize("announced", [5, 100])
async def test_a_peer_never_gets_more_streams_than_it_announced(pair: Pair, announced: int) -> None:
    pair.mesh.context.pools.max_streams = 1000  # so that the peer's number is what counts
    settings = LocalSettings(max_concurrent_streams=announced)
    async with hand_made(pair, settings=settings) as peer:
        streams = [await peer.dial() for _ in range(announced)]
        for stream in streams:
            assert await ask(stream) == b"hello"
        assert out(pair) == (1, announced)
        one_more = await peer.dial()
        assert await ask(one_more) == b"hello"
        assert out(pair) == (2, announced + 1)
        assert len(peer.tunnels[0].connection.streams) == announced
        assert all(tunnel.connection.streams_refused == 0 for tunnel in peer.tunnels)
        # Where one has ended there is room again.
        await streams[0].aclose()
        await until(lambda: out(pair) == (2, announced))
        assert await ask(await peer.dial()) == b"hello"
        assert len(peer.tunnels) == 2


async def test_a_burst_to_a_peer_of_few_streams_is_spread_over_tunnels(pair: Pair) -> None:
    settings = LocalSettings(max_concurrent_streams=5)
    async with hand_made(pair, settings=settings) as peer:
        answered = 0

        async def one() -> None:
            nonlocal answered
            assert await ask(await peer.dial()) == b"hello"
            answered += 1

        async with trio.open_nursery() as nursery:
            for _ in range(32):
                nursery.start_soon(one)
        assert answered == 32
        assert all(len(tunnel.connection.streams) <= 5 for tunnel in peer.tunnels)
        assert all(tunnel.connection.streams_refused == 0 for tunnel in peer.tunnels)


async def test_a_limit_that_is_lowered_later_counts_from_then_on(pair: Pair) -> None:
    async with hand_made(pair) as peer:
        streams = [await peer.dial() for _ in range(10)]
        for stream in streams:
            await ask(stream)
        [first] = peer.tunnels
        lower = frames.SETTING.pack(MAX_CONCURRENT_STREAMS, 3)
        first.connection.out += frames.frame(frames.SETTINGS, 0, 0, lower)
        await first.flush()
        [pool] = pair.mesh.pods["client"]._pools.values()
        [pooled] = pool._all
        tunnel = pooled.tunnel
        assert tunnel is not None
        await until(lambda: tunnel.http.peer.max_concurrent_streams == 3)
        eleventh = await peer.dial()
        assert await ask(eleventh) == b"hello"
        assert len(peer.tunnels) == 2
        assert await ask(streams[0]) == b"hello"  # those that are there go on
        assert len(first.connection.streams) == 10


async def test_connections_at_once_share_one_connect(pair: Pair) -> None:
    async with hand_made(pair) as peer:
        streams = [await peer.dial() for _ in range(60)]
        for stream in streams:
            assert await ask(stream) == b"hello"
        assert len(peer.tunnels) == 1
        more = [await peer.dial() for _ in range(60)]
        for stream in more:
            assert await ask(stream) == b"hello"
        assert len(peer.tunnels) == 2  # POOL_MAX_STREAMS_PER_CONNECTION is 100


async def test_a_peer_that_takes_no_streams_is_not_tried_without_end(pair: Pair) -> None:
    async with hand_made(pair, settings=LocalSettings(max_concurrent_streams=0)) as peer:
        assert await ends(await peer.dial())
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert "the peer takes no streams in it" in line
        assert len(peer.tunnels) == 1
        assert nothing_is_left(pair)


async def test_a_peer_that_takes_no_headers_as_ours_costs_only_that_connection(pair: Pair) -> None:
    async with hand_made(pair, settings=LocalSettings(max_header_list_size=100)) as peer:
        assert await ends(await peer.dial())
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert "header list" in line
        assert await ask(await pair.dial()) == b"hello"
        assert len(peer.tunnels) == 1


async def test_an_unused_tunnel_is_left_and_a_used_one_is_not(pair: Pair) -> None:
    async with hand_made(pair) as peer:
        stream = await peer.dial()
        await ask(stream)
        later = time.monotonic() + 301
        pair.mesh.pods["client"].tick(later)
        await ask(stream)
        assert out(pair) == (1, 1)
        await stream.aclose()
        await until(lambda: out(pair) == (1, 0))
        pair.mesh.pods["client"].tick(time.monotonic() + 299)
        assert out(pair) == (1, 0)
        pair.mesh.pods["client"].tick(time.monotonic() + 301)
        await until(lambda: out(pair) == (0, 0))
        await until(lambda: peer.tunnels[0].lost == "close_notify")
        assert await ask(await peer.dial()) == b"hello"
        assert len(peer.tunnels) == 2


async def test_a_peer_that_goes_away_keeps_its_streams_and_gets_no_new_ones(pair: Pair) -> None:
    async with hand_made(pair) as peer:
        old = await peer.dial()
        await ask(old)
        [first] = peer.tunnels
        first.connection.shutdown(False)
        await first.flush()
        [pool] = pair.mesh.pods["client"]._pools.values()
        await until(lambda: not pool._tunnels)
        new = await peer.dial()
        assert await ask(new) == b"hello"
        assert len(peer.tunnels) == 2
        assert await ask(old) == b"hello"
        await old.send_eof()
        assert await receive_all(old) == b""
        await until(lambda: first.lost == "close_notify")  # with its last stream
        assert await ask(new) == b"hello"


async def answer_the_second(flow: Flow, first: Callable[[Flow], None]) -> None:
    """Does `first` to the first request of all, and echoes the others."""
    if server_of(flow).connection.last_peer_stream == 1 and not getattr(first, "done", False):
        first.done = True  # type: ignore[attr-defined]
        first(flow)
        await flow.tunnel.flush()
    else:
        await echo(flow)


def go_away(flow: Flow) -> None:
    """The peer leaves without having looked at any stream."""
    payload = frames.TWO_UINT32.pack(0, ErrorCode.NO_ERROR)
    flow.tunnel.connection.out += frames.frame(frames.GOAWAY, 0, 0, payload)


def refuse_stream(flow: Flow) -> None:
    flow.tunnel.connection.reset(flow.stream, ErrorCode.REFUSED_STREAM, trio.current_time())


def die(flow: Flow) -> None:
    abort(flow.tunnel.transport)


@pytest.mark.parametrize("what", [go_away, refuse_stream, die])
async def test_a_request_that_was_not_served_is_made_again(
    pair: Pair, what: Callable[[Flow], None]
) -> None:
    """The application at the other end has seen nothing of it, so ours must not either."""

    def first(flow: Flow) -> None:
        what(flow)

    async def serve(flow: Flow) -> None:
        await answer_the_second(flow, first)

    async with hand_made(pair, serve) as peer:
        assert await ask(await peer.dial()) == b"hello"
        assert not [line for line in pair.mesh.lines if "error=" in line]


async def test_a_peer_that_never_serves_is_given_up(pair: Pair) -> None:
    requests = 0

    async def leave(flow: Flow) -> None:
        nonlocal requests
        requests += 1
        go_away(flow)
        await flow.tunnel.flush()

    async with hand_made(pair, leave) as peer:
        assert await ends(await peer.dial())
        assert "going away" in await pair.mesh.line('direction="outbound"', "error=")
        assert requests == 3
        assert nothing_is_left(pair)


async def test_a_peer_that_answers_pings_is_kept_and_a_dead_one_is_not(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hand_made(pair) as peer:
        stream = await peer.dial()
        await ask(stream)
        client = pair.mesh.pods["client"]
        [pool] = client._pools.values()
        [pooled] = pool._all
        tunnel = pooled.tunnel
        assert tunnel is not None
        now = time.monotonic()
        client.tick(now + 11)
        await until(lambda: not tunnel.http.pings_outstanding)
        client.tick(now + 22)
        await until(lambda: not tunnel.http.pings_outstanding)
        assert await ask(stream) == b"hello"

        async def silence() -> None:
            """It hears everything and says nothing any more."""

        monkeypatch.setattr(peer.tunnels[0], "flush", silence)
        client.tick(now + 33)
        client.tick(now + 52)
        assert out(pair) == (1, 1)
        client.tick(now + 54)
        assert out(pair) == (0, 0)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
            await receive_all(stream)
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert "did not answer a PING for 20s" in line
        assert await ask(await peer.dial()) == b"hello"


async def test_another_way_has_a_time_limit_of_its_own(pair: Pair) -> None:
    """The limit of the tunnel that was tried first must not end the connection made instead."""
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
        dataclasses.replace(
            pair.server, services={KEY: {80: ECHO}}, tunnel_protocol=TunnelProtocol.NONE
        ),
        ghost,
    )
    stream = await pair.dial(80, VIP)
    assert await ask(stream) == b"hello"
    assert not any(isinstance(item, Outbound) for item in pair.mesh.engine._deadlines)
    await stream.aclose()
    assert "plain TCP" in await pair.mesh.line('direction="outbound"')


async def test_a_pod_that_leaves_ends_what_is_being_connected(pair: Pair) -> None:
    node = pair.room.node(2).network
    full = node.socket(socket.AF_INET, socket.SOCK_STREAM)
    full.bind((node_address(pair), 7300))
    full.listen(0)
    # Its queue holds one; to others the kernel gives no answer.
    first = await connect(pair.room.node(1).network, node_address(pair), 7300)
    with full:
        async with first:
            waiting = await pair.dial(7300, node_address(pair))
            await until(lambda: len(pair.mesh.context.registry) == 1)
            await trio.sleep(0.1)
            assert len(pair.mesh.context.registry) == 1
            pair.mesh.pods["client"].close("the pod left the mesh")
            with trio.fail_after(30):
                assert await ends(waiting)
    assert "the pod left the mesh" in await pair.mesh.line('direction="outbound"', "error=")
    assert nothing_is_left(pair)


async def test_a_tunnel_whose_key_has_had_its_time_takes_no_new_streams(pair: Pair) -> None:
    async with hand_made(pair) as peer:
        old = await peer.dial()
        await ask(old)
        [pool] = pair.mesh.pods["client"]._pools.values()
        [pooled] = pool._all
        assert pooled.tunnel is not None
        pooled.tunnel.session.exhausted = True
        assert await ask(await peer.dial()) == b"hello"
        assert len(peer.tunnels) == 2
        pair.mesh.pods["client"].tick(time.monotonic())
        assert await ask(old) == b"hello"
        await old.aclose()
        await until(lambda: peer.tunnels[0].lost == "close_notify")


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (frames.frame(frames.PING, 0, 0, bytes(8)), "too many PING frames"),
        (frames.frame(frames.SETTINGS, 0, 0, b""), "too many SETTINGS frames"),
        (frames.frame(frames.DATA, 0, 1, b""), "too many empty DATA frames"),
    ],
)
async def test_a_peer_that_floods_costs_its_tunnel(
    pair: Pair, wave: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = await pair.dial()
    await ask(other)
    async with hand_made(pair) as peer:
        stream = await peer.dial()
        await ask(stream)
        [tunnel] = peer.tunnels
        tunnel.connection.out += wave * 4000
        await tunnel.flush()
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
            await receive_all(stream)
        assert words in await pair.mesh.line('direction="outbound"', "error=")
        assert words in caplog.text
        await tunnel.change.until(lambda: tunnel.goaway is not None)
        assert tunnel.goaway is not None
        assert tunnel.goaway.code is ErrorCode.ENHANCE_YOUR_CALM
        assert await ask(await peer.dial()) == b"hello"
        assert len(peer.tunnels) == 2
        assert await ask(other) == b"hello"


async def test_clients_that_do_not_read_hold_up_nobody_else(pair: Pair) -> None:
    """Together they hold more than the window of the connection."""
    stuck = 90
    block = bytes(1 << 16)

    async def serve(flow: Flow) -> None:
        assert flow.request is not None
        if flow.request.authority.port == 80:
            await echo(flow)
            return
        await server_of(flow).accept(flow)
        while flow.reset is None and flow.tunnel.lost is None:
            await flow.write(block)

    async with hand_made(pair, serve) as peer:
        streams = [await peer.dial(81) for _ in range(stuck)]
        for stream in streams:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await receive_exactly(stream, 1)
        [tunnel] = peer.tunnels
        await until(lambda: all(s.send_window <= 0 for s in tunnel.connection.streams.values()))
        windows = pair.mesh.context.http
        assert stuck * windows.initial_window > windows.connection_window
        assert tunnel.connection.send_window > 0
        for _ in range(3):
            assert await ask(await peer.dial(80)) == b"hello"
        assert len(peer.tunnels) == 1
