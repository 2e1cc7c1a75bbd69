"""Which of several listeners of one port gets a connection, by real sockets on loopback."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ztunnel.linux.reuse_port import gather, spread
from ztunnel.linux.sockets import listen_tcp

CONNECTIONS = 64  # by chance all of them would go one way once in 2^63 runs


@pytest.fixture(params=["127.0.0.1", "::1"])
def group(request: pytest.FixtureRequest) -> Iterator[list[socket.socket]]:
    first = listen_tcp(request.param, 0)
    with first, listen_tcp(request.param, first.getsockname()[1]) as second:
        yield [first, second]


def shares(group: list[socket.socket]) -> list[int]:
    """How many of so many connections each listener gets."""
    open_one = next(sock for sock in group if sock.fileno() >= 0)
    address = open_one.getsockname()[:2]
    found = []
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.create_connection(address, timeout=10))
        for sock in group:
            count = 0
            while sock.fileno() >= 0:
                try:
                    stack.enter_context(sock.accept()[0])
                except BlockingIOError:
                    break
                count += 1
            found.append(count)
    return found


def test_linux_spreads_by_itself(group: list[socket.socket]) -> None:
    assert all(shares(group))


@pytest.mark.parametrize("caller", [0, 1])
def test_gathered_at_the_first_whoever_asks(group: list[socket.socket], caller: int) -> None:
    gather(group[caller])
    assert shares(group) == [CONNECTIONS, 0]
    gather(group[1 - caller])
    assert shares(group) == [CONNECTIONS, 0]


@pytest.mark.parametrize("caller", [0, 1])
def test_spread_again_whoever_asks(group: list[socket.socket], caller: int) -> None:
    gather(group[0])
    spread(group[caller])
    assert all(shares(group))
    spread(group[caller])  # no harm where nothing was gathered


def test_the_next_takes_the_place_of_one_that_is_closed(group: list[socket.socket]) -> None:
    gather(group[0])
    group[0].close()
    assert shares(group) == [0, CONNECTIONS]


def test_a_closed_socket_is_an_error() -> None:
    sock = listen_tcp("127.0.0.1", 0)
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        gather(sock)
    with pytest.raises(OSError, match="Bad file descriptor"):
        spread(sock)
