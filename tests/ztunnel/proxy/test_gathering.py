"""When a worker keeps a pod's connections to itself, and when it has them spread."""

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import pytest

from ztunnel.linux.reuse_port import spread
from ztunnel.linux.sockets import listen_tcp
from ztunnel.proxy.gathering import BUSY, CALM, Business, Gathered, look_at
from ztunnel.proxy.registry import Live, Registry

ENOUGH = 16
MANY = 40  # by chance all of them would go one way once in 2^39 runs


class Workers:
    """Two workers' listeners of one port."""

    def __init__(self, stack: ExitStack) -> None:
        first = stack.enter_context(listen_tcp("127.0.0.1", 0))
        second = stack.enter_context(listen_tcp("127.0.0.1", first.getsockname()[1]))
        self.sockets = [first, second]
        self.parts = [Gathered(sock, ENOUGH, fresh=True) for sock in self.sockets]
        self._stack = stack

    def connect(self, count: int) -> list[int]:
        """Opens connections one by one; how many each worker has accepted of them."""
        shares = [0, 0]
        for _ in range(count):
            address = self.sockets[0].getsockname()
            self._stack.enter_context(socket.create_connection(address, timeout=10))
            for index, sock in enumerate(self.sockets):
                try:
                    self._stack.enter_context(sock.accept()[0])
                except BlockingIOError:
                    continue
                self.parts[index].accepted()
                shares[index] += 1
        return shares


@pytest.fixture
def workers() -> Iterator[Workers]:
    with ExitStack() as stack:
        yield Workers(stack)


def test_few_connections_go_to_one_worker(workers: Workers) -> None:
    assert workers.connect(ENOUGH) == [ENOUGH, 0]


def test_a_burst_is_spread_before_anybody_looks(workers: Workers) -> None:
    first, second = workers.connect(ENOUGH + MANY)
    assert first > ENOUGH
    assert second > 0


def test_one_that_has_enough_goes_on_spreading(workers: Workers) -> None:
    workers.connect(ENOUGH)
    for _ in range(3):
        workers.parts[1].look(0, busy=False)  # the other has none, and leaves that to the first
        workers.parts[0].look(ENOUGH, busy=False)
        assert all(workers.connect(MANY))
        workers.parts[1].look(ENOUGH, busy=False)


def test_gathered_again_when_they_have_gone(workers: Workers) -> None:
    workers.connect(ENOUGH + MANY)
    for part in workers.parts:
        part.look(ENOUGH, busy=False)
    assert all(workers.connect(MANY))
    for _ in range(2):
        for part in workers.parts:
            part.look(0, busy=False)
    assert workers.connect(ENOUGH) == [ENOUGH, 0]


def test_a_busy_worker_has_them_spread(workers: Workers) -> None:
    workers.parts[0].look(0, busy=True)
    assert all(workers.connect(MANY))


def test_a_successor_leaves_the_group_as_it_finds_it_until_it_looks(workers: Workers) -> None:
    spread(workers.sockets[0])
    workers.parts[0] = Gathered(workers.sockets[0], ENOUGH, fresh=False)
    assert all(workers.connect(MANY))
    workers.parts[0].look(ENOUGH, busy=False)
    workers.parts[0].look(0, busy=False)
    assert workers.connect(ENOUGH) == [ENOUGH, 0]


def test_a_kernel_that_cannot_is_said_and_served(caplog: pytest.LogCaptureFixture) -> None:
    sock = listen_tcp("127.0.0.1", 0)
    sock.close()
    with caplog.at_level(logging.WARNING, "ztunnel.proxy"):
        part = Gathered(sock, ENOUGH, fresh=True)
        part.look(0, busy=False)  # not tried, and not said, over and over
        part.look(0, busy=True)
    assert [record.getMessage() for record in caplog.records] == [
        "connections cannot be kept on one worker: Bad file descriptor",
        "connections cannot be spread over the workers: Bad file descriptor",
    ]


def test_business_has_two_thresholds() -> None:
    business = Business()
    found = []
    between = (BUSY + CALM) / 2
    for worked in (between, BUSY + 0.01, between, CALM - 0.01, between):
        business.judge(worked, 1.0)
        found.append(business.busy)
    assert found == [False, True, True, False, False]
    business.judge(1.0, 0.0)  # a clock that stands still says nothing
    assert not business.busy


def test_every_pod_hears_of_the_workers_business() -> None:
    heard: list[bool] = []

    class Pod:
        def look_at_listeners(self, busy: bool) -> None:
            heard.append(busy)

    class Working(Business):
        __slots__ = ()

        def look(self) -> bool:
            return True

    look_at([Pod(), Pod()], Working())
    assert heard == [True, True]


def test_connections_are_counted_by_pod() -> None:
    @dataclass(eq=False)
    class Connection:
        uid: str

    registry = Registry()
    one, two, other = (cast(Live, Connection(uid)) for uid in ("pod", "pod", "other"))
    for connection in (one, one, two, other):
        registry.add(connection)
    assert (registry.count_of("pod"), registry.count_of("other")) == (2, 1)
    for connection in (one, one):
        registry.remove(connection)
    assert registry.count_of("pod") == 1
    registry.remove(two)
    assert registry.count_of("pod") == 0
