"""Two plain sockets: every byte, both half-closes, resets, and slow readers, on every path."""

import random
from collections.abc import AsyncIterator

import pytest
import trio

from tests.support.requirements import without_sockmap
from tests.support.sockets import (
    abort,
    buffers_of_a_pair,
    receive_all,
    receive_exactly,
    receive_slowly,
    send_in_pieces,
    tcp_pair,
)
from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.relay import pair
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import ClosedBy, Outcome
from ztunnel.relay.pair import JOIN_AFTER, PairFlow


class Ends:
    """A client and a server with a relay between them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.client, near = tcp_pair()
        self.server, far = tcp_pair()
        self.outcome: Outcome | None = None
        self.ended = trio.Event()
        self.flow = PairFlow(engine, near, far, self)

    def flow_ended(self, outcome: Outcome) -> None:
        assert self.outcome is None
        self.outcome = outcome
        self.ended.set()

    async def result(self) -> Outcome:
        with trio.fail_after(30):
            await self.ended.wait()
        assert self.outcome is not None
        return self.outcome

    def close(self) -> None:
        self.client.socket.close()
        self.server.socket.close()

    async def talk(self) -> None:
        """A few small messages, so that the flow leaves the copy path if it may."""
        for one, other in ((self.client, self.server), (self.server, self.client)) * JOIN_AFTER:
            await one.send_all(b"ping")
            assert await receive_exactly(other, 4) == b"ping"


TALK = 4 * JOIN_AFTER  # bytes of it in each direction


@pytest.fixture(params=["copy", "splice", "sockmap"])
async def ends(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Ends]:
    engine = Engine()
    if request.param == "splice":
        engine.use_paths(KernelPaths(pipes=Pipes()))
        monkeypatch.setattr(pair, "BULK", 1)  # every read but the first
    elif request.param == "sockmap":
        if without_sockmap() is not None:
            pytest.skip(str(without_sockmap()))
        engine.use_paths(KernelPaths(sockmap=Sockmap(16)))
        monkeypatch.setattr(pair, "CROWD", 1 << 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        made = Ends(engine)
        await made.talk()
        assert made.flow.path == request.param
        yield made
        made.flow.abort("test over")
        made.close()
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    engine.close()


@pytest.mark.parametrize("seed", range(6))
async def test_every_byte_arrives_in_both_directions(ends: Ends, seed: int) -> None:
    rng = random.Random(seed)
    up, down = rng.randbytes(rng.randrange(400_000)), rng.randbytes(rng.randrange(400_000))
    got: dict[str, bytes] = {}

    async def receive(name: str, stream: trio.SocketStream) -> None:
        got[name] = await receive_slowly(stream, random.Random(seed + 1))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_pieces, ends.client, up, rng)
            nursery.start_soon(send_in_pieces, ends.server, down, rng)
            nursery.start_soon(receive, "up", ends.server)
            nursery.start_soon(receive, "down", ends.client)
    assert got == {"up": up, "down": down}
    outcome = await ends.result()
    assert outcome.error is None
    assert (outcome.from_client, outcome.from_server) == (TALK + len(up), TALK + len(down))


@pytest.mark.parametrize("first", [ClosedBy.CLIENT, ClosedBy.SERVER])
async def test_half_close_leaves_the_other_direction_open(ends: Ends, first: ClosedBy) -> None:
    one, other = ends.client, ends.server
    if first is ClosedBy.SERVER:
        one, other = other, one
    await one.send_all(b"last words")
    await one.send_eof()
    assert await receive_all(other) == b"last words"
    await other.send_all(b"still here")
    assert await receive_exactly(one, 10) == b"still here"
    await other.send_eof()
    assert await receive_all(one) == b""
    outcome = await ends.result()
    assert outcome.error is None
    assert outcome.closed_by is first


async def test_a_reset_becomes_a_reset(ends: Ends) -> None:
    await ends.client.send_all(b"x")
    await receive_exactly(ends.server, 1)
    abort(ends.client)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(ends.server)
    outcome = await ends.result()
    assert outcome.closed_by is ClosedBy.CLIENT
    assert outcome.error is not None


async def test_an_abort_of_ours_is_visible_to_both(ends: Ends) -> None:
    ends.flow.abort("policy")
    for stream in (ends.client, ends.server):
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
            await receive_all(stream)
    outcome = await ends.result()
    assert (outcome.closed_by, outcome.error) == (ClosedBy.PROXY, "policy")


async def test_a_reader_that_stops_holds_the_writer_up(ends: Ends) -> None:
    sent = 0
    with trio.move_on_after(0.5) as limit:
        while True:
            sent += await ends.client.socket.send(bytes(65536))
            limit.deadline = trio.current_time() + 0.5  # blocked for that long
    # What two pairs of sockets hold, which the kernel makes as large as it likes, and a pipe.
    assert sent < 2 * buffers_of_a_pair() + (2 << 20)
    received = 0
    with trio.fail_after(30):
        while received < sent:
            received += len(await ends.server.receive_some(1 << 18))
