"""Connections through a tunnel whose ends move into the kernel while bytes are under way."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from unittest import mock

import trio

from tests.support.sockets import (
    abort,
    receive_all,
    receive_exactly,
    receive_slowly,
    send_in_pieces,
)
from tests.support.streams import PATIENCE, End, Joined, joined
from tests.support.tls import seal
from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.relay import kernel_tunnel
from ztunnel.relay.flow import ClosedBy
from ztunnel.relay.kernel_tunnel import KernelTunnel
from ztunnel.relay.tunnel import Keepalive, Tunnel
from ztunnel.tls.errors import Alert
from ztunnel.tls.records import OwnRecords

_EARLY: Final = 1 << 16  # bytes after which an end moves, so that it does so in every check
_MOST: Final = 3 << 20  # bytes that may wait for an application that does not read


@asynccontextmanager
async def _room(
    client: str = "ktls", server: str = "ktls", pipes: bool = True, **more: Any
) -> AsyncIterator[Joined]:
    paths = KernelPaths(pipes=Pipes(4) if pipes else None, ktls=True)
    with (
        mock.patch.object(kernel_tunnel, "MOVE_AFTER", _EARLY),
        mock.patch.object(kernel_tunnel, "LARGE", 4096),
    ):
        async with joined(paths=paths, client_path=client, server_path=server, **more) as made:
            yield made


def _kernel_ends(room: Joined) -> list[KernelTunnel]:
    return [end for end in (room.client, room.server) if isinstance(end, KernelTunnel)]


async def _exchange(room: Joined, rng: random.Random, streams: int = 3) -> int:
    """Random chunks both ways on several streams at once; every byte is compared, and counted."""
    flows = [await room.connect() for _ in range(streams)]
    expected: list[tuple[End, End, bytes, bytes]] = []
    got: dict[End, bytes] = {}

    async def receive(end: End, seed: float) -> None:
        got[end] = await receive_slowly(end.app, random.Random(seed))

    async with trio.open_nursery() as nursery:
        for client, server in flows:
            up, down = (rng.randbytes(rng.randrange(200_000, 900_000)) for _ in range(2))
            expected.append((client, server, up, down))
            for end, data in ((client, up), (server, down)):
                nursery.start_soon(send_in_pieces, end.app, data, random.Random(rng.random()))
                nursery.start_soon(receive, end, rng.random())
    for client, server, up, down in expected:
        assert got[server] == up, "other bytes went up"
        assert got[client] == down, "other bytes came down"
        for end in (client, server):
            outcome = await end.result()
            assert outcome.error is None, outcome.error
            assert (outcome.from_client, outcome.from_server) == (len(up), len(down))
            end.app.socket.close()
    return sum(len(up) + len(down) for _, _, up, down in expected)


def _moved(room: Joined) -> dict[str, int]:
    """Sees that the ends that can are in the kernel, in both directions."""
    for end in _kernel_ends(room):
        assert end.sending, "the sending direction stayed outside"
        assert end.receiving, "the receiving direction stayed outside"
        assert end.path == "ktls"
    return {
        "spliced in": sum(end.spliced_in for end in _kernel_ends(room)),
        "spliced out": sum(end.spliced_out for end in _kernel_ends(room)),
    }


async def random_chunks(client: str, server: str) -> dict[str, int]:
    """Both ends move in the middle of it; where only one does, the other checks every record."""
    async with _room(client, server) as room:
        moved = await _exchange(room, random.Random(1))
        _moved(room)
        moved += await _exchange(room, random.Random(2))
        one, other = await room.connect()
        for sender, receiver in ((one, other), (other, one)):
            await _say(sender, receiver, os.urandom(1 << 20))
        spliced = _moved(room)
        assert min(spliced.values()) > 0, spliced
        return {"bytes": moved + (2 << 20), **spliced}


async def without_pipes() -> dict[str, int]:
    """Where splice is off the payload is copied, by the kernel's records all the same."""
    async with _room(pipes=False) as room:
        moved = await _exchange(room, random.Random(3))
        found = _moved(room)
        assert not any(found.values()), found
        return {"bytes": moved}


async def small_frames() -> dict[str, int]:
    """A peer that takes frames of 16 KiB only."""
    async with _room(frame=16384) as room:
        moved = await _exchange(room, random.Random(4))
        return {"bytes": moved, **_moved(room)}


