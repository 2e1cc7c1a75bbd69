"""Tunnels and flows that end while something is still on its way."""

import select
import socket
from collections.abc import AsyncIterator

import pytest
import trio

from tests.support.sockets import receive_all, receive_exactly, tcp_pair
from tests.support.streams import Joined, joined
from ztunnel.http2.errors import ErrorCode
from ztunnel.relay.engine import Engine
from ztunnel.relay.leaving import Leaving
from ztunnel.relay.stream_owner import StreamOwner

PAYLOAD = bytes(range(256)) * (16 << 10)  # 4 MiB


def pause(room: Joined) -> None:
    """The server's end stops reading its tunnel."""
    room.server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    room.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    room.server.engine.modify(room.server.fd, 0)


def resume(room: Joined) -> None:
    room.server.engine.modify(room.server.fd, select.EPOLLIN)


async def until_blocked(room: Joined) -> None:
    with trio.fail_after(30):
        while not room.client.blocked:
            await trio.sleep(0.01)


async def test_a_drain_of_a_tunnel_whose_socket_is_full_cuts_nothing() -> None:
    async with joined(window=8 << 20) as room:
        client, server = await room.connect()
        pause(room)

        async def upload() -> None:
            await client.app.send_all(PAYLOAD)
            await client.app.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            await until_blocked(room)
            room.client.finish_streams()
            resume(room)
            with trio.fail_after(30):
                assert await receive_all(server.app) == PAYLOAD
            await server.app.send_all(b"thanks")
            await server.app.send_eof()
            assert await receive_all(client.app) == b"thanks"
        assert (await client.result()).error is None
        with trio.fail_after(30):
            while room.server_owner.lost is None:
                await trio.sleep(0.01)
        assert room.client_owner.lost == "drained"
        for end in (client, server):
            end.app.socket.close()


async def test_what_was_sent_last_arrives_although_the_tunnel_is_drained_behind_it() -> None:
    async with joined(window=8 << 20) as room:
        client, server = await room.connect()
        # The server has finished: the client's last byte is the tunnel's.
        await server.app.send_eof()
        assert await receive_all(client.app) == b""
        room.client.finish_streams()
        pause(room)

        async def upload() -> None:
            await client.app.send_all(PAYLOAD)
            await client.app.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            await until_blocked(room)
            resume(room)
            # Its WINDOW_UPDATE frames reach a socket whose tunnel is over.
            with trio.fail_after(30):
                assert await receive_all(server.app) == PAYLOAD
        assert (await server.result()).error is None
        for end in (client, server):
            end.app.socket.close()


async def test_a_tunnel_is_left_once_a_peer_that_goes_away_has_no_stream_left() -> None:
    async with joined() as room:
        client, server = await room.connect()
        room.server.server.shutdown(final=True)
        room.server.mark_dirty()
        await client.app.send_all(b"x")
        assert await receive_exactly(server.app, 1) == b"x"
        assert not room.client.closed
        await client.app.send_eof()
        await server.app.send_eof()
        await client.result()
        with trio.fail_after(30):
            while room.client_owner.lost is None:
                await trio.sleep(0.01)
        for end in (client, server):
            end.app.socket.close()


async def test_a_clean_end_while_reading_had_paused_does_not_reset_the_application() -> None:
    async with joined() as room:
        client, server = await room.connect()
        assert client.flow is not None
        assert server.flow is not None
        # As after a full window: the application has sent more than was read.
        client.flow._arm(0)
        await client.app.send_all(bytes(100_000))
        # As a peer that has its answer and wants nothing more (Envoy ends tunnels so).
        http, stream = room.server.http, server.flow.stream
        http.queue(stream, b"answer", True)
        http.reset(stream, ErrorCode.NO_ERROR, 0.0)
        room.server.mark_dirty()
        with trio.fail_after(30):
            assert await receive_all(client.app) == b"answer"
            await client.app.send_all(b"still welcome")
            await client.app.send_eof()
        assert (await client.result()).error is None
        server.flow.abort("test over")
        for end in (client, server):
            end.app.socket.close()


async def test_an_owner_that_fails_does_not_keep_others_from_hearing_of_the_end() -> None:
    async with joined() as room:
        first, _ = await room.connect()
        second, _ = await room.connect()
        assert first.flow is not None

        class Broken(StreamOwner):
            def lost(self, reason: str) -> None:
                raise ValueError("on purpose")

        first.flow.stream.owner = Broken()
        room.client.close("enough")
        assert (await second.result()).error == "enough"
        first.flow.abort("test over")
        for end in (first, second):
            end.app.socket.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        nursery.start_soon(made.watch_deadlines)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


async def closed(sock: socket.socket) -> None:
    with trio.fail_after(30):
        while sock.fileno() >= 0:
            await trio.sleep(0.01)


async def test_a_socket_that_leaves_waits_for_its_peer(engine: Engine) -> None:
    peer, ours = tcp_pair()
    Leaving(engine, ours)
    assert await receive_all(peer) == b""
    await peer.send_all(b"late")  # would be answered with a reset by a closed socket
    await trio.sleep(0.05)
    await peer.send_all(b"later")
    assert ours.fileno() >= 0
    await peer.aclose()
    await closed(ours)


async def test_a_peer_that_never_closes_is_not_waited_for_forever(engine: Engine) -> None:
    peer, ours = tcp_pair()
    Leaving(engine, ours, patience=0.05)
    await closed(ours)
    await peer.aclose()


async def test_what_was_put_off_may_fail(engine: Engine) -> None:
    done = trio.Event()
    engine.call_later(lambda: [][0])
    engine.call_later(done.set)
    with trio.fail_after(30):
        await done.wait()
    assert engine.errors == 1
