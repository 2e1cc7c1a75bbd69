"""What tests of capture do in pods: connect, exchange a few bytes, see how it ends."""

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from daemonset.agent.capture_rules import (
    TABLE,
    CaptureOptions,
    capture_table,
)
from tests.support.namespaces import Pod
from tests.support.sockets import connect_result
from ztunnel.linux import sockets
from ztunnel.linux.nft_tables import Chain, Table

MARK = 0xA1B2C3D4
OPTIONS = CaptureOptions(MARK)
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
MARKS = pytest.mark.parametrize("options", [OPTIONS, CaptureOptions.istio()])


def accept(listener: socket.socket, timeout: float = 5) -> socket.socket:
    """The connection that comes, within so many seconds."""
    assert select.select([listener], [], [], timeout)[0], "nobody has connected"
    return listener.accept()[0]


def refused(destination: sockets.SocketAddress, pod: Pod, mark: int | None = None) -> bool:
    """Whether a connection is refused; it must be one or the other, not nothing."""
    try:
        client = sockets.start_connect(destination, mark=mark, namespace=pod.namespace)
    except OSError as error:
        if error.errno == errno.ENETUNREACH:
            return True
        raise
    with client:
        assert select.select([], [client], [], 5)[1], "neither accepted nor refused"
        try:
            connect_result(client)
        except ConnectionRefusedError:
            return True
    return False


def exchange(one: socket.socket, other: socket.socket) -> None:
    """A few bytes each way."""
    for sender, receiver in ((one, other), (other, one)):
        sender.send(b"hello")
        assert select.select([receiver], [], [], 5)[0], "nothing arrives"
        assert receiver.recv(10) == b"hello"


@contextmanager
def in_conversation(pod: Pod, other: Pod) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from one to the other that has carried something: both ends of it."""
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
        sockets.start_connect((other.v4, 80), namespace=pod.namespace) as client,
        accept(server) as served,
    ):
        exchange(client, served)
        yield client, served


def ends_unheard(client: socket.socket, served: socket.socket) -> None:
    """A connection in the clear: what is sent now does not arrive, and ends it."""
    with pytest.raises(ConnectionError):
        client.send(b"in the clear")  # a late acknowledgement may have ended it already
        assert select.select([client], [], [], 5)[0]
        client.recv(10)
    assert not select.select([served], [], [], 0.1)[0]


def without_a_rule(options: CaptureOptions) -> Table:
    """As somebody would leave it who deleted what redirects."""
    chains = tuple(
        Chain(chain.name, chain.rules[:-1], chain.hook, chain.kind, chain.priority)
        if chain.name == "outbound"
        else chain
        for chain in capture_table(options).chains
    )
    return Table(TABLE, chains)
