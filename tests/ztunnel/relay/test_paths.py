"""Flows that change their path under way, readers that stop, and kernels that refuse."""

import errno
import itertools
import os
import random
import stat
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from tests.support.descriptors import no_leak
from tests.support.requirements import without_sockmap
from tests.support.sockets import abort, receive_all, receive_exactly, receive_slowly, tcp_pair
from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.linux import netns
from ztunnel.linux.tcp_info import progress
from ztunnel.relay import pair
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import ClosedBy, Outcome
from ztunnel.relay.pair import JOIN_AFTER, PairFlow
from ztunnel.relay.probe import OFF, probe_paths

pytestmark = pytest.mark.root

MOST = 8 << 20  # bytes that a reader who stops may cost


class Room:
    """An engine with every kernel path, and the flows of a test in it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.flows: list[Ends] = []

    def flow(self) -> "Ends":
        made = Ends(self.engine)
        self.flows.append(made)
        return made


class Ends:
    """A client and a server with a relay between them."""

    def __init__(self, engine: Engine) -> None:
        self.client, near = tcp_pair()
        self.server, far = tcp_pair()
        self.outcome: Outcome | None = None
        self.ended = trio.Event()
        self.sent = {self.client: 0, self.server: 0}
        self.flow = PairFlow(engine, near, far, self)

    def flow_ended(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.ended.set()

    def other(self, end: trio.SocketStream) -> trio.SocketStream:
        return self.server if end is self.client else self.client

    async def say(self, end: trio.SocketStream, data: bytes) -> None:
        """Sends, and sees that exactly this arrives."""
        self.sent[end] += len(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.send_all, data)
            assert await receive_exactly(self.other(end), len(data)) == data

    async def traffic(self, kind: str, rng: random.Random) -> None:
        """What brings a flow onto the path of that name."""
        if kind == "copy":  # too large for small messages, too small for bulk
            for end in (self.client, self.server) * 3:
                await self.say(end, rng.randbytes(20_000))
        elif kind == "splice":
            async with trio.open_nursery() as nursery:
                for end in (self.client, self.server):
                    nursery.start_soon(self.say, end, rng.randbytes(rng.randrange(1, 3) << 20))
        else:
            for end in (self.client, self.server) * (2 * JOIN_AFTER):
                await self.say(end, rng.randbytes(rng.randrange(1, 2000)))

    async def finish(self, first: trio.SocketStream) -> None:
        """A half-close, something after it, and the other one. Everything was counted."""
        other = self.other(first)
        await first.send_eof()
        assert await receive_all(other) == b""
        await self.say(other, b"still here")
        await other.send_eof()
        assert await receive_all(first) == b""
        await self.ended.wait()
        outcome = self.outcome
        assert outcome is not None
        assert outcome.error is None
        assert outcome.closed_by is (ClosedBy.CLIENT if first is self.client else ClosedBy.SERVER)
        assert outcome.from_client == self.sent[self.client]
        assert outcome.from_server == self.sent[self.server]


@pytest.fixture
async def room(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    if without_sockmap() is not None:
        pytest.skip(str(without_sockmap()))
    monkeypatch.setattr(pair, "CROWD", 1 << 30)  # a machine that is busy makes rounds large
    engine = Engine()
    engine.use_paths(KernelPaths(Sockmap(64), Pipes(4)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        made = Room(engine)
        yield made
        for ends in made.flows:
            ends.flow.abort("test over")
            ends.client.socket.close()
            ends.server.socket.close()
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert engine.errors == 0
    engine.close()


KINDS = ("copy", "splice", "sockmap")


@pytest.mark.parametrize(("first", "then"), list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize("seed", range(2))
async def test_a_flow_goes_from_path_to_path_and_loses_nothing(
    room: Room, first: str, then: str, seed: int
) -> None:
    rng = random.Random(f"{first} {then} {seed}")
    ends = room.flow()
    with trio.fail_after(30):
        await ends.traffic(first, rng)
        assert ends.flow.path == first
        await ends.traffic(then, rng)
        # From the kernel bulk goes by hand, and the flow stays joined for what comes after.
        reached = max(first, then, key=("copy", "splice", "sockmap").index)
        assert ends.flow.path == reached
        await ends.traffic(first, rng)
        await ends.traffic(rng.choice(KINDS), rng)
        await ends.finish(rng.choice((ends.client, ends.server)))


@pytest.mark.parametrize("seed", range(8))
async def test_chunks_of_any_size_both_ways_at_once(room: Room, seed: int) -> None:
    """No turn-taking: credit is spent and granted while bytes are under way."""

    async def send(end: trio.SocketStream, data: bytes, rng: random.Random) -> None:
        position = 0
        while position < len(data):
            sizes = (1, 10, 50, 500, 5000) if rng.random() < 0.98 else (100_000, 400_000)
            size = rng.choice(sizes)
            await end.send_all(data[position : position + size])
            position += size
            if rng.random() < 0.02:
                await trio.sleep(0.0005)
        await end.send_eof()

    async def receive(end: trio.SocketStream, wanted: bytes, rng: random.Random) -> None:
        assert await receive_slowly(end, rng) == wanted

    rng = random.Random(seed)
    flows = [room.flow() for _ in range(3)]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for ends in flows:
                for end in (ends.client, ends.server):
                    data = rng.randbytes(rng.randrange(1_500_000))
                    ends.sent[end] = len(data)
                    nursery.start_soon(send, end, data, random.Random(rng.random()))
                    nursery.start_soon(receive, ends.other(end), data, random.Random(rng.random()))
        for ends in flows:
            await ends.ended.wait()
            assert ends.outcome is not None
            assert ends.outcome.error is None
            assert ends.outcome.from_client == ends.sent[ends.client]
            assert ends.outcome.from_server == ends.sent[ends.server]
    assert "sockmap" in {ends.flow.path for ends in flows}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1000, 65536])
async def test_a_reader_that_stops_costs_little_and_gets_it_all(
    room: Room, kind: str, size: int
) -> None:
    ends = room.flow()
    with trio.fail_after(60):
        await ends.traffic(kind, random.Random(1))
        sock = ends.client.socket
        block = random.Random(2).randbytes(size)
        sent = 0
        with trio.move_on_after(1) as limit:
            while True:
                sent += await sock.send(block[sent % size :])
                limit.deadline = trio.current_time() + 1  # blocked for a whole second
        came, _, _ = progress(ends.flow.client.sock)
        _, written, unacknowledged = progress(ends.flow.server.sock)
        # Between what came to our node's side and what the reader's kernel has taken.
        held = came - (written - unacknowledged)
        # The kernel gives a bulk flow larger buffers by itself; a pipe comes on top.
        own = sum(int(netns.sysctl(f"net.ipv4.tcp_{way}mem").split()[2]) for way in "rw")
        assert held < (MOST if kind == "sockmap" else own + (1 << 20))
        expected = memoryview(block * (sent // size + 1))[:sent]
        assert await receive_exactly(ends.server, sent) == expected
        ends.sent[ends.client] += sent
        await ends.finish(ends.client)


async def test_one_direction_goes_on_while_the_other_is_stuck(room: Room) -> None:
    """What passes by hand must not wait behind packets that nobody takes."""
    ends = room.flow()
    with trio.fail_after(60):
        await ends.traffic("sockmap", random.Random(1))
        with trio.move_on_after(0.5) as limit:
            while True:
                await ends.server.socket.send(bytes(65536))  # the client reads nothing
                limit.deadline = trio.current_time() + 0.5
        data = random.Random(2).randbytes(3_000_000)
        for start in range(0, len(data), 1000):
            await ends.client.send_all(data[start : start + 1000])
            assert (
                await receive_exactly(
                    ends.server, 1000 if start + 1000 <= len(data) else len(data) - start
                )
                == data[start : start + 1000]
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [ClosedBy.CLIENT, ClosedBy.SERVER])
async def test_a_reset_is_passed_on_from_every_path(room: Room, kind: str, first: ClosedBy) -> None:
    ends = room.flow()
    with trio.fail_after(30):
        await ends.traffic(kind, random.Random(1))
        one = ends.client if first is ClosedBy.CLIENT else ends.server
        other = ends.other(one)
        abort(one)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(other)
        await ends.ended.wait()
    assert ends.outcome is not None
    assert ends.outcome.closed_by is first
    assert ends.outcome.error is not None


async def test_flows_that_are_served_in_a_crowd_stay_on_the_copy_path(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "CROWD", 0)
    ends = room.flow()
    with trio.fail_after(30):
        await ends.traffic("sockmap", random.Random(1))
        assert ends.flow.path == "copy"
        await ends.finish(ends.server)


async def test_a_socket_that_cannot_be_joined_stays_where_it_is(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refused(*_: object) -> None:
        tries.append(1)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    sockmap = room.engine.paths.sockmap
    assert sockmap is not None
    monkeypatch.setattr(sockmap, "join", refused)
    ends = room.flow()
    with trio.fail_after(30):
        for _ in range(3):
            await ends.traffic("sockmap", random.Random(1))
        assert ends.flow.path == "copy"
        await ends.finish(ends.client)
    assert tries == [1]  # once is enough


async def test_pipes_are_shared_and_stuck_flows_leave_some_to_others(room: Room) -> None:
    """More stuck flows than pipes: the rest go on through user space."""
    flows = [room.flow() for _ in range(6)]
    data = random.Random(3).randbytes(6 << 20)
    got: list[bytes] = []

    async def late(ends: Ends, go: trio.Event) -> None:
        await go.wait()
        got.append(await receive_exactly(ends.server, len(data)))

    go = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for ends in flows:
                nursery.start_soon(ends.client.send_all, data)
                nursery.start_soon(late, ends, go)
            await trio.sleep(0.3)
            pipes = room.engine.paths.pipes
            assert pipes is not None
            assert pipes.made <= 4
            await flows[-1].say(flows[-1].server, b"the other way")
            go.set()
    assert got == [data] * 6


async def test_a_kernel_that_refuses_splice_later_costs_no_byte(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = room.flow()
    calls = itertools.count()
    real = os.splice

    def filtered(*arguments: Any, **options: Any) -> int:
        if next(calls) >= 3:  # out of a pipe that has bytes in it
            raise OSError(errno.EPERM, "Operation not permitted")
        return real(*arguments, **options)

    monkeypatch.setattr(os, "splice", filtered)
    with trio.fail_after(30):
        await ends.traffic("splice", random.Random(1))
        await ends.traffic("splice", random.Random(2))
        await ends.finish(ends.client)
    assert room.engine.paths.pipes is None
    assert "refused while in use" in room.engine.paths.reasons["splice"]


async def test_the_probe_finds_both_paths_and_leaves_out_what_is_not_wanted() -> None:
    if without_sockmap() is not None:
        pytest.skip(str(without_sockmap()))
    with no_leak():
        paths = await probe_paths(True, True, False)
        assert paths.reasons == {"sockmap": "", "splice": "", "ktls": OFF}
        assert paths.sockmap is not None
        assert paths.pipes is not None
        paths.close()
        paths = await probe_paths(False, False, False)
        assert (paths.sockmap, paths.pipes) == (None, None)
        assert paths.reasons == {"sockmap": OFF, "splice": OFF, "ktls": OFF}


async def test_a_path_that_spoils_a_byte_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.splice
    spoiled: list[bool] = []

    def spoiling(source: int, target: int, count: int, flags: int) -> int:
        if stat.S_ISSOCK(os.fstat(source).st_mode) and not spoiled:
            os.write(target, bytes([os.read(source, 1)[0] ^ 1]))
            spoiled.append(True)
            return 1
        return real(source, target, count, flags=flags)

    monkeypatch.setattr(os, "splice", spoiling)
    with caplog.at_level("INFO", "ztunnel.kernel"):
        paths = await probe_paths(False, True, False)
    assert paths.pipes is None
    assert caplog.messages == ["kernel path splice is off: other bytes arrived than were sent"]


async def test_without_the_right_to_load_programs_the_path_is_off_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "make a BPF map: Operation not permitted")

    monkeypatch.setattr("ztunnel.kernel.sockmap.Map", refused)
    with caplog.at_level("INFO", "ztunnel.kernel"):
        paths = await probe_paths(True, True, False)
    assert paths.sockmap is None
    assert paths.pipes is not None
    assert caplog.messages == [
        "kernel path sockmap is off: make a BPF map: Operation not permitted"
    ]
    paths.close()