async def _warm(room: Joined) -> tuple[End, End]:
    """A connection on a tunnel that has moved."""
    await _exchange(room, random.Random(5), streams=1)
    _moved(room)
    return await room.connect()


async def _say(sender: End, receiver: End, data: bytes) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.app.send_all, data)
        assert await receive_exactly(receiver.app, len(data)) == data


async def half_close() -> None:
    """Either side ends first; the other one goes on."""
    async with _room() as room:
        first = await _warm(room)
        second = await room.connect()
        for (client, server), client_first in ((first, True), (second, False)):
            one, other = (client, server) if client_first else (server, client)
            bulk = os.urandom(700_000)
            await _say(one, other, bulk)
            await one.app.send_eof()
            assert await receive_all(other.app) == b""
            await _say(other, one, bulk)
            await _say(other, one, b"still here")
            await other.app.send_eof()
            assert await receive_all(one.app) == b""
            for end in (client, server):
                outcome = await end.result()
                assert outcome.error is None
                assert outcome.closed_by is (ClosedBy.CLIENT if client_first else ClosedBy.SERVER)
                assert outcome.from_server - outcome.from_client == (10 if client_first else -10)


async def reset() -> None:
    """A RST of one application is a RST for the other, and the tunnel lives on."""
    async with _room() as room:
        client, server = await _warm(room)
        await _say(client, server, os.urandom(500_000))
        abort(client.app)
        try:
            await receive_all(server.app)
        except trio.BrokenResourceError:
            pass
        else:
            raise AssertionError("a cut stream looked whole")
        await _exchange(room, random.Random(6), streams=1)
        assert room.client_owner.lost is None


async def slow_reader() -> dict[str, int]:
    """Who does not read holds up who sends, at little cost; then everything arrives."""
    async with _room() as room:
        client, server = await _warm(room)
        room.client.engine.buffers.windows.largest = 1 << 19
        for sock in (client.app.socket, client.near, server.app.socket, server.near):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        data = os.urandom(5 << 20)
        sent = 0

        async def send() -> None:
            nonlocal sent
            view = memoryview(data)
            while view:
                sent += (count := await client.app.socket.send(view[:65536]))
                view = view[count:]
            await client.app.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            before = -1
            while sent != before:  # until nothing more is taken
                before = sent
                await trio.sleep(1)
            held = sent
            assert held < _MOST, f"{held} bytes were taken for nobody"
            # Others are not held up.
            await _exchange(room, random.Random(7), streams=1)
            assert await receive_all(server.app) == data
        _moved(room)
        return {"held": held}


async def last_bytes() -> None:
    """Nothing that is still in the kernel is lost by the end of the tunnel."""
    async with _room() as room:
        client, server = await _warm(room)
        for tunnel in (room.client, room.server):
            tunnel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        data = os.urandom(2 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_pieces, client.app, data, random.Random(8))
            await receive_exactly(server.app, 1000)
            room.client.finish_streams()
            rest = await receive_all(server.app)
            assert rest == data[1000:]
            await server.app.send_eof()
        assert await receive_all(client.app) == b""
        for end in (client, server):
            assert (await end.result()).error is None
        with trio.fail_after(PATIENCE):
            while not room.client_owner.ended.is_set():
                room.client.tick(trio.current_time(), Keepalive())
                await trio.sleep(0.05)
        assert room.client_owner.lost == "drained"
        # It said goodbye, and that came through behind everything else.
        assert await room.server_owner.end() == "the peer closed the tunnel"


