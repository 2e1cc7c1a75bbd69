"""Garbage at every door of a pod costs the one who sends it, and nobody else."""

import random
import struct

import pytest
import trio

from tests.support.pair import ECHO, Pair
from tests.support.sockets import connect, receive_exactly
from tests.support.tunnel import client_on
from ztunnel.mesh.identity import Identity
from ztunnel.tls.spiffe import ServerMustBe

pytestmark = pytest.mark.root

CALLER = Identity("cluster.local", "street", "caller")
TRIES = 30


async def works(pair: Pair) -> bool:
    stream = await pair.dial()
    with trio.fail_after(30):
        await stream.send_all(b"hello")
        return await receive_exactly(stream, 5) == b"hello"


async def until_closed(stream: trio.SocketStream, data: bytes) -> None:
    """Sends it and waits until the other end has had enough of it, or of waiting."""
    async with stream:
        try:
            await stream.send_all(data)
            await stream.send_eof()
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            return


@pytest.mark.parametrize("port", [15001, 15006, 15008])
async def test_noise_at_a_listener(pair: Pair, port: int) -> None:
    rng = random.Random(port)
    network = pair.room.node(1).network
    hello = b"\x16\x03\x01"  # the start of a TLS record
    with trio.fail_after(60):
        for _ in range(TRIES):
            start = rng.choice(
                (b"", hello, hello + struct.pack("!H", rng.randrange(65536)), b"GET /")
            )
            stream = await connect(network, pair.room.ip("server"), port)
            await until_closed(stream, start + rng.randbytes(rng.choice((0, 1, 100, 5000))))
    assert await works(pair)
    if port == 15008:
        await pair.mesh.line("connection failed", "tunnel:")


async def test_noise_inside_a_good_tls_session(pair: Pair) -> None:
    """An admitted peer that does not speak HTTP/2, or breaks it at some point."""
    rng = random.Random(8)
    certificate = pair.mesh.authority.workload(CALLER)
    verify = ServerMustBe((pair.server.identity,), None)
    with trio.fail_after(60):
        for number in range(TRIES):
            transport = await connect(pair.room.node(1).network, pair.room.ip("server"), 15008)
            async with client_on(transport, certificate, verify) as tunnel:
                if number % 2:
                    await tunnel.connect(f"{pair.room.ip('server')}:{ECHO}")
                else:
                    tunnel.connection.out.clear()  # not even the preface
                length = rng.choice((0, 1, 8, 1000, 100_000))
                frame = length.to_bytes(3, "big") + rng.randbytes(6)
                tunnel.connection.out += frame + rng.randbytes(min(length, 2000))
                tunnel.connection.out += rng.randbytes(20_000)
                await tunnel.flush()
                with trio.move_on_after(0.2):  # it may look like the start of a long frame
                    await tunnel.change.until(lambda: tunnel.lost is not None)
    assert await works(pair)
    with trio.fail_after(30):
        while pair.mesh.pods["server"].tunnel_counts[2] > 1:  # those all go with their peers
            await trio.sleep(0.01)
    await pair.mesh.line("error=", 'direction="inbound"')
