"""The TLS path: two tunnel ends joined by a real connection, an application behind each."""

import random

import pytest
import trio

from tests.support.sockets import (
    abort,
    receive_all,
    receive_exactly,
    receive_slowly,
    send_in_pieces,
)
from tests.support.streams import joined
from ztunnel.relay.flow import ClosedBy
from ztunnel.tls.contexts import Records


@pytest.mark.parametrize("records", ["own", "openssl"])
@pytest.mark.parametrize("frame", [16384, 1 << 20])
@pytest.mark.parametrize("seed", range(3))
async def test_every_byte_arrives_in_both_directions(
    records: Records, frame: int, seed: int
) -> None:
    async with joined(frame=frame, records=records) as room:
        flows = [await room.connect() for _ in range(3)]
        rng = random.Random(seed)
        got: dict[tuple[int, str], bytes] = {}
        sent: dict[tuple[int, str], bytes] = {}

        async def receive(key: tuple[int, str], stream: trio.SocketStream) -> None:
            got[key] = await receive_slowly(stream, random.Random(seed))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number, (client, server) in enumerate(flows):
                    up = sent[number, "up"] = rng.randbytes(rng.randrange(900_000))
                    down = sent[number, "down"] = rng.randbytes(rng.randrange(900_000))
                    nursery.start_soon(send_in_pieces, client.app, up, random.Random(seed))
                    nursery.start_soon(send_in_pieces, server.app, down, random.Random(seed))
                    nursery.start_soon(receive, (number, "up"), server.app)
                    nursery.start_soon(receive, (number, "down"), client.app)
        assert got == sent
        for number, (client, server) in enumerate(flows):
            for end in (client, server):
                outcome = await end.result()
                assert outcome.error is None
                assert outcome.from_client == len(sent[number, "up"])
                assert outcome.from_server == len(sent[number, "down"])
                end.app.socket.close()
        assert room.client.idle
        assert room.server.idle


@pytest.mark.parametrize("client_first", [True, False])
async def test_half_close_leaves_the_other_direction_open(client_first: bool) -> None:
    async with joined() as room:
        client, server = await room.connect()
        one, other = (client, server) if client_first else (server, client)
        await one.app.send_all(b"last words")
        await one.app.send_eof()
        assert await receive_all(other.app) == b"last words"
        await other.app.send_all(b"still here")
        assert await receive_exactly(one.app, 10) == b"still here"
        await other.app.send_eof()
        assert await receive_all(one.app) == b""
        first = ClosedBy.CLIENT if client_first else ClosedBy.SERVER
        for end in (client, server):
            outcome = await end.result()
            assert (outcome.error, outcome.closed_by) == (None, first)
            end.app.socket.close()


@pytest.mark.parametrize("client_first", [True, False])
async def test_a_reset_becomes_a_reset(client_first: bool) -> None:
    async with joined() as room:
        client, server = await room.connect()
        one, other = (client, server) if client_first else (server, client)
        await one.app.send_all(b"x")
        await receive_exactly(other.app, 1)
        abort(one.app)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
            await receive_all(other.app)
        assert (await other.result()).error is not None
        other.app.socket.close()


async def test_a_lost_tunnel_is_a_reset_for_both_applications() -> None:
    async with joined() as room:
        client, server = await room.connect()
        room.client.close("cut")
        for end in (client, server):
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
                await receive_all(end.app)
            assert (await end.result()).error is not None
            end.app.socket.close()
        assert room.server_owner.lost is not None


async def test_a_stuck_reader_keeps_no_more_than_its_window_and_holds_nobody_up() -> None:
    async with joined(window=65536) as room:
        room.server.buffers.windows.largest = 65536
        stuck, server = await room.connect()
        client, other = await room.connect()
        sent = 0
        with trio.move_on_after(0.5):
            while True:
                await stuck.app.send_all(bytes(65536))
                sent += 65536
        assert server.flow is not None
        assert len(server.flow._pending) <= 65536
        for _ in range(100):
            await client.app.send_all(b"ping")
            with trio.fail_after(30):
                assert await receive_exactly(other.app, 4) == b"ping"
        received = 0
        with trio.fail_after(30):
            while received < sent:
                received += len(await server.app.receive_some(1 << 18))
        for end in (stuck, server, client, other):
            end.app.socket.close()


async def test_bulk_with_company_gives_its_large_window_back() -> None:
    async with joined() as room:
        windows = room.server.buffers.windows
        budget = windows.left
        client, server = await room.connect()

        async def transfer_until(window: int) -> None:
            """Also the budget follows, once what was shrunk has been paid off."""
            assert server.flow is not None
            size = 6 << 20
            with trio.fail_after(30):
                while (server.flow.stream.window, budget - windows.left) != (
                    window,
                    window - (256 << 10),
                ):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(client.app.send_all, bytes(size))
                        await receive_exactly(server.app, size)

        await transfer_until(windows.largest)
        other, there = await room.connect()
        await transfer_until(windows.largest // 4)
        other.app.socket.close()
        there.app.socket.close()
        await there.result()
        await transfer_until(windows.largest)
        for end in (client, server):
            end.app.socket.close()


async def test_windows_grow_for_bulk_and_the_budget_comes_back() -> None:
    async with joined() as room:
        budget = room.server.buffers.windows.left
        client, server = await room.connect()
        size = 6 << 20

        async def send() -> None:
            await client.app.send_all(bytes(size))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(30):
                await receive_exactly(server.app, size)
        assert server.flow is not None
        assert server.flow.stream.window > 1 << 20
        assert room.server.buffers.windows.left < budget
        server.flow.abort("over")
        assert room.server.buffers.windows.left == budget
        for end in (client, server):
            end.app.socket.close()


async def test_a_drain_waits_for_the_last_stream() -> None:
    async with joined() as room:
        client, server = await room.connect()
        room.client.finish_streams()
        await client.app.send_all(b"x")
        assert await receive_exactly(server.app, 1) == b"x"
        await client.app.send_eof()
        await server.app.send_eof()
        await client.result()
        with trio.fail_after(30):
            while room.client_owner.lost is None:
                await trio.sleep(0.01)
        assert room.client_owner.lost == "drained"
        for end in (client, server):
            end.app.socket.close()