async def splice_refused() -> dict[str, int]:
    """A kernel that begins to refuse splice in the middle: the bytes go another way."""
    real, calls = os.splice, 0

    def refuse(*args: Any, **named: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise OSError(errno.EPERM, "Operation not permitted")
        return real(*args, **named)

    async with _room() as room:
        with mock.patch.object(os, "splice", refuse):
            moved = await _exchange(room, random.Random(9))
        _moved(room)
        assert room.client.engine.paths.pipes is None
        return {"bytes": moved, "calls": calls}


async def fatal_alert() -> list[str]:
    """Alerts end a tunnel, say why, and cut the streams on it, from either end."""
    reasons = []
    for ends in (("ktls", "tls"), ("tls", "ktls"), ("ktls", "ktls")):
        async with _room(*ends) as room:
            client, server = await _warm(room)
            await _say(client, server, b"before")
            tunnel = room.client
            tunnel.close("a test", alert=tunnel.session.alert(Alert.CERTIFICATE_REVOKED))
            reason = await room.server_owner.end()
            assert "certificate_revoked" in reason, reason
            reasons.append(reason)
            for end in (client, server):
                assert (await end.result()).error is not None
                end.app.socket.close()
    return reasons


async def forged() -> list[str]:
    """A record that does not authenticate ends the tunnel, and both its ends say so."""
    async with _room("ktls", "tls") as room:
        client, server = await _warm(room)
        records = _records(room.server)
        wire = bytearray(seal(records, bytes(100)))
        wire[50] ^= 1
        room.server.sock.send(wire)
        ours, theirs = await room.client_owner.end(), await room.server_owner.end()
        assert "does not authenticate" in ours, ours
        assert "bad_record_mac" in theirs, theirs
        for end in (client, server):
            assert (await end.result()).error is not None
            end.app.socket.close()
        return [ours, theirs]


async def cut() -> str:
    """A connection that ends without a word is no clean end for the streams on it."""
    async with _room("ktls", "tls") as room:
        client, server = await _warm(room)
        await _say(server, client, b"a part of it")
        room.server.sock.shutdown(socket.SHUT_WR)
        reason = await room.client_owner.end()
        try:
            await receive_all(client.app)
        except trio.BrokenResourceError:
            pass
        else:
            raise AssertionError("a cut stream looked whole")
        assert (await client.result()).error is not None
        return reason


def _records(tunnel: Tunnel) -> OwnRecords:
    assert isinstance(tunnel.session, OwnRecords)
    return tunnel.session


async def key_updates(client: str, server: str) -> dict[str, int]:
    """Keys change every few milliseconds while bytes are under way both ways."""
    async with _room(client, server) as room:
        await _exchange(room, random.Random(10), streams=1)
        _moved(room)
        updates = 0

        async def renew() -> None:
            nonlocal updates
            while True:
                for tunnel in (room.client, room.server):
                    _records(tunnel).renew_keys()
                    tunnel.mark_dirty()
                    updates += 1
                    await trio.sleep(0.02)

        before = [_records(tunnel).ktls_parameters(sending=True).key for tunnel in _both(room)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renew)
            moved = await _exchange(room, random.Random(11))
            nursery.cancel_scope.cancel()
        after = [_records(tunnel).ktls_parameters(sending=True).key for tunnel in _both(room)]
        assert not set(before) & set(after)
        assert updates > 4
        return {"bytes": moved, "updates": updates, **_moved(room)}


def _both(room: Joined) -> tuple[Tunnel, Tunnel]:
    return room.client, room.server


async def key_limit() -> dict[str, int]:
    """The kernel's count of records brings a KeyUpdate about, in good time."""
    async with _room("ktls", "tls") as room:
        client, server = await _warm(room)
        tunnel = room.client
        records = _records(tunnel)
        before = records.ktls_parameters(sending=True).key
        theirs = _records(room.server).ktls_parameters(sending=True).key
        tunnel.tick(trio.current_time(), Keepalive())
        assert not records.update_due
        used = 10  # fewer than have passed
        with mock.patch.object(records, "_rekey_after", used):
            tunnel.tick(trio.current_time(), Keepalive())
        await _say(client, server, b"under new keys")
        await _say(server, client, b"in both directions")
        assert records.ktls_parameters(sending=True).key != before
        records.used(0, 1 << 23)
        await _say(client, server, b"asked")
        await _say(server, client, b"answered")
        assert _records(room.server).ktls_parameters(sending=True).key != theirs
        return {"used": used}


async def no_new_keys() -> list[str]:
    """A kernel that cannot change keys: the tunnel ends when they must, and says why."""
    reasons = []
    for ends in (("ktls", "tls"), ("tls", "ktls")):
        async with _room(*ends) as room:
            client, server = await _warm(room)
            _records(room.client).renew_keys()
            await client.app.send_all(b"under a new key")
            room.client.mark_dirty()
            owner = room.client_owner if ends[0] == "ktls" else room.server_owner
            reason = await owner.end()
            assert "Linux 6.14" in reason, reason
            reasons.append(reason)
            for end in (client, server):
                assert (await end.result()).error is not None
                end.app.socket.close()
    return reasons
