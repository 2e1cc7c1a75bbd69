"""The engine: rounds, waits, deadlines, and what a failing handler costs."""

import select
import socket
import time
from collections.abc import AsyncIterator

import pytest
import trio

from ztunnel.relay.engine import COMPANY, NO_MORE, TOO_LONG, Engine


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        nursery.start_soon(made.watch_deadlines)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


class Recorder:
    """A handler that reads what comes, or fails."""

    def __init__(self, engine: Engine, sock: socket.socket, fails: bool = False) -> None:
        sock.setblocking(False)
        self.engine = engine
        self.sock = sock
        self.fails = fails
        self.data = b""
        self.error: BaseException | None = None
        self.arrived = trio.Event()
        engine.register(sock.fileno(), self, select.EPOLLIN)

    def ready(self, events: int) -> None:
        if self.fails:
            raise ValueError("on purpose")
        self.data += self.sock.recv(100)
        self.arrived.set()

    def failed(self, error: BaseException) -> None:
        self.error = error
        self.engine.close_later(self.sock)
        self.arrived.set()


async def test_a_handler_gets_its_events(engine: Engine) -> None:
    near, far = socket.socketpair()
    recorder = Recorder(engine, near)
    far.send(b"hello")
    with trio.fail_after(30):
        await recorder.arrived.wait()
    assert recorder.data == b"hello"
    engine.close_later(near)
    far.close()


async def test_an_exception_ends_one_handler_only(engine: Engine) -> None:
    near, far = socket.socketpair()
    other_near, other_far = socket.socketpair()
    bad = Recorder(engine, near, fails=True)
    good = Recorder(engine, other_near)
    far.send(b"x")
    other_far.send(b"y")
    with trio.fail_after(30):
        await bad.arrived.wait()
        await good.arrived.wait()
    assert isinstance(bad.error, ValueError)
    assert good.data == b"y"
    assert engine.errors == 1
    engine.close_later(other_near)
    far.close()
    other_far.close()


async def test_a_task_waits_in_the_same_epoll(engine: Engine) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    took: list[float] = []

    async def later() -> None:
        await trio.sleep(0.05)
        far.send(b"x")

    for _ in range(5):
        started = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            with trio.fail_after(30):
                await engine.wait(near.fileno(), select.EPOLLIN)
        took.append(time.monotonic() - started)
        near.recv(1)
    assert 0.04 < min(took) < 0.2  # not only when the engine looks after deadlines
    near.close()
    far.close()


async def test_a_cancelled_wait_leaves_nothing_behind(engine: Engine) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    with trio.move_on_after(0.02) as scope:
        await engine.wait(near.fileno(), select.EPOLLIN)
    assert scope.cancelled_caught
    recorder = Recorder(engine, near)  # the descriptor may be registered again
    far.send(b"z")
    with trio.fail_after(30):
        await recorder.arrived.wait()
    engine.close_later(near)
    far.close()


async def test_a_closed_descriptor_gets_no_stale_event(engine: Engine) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    served: list[int] = []

    class Closer:
        """Closes the other one, whatever was about to be served there."""

        def __init__(self, index: int) -> None:
            self.index = index
            engine.register(pairs[index][0].fileno(), self, select.EPOLLIN)

        def ready(self, events: int) -> None:
            served.append(self.index)
            engine.close_later(pairs[1 - self.index][0])
            engine.close_later(pairs[self.index][0])

        def failed(self, error: BaseException) -> None:
            raise error

    Closer(0)
    Closer(1)
    for _, far in pairs:
        far.send(b"x")
    with trio.fail_after(30):
        while not served:
            await trio.sleep(0.01)
    await trio.sleep(0.05)
    assert len(served) == 1
    for _, far in pairs:
        far.close()


async def test_output_made_outside_a_round_is_written_soon(engine: Engine) -> None:
    written = trio.Event()

    class Dirty:
        def flush(self) -> None:
            written.set()

        def failed(self, error: BaseException) -> None:
            raise error

    await trio.sleep(0.02)  # the engine is asleep by now
    engine.dirty(Dirty())
    with trio.fail_after(30):
        await written.wait()


async def test_deadlines_are_served_once_and_can_be_forgotten(engine: Engine) -> None:
    expired: list[str] = []

    class Item:
        def __init__(self, name: str) -> None:
            self.name = name

        def expired(self) -> None:
            expired.append(self.name)

    kept, forgotten = Item("kept"), Item("forgotten")
    engine.expire_at(kept, time.monotonic() + 0.05)
    engine.expire_at(forgotten, time.monotonic() + 0.05)
    engine.in_time(forgotten)
    with trio.fail_after(30):
        while not expired:
            await trio.sleep(0.01)
    await trio.sleep(0.7)
    assert expired == ["kept"]


