"""Bytes travel from pod to pod through captured sockets and mutual TLS tunnels."""

import hashlib
import random

import pytest
import trio

from tests.support.pair import ECHO, Pair
from tests.support.sockets import abort, buffers_of_a_pair, receive_all, receive_exactly

pytestmark = pytest.mark.root


async def test_both_proxies_log_the_connection_with_both_identities(pair: Pair) -> None:
    stream = await pair.dial()
    await stream.send_all(b"hello")
    assert await receive_exactly(stream, 5) == b"hello"
    await stream.aclose()
    outbound = await pair.mesh.line('direction="outbound"', "connection complete")
    inbound = await pair.mesh.line('direction="inbound"', "connection complete")
    for line in (outbound, inbound):
        assert f'src.identity="{pair.client.identity.uri}"' in line
        assert f'dst.identity="{pair.server.identity.uri}"' in line
        assert 'path="tls"' in line
        assert 'closed_by="client"' in line
        assert "error=" not in line
    assert f"dst.hbone_addr={pair.room.ip('server')}:{ECHO}" in outbound
    assert "bytes_sent=5 bytes_recv=5" in outbound


async def test_the_application_sees_the_client_address(pair: Pair) -> None:
    listener = pair.listen(7001)
    stream = await pair.dial(7001)
    accepted = await pair.accept(listener)
    assert accepted.socket.getpeername()[0] == pair.room.ip("client")
    await stream.aclose()


async def test_connections_share_one_tunnel(pair: Pair) -> None:
    streams = [await pair.dial() for _ in range(20)]
    for stream in streams:
        await stream.send_all(b"x")
        assert await receive_exactly(stream, 1) == b"x"
    assert pair.mesh.pods["client"].tunnel_counts[:2] == (1, 20)
    assert pair.mesh.pods["server"].tunnel_counts[2:] == (1, 20)
    for stream in streams:
        await stream.aclose()


async def test_tunnels_that_carry_bulk_try_to_move_into_the_kernel(pair: Pair) -> None:
    """Both proxies' ends do where kTLS is on; where the kernel refuses, nothing is lost by it."""
    paths = pair.mesh.engine.paths
    paths.ktls = True
    stream = await pair.dial()
    payload = random.Random(2).randbytes(6 << 20)

    async def send() -> None:
        await stream.send_all(payload)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with trio.fail_after(30):
            assert await receive_all(stream) == payload
    await stream.aclose()
    taken = paths.ktls  # this kernel has the tls module
    assert taken or "refused while in use" in paths.reasons["ktls"]
    expected = f'path="{"ktls" if taken else "tls"}"'
    for direction in ("outbound", "inbound"):
        assert expected in await pair.mesh.line(f'direction="{direction}"', "connection complete")


async def test_the_client_may_finish_first(pair: Pair) -> None:
    stream = await pair.dial()
    payload = random.Random(1).randbytes(300_000)

    async def send() -> None:
        await stream.send_all(payload)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with trio.fail_after(30):
            assert await receive_all(stream) == payload
    await stream.aclose()


async def test_the_server_may_finish_first(pair: Pair) -> None:
    listener = pair.listen(7001)
    stream = await pair.dial(7001)
    accepted = await pair.accept(listener)
    await accepted.send_all(b"bye")
    await accepted.send_eof()
    with trio.fail_after(30):
        assert await receive_all(stream) == b"bye"
        await stream.send_all(b"still here")
        await stream.send_eof()
        assert await receive_all(accepted) == b"still here"
    await stream.aclose()
    assert 'closed_by="server"' in await pair.mesh.line('direction="inbound"')


