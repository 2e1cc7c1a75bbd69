"""Joined sockets, at the level of the kernel: what is redirected, what passes, what is counted."""

import select
import socket
from collections.abc import Iterator

import pytest

from tests.support.requirements import without_sockmap
from tests.support.sockets import loopback
from ztunnel.kernel.assembler import R1, Assembler
from ztunnel.kernel.bpf import HASH, Map, load_stream_verdict
from ztunnel.kernel.sockmap import Leg, Sockmap
from ztunnel.kernel.verdict import PACKET
from ztunnel.linux.tcp_info import progress

pytestmark = pytest.mark.root

CREDIT = 1 << 16


class Joined:
    """A client and a server; `near` and `far` are our ends of their connections, joined."""

    def __init__(self, sockmap: Sockmap) -> None:
        self.client, self.near = loopback()
        self.server, self.far = loopback()
        for sock in (self.client, self.server):
            sock.settimeout(5)
        self.sockmap = sockmap
        pair = sockmap.join(self.near, self.far)
        assert pair is not None
        self.pair = pair

    @property
    def up(self) -> Leg:
        return self.pair[0]

    def close(self) -> None:
        self.sockmap.part(self.pair)
        for sock in (self.client, self.near, self.server, self.far):
            sock.close()


@pytest.fixture
def joined() -> Iterator[Joined]:
    if without_sockmap() is not None:
        pytest.skip(str(without_sockmap()))
    sockmap = Sockmap(4)
    made = Joined(sockmap)
    yield made
    made.close()
    sockmap.close()


def readable(sock: socket.socket, seconds: float = 5) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


def test_without_credit_everything_passes(joined: Joined) -> None:
    joined.client.send(b"hello")
    assert readable(joined.near)
    assert joined.near.recv(100) == b"hello"
    assert (joined.up.passed, joined.up.redirected) == (5, 0)
    assert not readable(joined.server, 0.05)


def test_what_came_before_can_be_read_after(joined: Joined) -> None:
    client, near = loopback()
    server, far = loopback()
    client.send(b"early")
    assert readable(near)
    pair = joined.sockmap.join(near, far)
    assert pair is not None
    assert near.recv(100) == b"early"
    assert progress(near)[0] == 5
    joined.sockmap.part(pair)
    for sock in (client, near, server, far):
        sock.close()


def test_with_credit_the_kernel_moves_and_counts(joined: Joined) -> None:
    joined.up.grant(0, CREDIT)
    assert joined.up.redirecting
    for _ in range(3):
        joined.client.send(b"hello")
        assert joined.server.recv(100) == b"hello"
    assert (joined.up.passed, joined.up.redirected) == (0, 15)
    assert joined.up.charged == 15 + 3 * PACKET
    assert progress(joined.far)[1] == 15
    assert not readable(joined.near, 0.02)


def test_a_socket_that_is_redirected_wakes_nobody_who_waits_for_its_end(joined: Joined) -> None:
    joined.up.grant(0, CREDIT)
    with select.epoll() as epoll:
        epoll.register(joined.near, select.EPOLLRDHUP)
        joined.client.send(b"hello")
        assert joined.server.recv(100) == b"hello"
        assert epoll.poll(0.02) == []
        joined.client.shutdown(socket.SHUT_WR)
        assert epoll.poll(5) == [(joined.near.fileno(), select.EPOLLRDHUP)]
    # A FIN of its own, without bytes, must not break the other socket.
    assert joined.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert progress(joined.near)[0] == 5


def test_spent_credit_is_told_once_and_later_bytes_wait(joined: Joined) -> None:
    told = []
    joined.up.passes = lambda: told.append(joined.up.number)
    joined.up.grant(0, 1)
    joined.client.send(b"first")
    assert joined.server.recv(100) == b"first"
    for _ in range(3):
        joined.client.send(b"second")
        assert readable(joined.near)
    assert select.select([joined.sockmap.ring.fd], [], [], 5)[0]
    joined.sockmap.serve()
    assert told == [joined.up.number]
    assert not joined.up.redirecting
    # New credit that goes by an old count is none.
    joined.up.grant(6, CREDIT)
    assert not joined.up.redirecting
    joined.client.send(b"third")
    received = b""
    while len(received) < 23:
        assert readable(joined.near)
        received += joined.near.recv(100)
    assert received == b"secondsecondsecondthird"
    joined.up.grant(joined.up.passed, CREDIT)
    joined.client.send(b"last")
    assert joined.server.recv(100) == b"last"


def test_a_full_map_joins_no_more_and_parted_pairs_make_room(joined: Joined) -> None:
    others = [(loopback(), loopback()) for _ in range(4)]
    pairs = [joined.sockmap.join(one[1], other[1]) for one, other in others]
    assert [pair is None for pair in pairs] == [False, False, False, True]
    joined.sockmap.part(pairs[0])  # type: ignore[arg-type]
    again = joined.sockmap.join(others[3][0][1], others[3][1][1])
    assert again is not None
    assert again[0].redirected == 0
    for one, other in others:
        for sock in (*one, *other):
            sock.close()


def test_the_verifier_says_what_it_minds() -> None:
    if without_sockmap() is not None:
        pytest.skip(str(without_sockmap()))
    program = Assembler()
    program.load(R1, R1, 4000)
    program.exit()
    with pytest.raises(OSError, match="invalid bpf_context access off=4000"):
        load_stream_verdict(program.assemble())


def test_maps_say_what_is_wrong() -> None:
    if without_sockmap() is not None:
        pytest.skip(str(without_sockmap()))
    with pytest.raises(OSError, match="make a BPF map"):
        Map(9999, 4, 4, 1)
    numbers = Map(HASH, 8, 4, 1)
    numbers.update(b"12345678", b"1234")
    with pytest.raises(OSError, match="update a BPF map"):
        numbers.update(b"22345678", b"1234")
    with pytest.raises(OSError, match="delete from a BPF map"):
        numbers.delete(b"22345678")
    numbers.close()
    numbers.close()