async def test_other_tasks_run_while_descriptors_are_always_ready(engine: Engine) -> None:
    near, far = socket.socketpair()

    class Busy:
        def ready(self, events: int) -> None:
            """Never reads: the descriptor stays ready."""

        def failed(self, error: BaseException) -> None:
            raise error

    engine.register(near.fileno(), Busy(), select.EPOLLIN)
    far.send(b"x")
    with trio.fail_after(30):
        for _ in range(20):
            await trio.sleep(0.001)
    engine.close_later(near)
    far.close()


async def test_a_socket_of_our_own_is_gone_with_its_round(engine: Engine) -> None:
    for _ in range(3):  # the same number each time: nothing of the one before may be left
        near, far = socket.socketpair()
        recorder = Recorder(engine, near)
        engine.close_own(near)
        far.send(b"too late")
        with trio.fail_after(30):
            while near.fileno() >= 0:
                await trio.lowlevel.checkpoint()
        far.close()
        assert recorder.data == b""
    engine.close_own(near)  # closed already


class Chain:
    """Passes a byte on to the next one, and notes in which round it got it."""

    def __init__(self, engine: Engine, following: "Chain | None" = None) -> None:
        self.engine = engine
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.following = following
        self.round = 0
        self.arrived = trio.Event()
        engine.register(self.near.fileno(), self, select.EPOLLIN)

    def ready(self, events: int) -> None:
        self.near.recv(1)
        self.round = self.engine.rounds
        self.engine.dirty(self)
        if self.following is not None:
            self.following.far.send(b"x")
        self.arrived.set()

    def flush(self) -> None:
        """Nothing to write; a round only looks again where there is."""

    def failed(self, error: BaseException) -> None:
        raise error

    def close(self) -> None:
        self.engine.close_own(self.near)
        self.far.close()


async def test_who_is_alone_is_not_made_to_wait_for_others(engine: Engine) -> None:
    last = Chain(engine)
    first = Chain(engine, last)
    other = Chain(engine)

    async def pass_on(*starts: Chain) -> int:
        """How many rounds later it came to the last one."""
        last.arrived = trio.Event()
        for start in starts:  # without a checkpoint between: one round serves them all
            start.far.send(b"x")
        with trio.fail_after(30):
            await last.arrived.wait()
        return last.round - first.round

    assert await pass_on(first, other) == 0
    assert await pass_on(first) == 0
    for _ in range(COMPANY + 1):
        await pass_on(last)
    assert await pass_on(first) == 1
    assert await pass_on(first, other) == 0
    for chain in (first, last, other):
        chain.close()


class Processor:
    """Notes when the engine gives it up, and may keep it for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given_up = 0
        self.keeps = 0.0  # seconds
        monkeypatch.setattr("ztunnel.relay.engine.os.sched_yield", self._given)

    def _given(self) -> None:
        self.given_up += 1
        if self.keeps:
            time.sleep(self.keeps)


async def serve_together(engine: Engine, rounds: int) -> None:
    """So many rounds with two descriptors each."""
    chains = [Chain(engine), Chain(engine)]
    for _ in range(rounds):
        for chain in chains:
            chain.arrived = trio.Event()
            chain.far.send(b"x")
        with trio.fail_after(30):
            for chain in chains:
                await chain.arrived.wait()
    for chain in chains:
        chain.close()


async def test_others_may_have_the_processor_where_there_is_company(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = Processor(monkeypatch)
    alone = Chain(engine)
    for _ in range(3):
        alone.arrived = trio.Event()
        alone.far.send(b"x")
        with trio.fail_after(30):
            await alone.arrived.wait()
    assert not processor.given_up  # one that is alone does not wait for others
    for _ in range(20):
        processor.given_up = 0
        engine._keeps = 0.0  # where somebody had it just then, and for long
        await serve_together(engine, 10)
        if processor.given_up >= 10:
            break
    assert processor.given_up >= 10
    alone.close()


async def test_who_keeps_the_processor_long_does_not_get_it_again_soon(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = Processor(monkeypatch)
    processor.keeps = 2 * TOO_LONG
    started = time.monotonic()
    await serve_together(engine, 50)
    passed = time.monotonic() - started
    assert 1 <= processor.given_up <= 1 + passed / (NO_MORE * processor.keeps)
    engine._keeps = 0.0  # as if that time had passed
    before = processor.given_up
    await serve_together(engine, 20)
    assert processor.given_up > before