async def test_bulk_is_exact_both_ways_at_once(pair: Pair) -> None:
    size = 24 * 1024 * 1024
    block = random.Random(2).randbytes(1 << 16)

    async def send(stream: trio.SocketStream) -> str:
        digest = hashlib.sha256()
        for _ in range(size // len(block)):
            await stream.send_all(block)
            digest.update(block)
        await stream.send_eof()
        return digest.hexdigest()

    async def check(stream: trio.SocketStream) -> None:
        digest, count = hashlib.sha256(), 0
        while some := await stream.receive_some(1 << 18):
            digest.update(some)
            count += len(some)
        assert count == size
        assert digest.hexdigest() == expected

    whole = hashlib.sha256()
    for _ in range(size // len(block)):
        whole.update(block)
    expected = whole.hexdigest()
    streams = [await pair.dial() for _ in range(3)]
    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(send, stream)
                nursery.start_soon(check, stream)


async def test_a_reset_by_the_client_is_a_reset_at_the_server(pair: Pair) -> None:
    listener = pair.listen(7001)
    stream = await pair.dial(7001)
    accepted = await pair.accept(listener)
    await stream.send_all(b"half a mess")
    await receive_exactly(accepted, 11)
    abort(stream)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(accepted)
    assert "error=" in await pair.mesh.line('direction="inbound"')


async def test_a_reset_by_the_server_is_a_reset_at_the_client(pair: Pair) -> None:
    listener = pair.listen(7001)
    stream = await pair.dial(7001)
    accepted = await pair.accept(listener)
    await stream.send_all(b"x")
    await receive_exactly(accepted, 1)
    abort(accepted)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(stream)


async def test_nobody_listens_at_the_destination(pair: Pair) -> None:
    stream = await pair.dial(7999)
    await stream.send_all(b"x")
    with trio.fail_after(30):
        try:
            assert await receive_all(stream) == b""
        except trio.BrokenResourceError:
            pass  # it had sent something: the proxy's close is a reset
    line = await pair.mesh.line('direction="outbound"', "error=")
    assert "503" in line
    assert "Connection refused" in line
    assert 'response_flags="CONNECT"' in line


async def test_a_reader_that_stops_does_not_hold_up_others(pair: Pair) -> None:
    listener = pair.listen(7001)
    stuck = await pair.dial(7001)
    accepted = await pair.accept(listener)
    sent = 0
    with trio.move_on_after(1.5) as limit:
        while True:
            sent += await stuck.socket.send(bytes(65536))
            limit.deadline = trio.current_time() + 1.5  # blocked for that long
    # It was held up, and nobody keeps what it wanted to send: what three pairs of sockets hold, and
    # the windows of a stream.
    assert sent < 3 * buffers_of_a_pair() + (8 << 20)
    others = [await pair.dial() for _ in range(20)]
    with trio.fail_after(30):
        for _ in range(50):
            for other in others:
                await other.send_all(b"ping")
            for other in others:
                assert await receive_exactly(other, 4) == b"ping"
    received = 0
    with trio.fail_after(30):
        while received < sent:
            received += len(await accepted.receive_some(1 << 18))
    await stuck.aclose()
    for other in others:
        await other.aclose()


async def test_a_thousand_connections_at_once(pair: Pair) -> None:
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        stream = await pair.dial()
        text = f"number {number}".encode()
        await stream.send_all(text)
        assert await receive_exactly(stream, len(text)) == text
        await stream.aclose()
        done += 1

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(one, number)
    assert done == 1000
    with trio.fail_after(30):
        while len(pair.mesh.context.registry):
            await trio.sleep(0.01)


async def test_a_pod_calls_itself_by_its_address(pair: Pair) -> None:
    stream = await pair.dial(pod="server")
    await stream.send_all(b"me")
    assert await receive_exactly(stream, 2) == b"me"
    await stream.aclose()


async def test_the_proxy_itself_cannot_be_called_from_its_pod(pair: Pair) -> None:
    with pytest.raises((OSError, EOFError, trio.BrokenResourceError)):
        stream = await pair.dial(15001, "127.0.0.1")
        await stream.send_all(b"x")
        await receive_exactly(stream, 1)
