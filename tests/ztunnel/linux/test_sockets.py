import errno
import select
import socket
from collections.abc import Iterator

import pytest

from tests.support.sockets import connect_result
from ztunnel.linux import netns, sockets
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.tcp_info import progress


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with netns.create() as made:
        with made.enter():
            netns.bring_up("lo")
            netns.set_sysctl("net.ipv4.tcp_congestion_control", "reno")
        yield made


def accept(listener: socket.socket) -> socket.socket:
    select.select([listener], [], [], 5)
    return listener.accept()[0]


def connected(sock: socket.socket) -> None:
    select.select([], [sock], [], 5)
    connect_result(sock)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:0:1", "::ffff:0:1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
    ],
)
def test_canonical_text(text: str, expected: str) -> None:
    assert sockets.canonical(text) == expected


@pytest.mark.root
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_dual_listener_serves_both_families(namespace: NetworkNamespace, host: str) -> None:
    mark = 0xF1234567
    with sockets.listen_tcp("::", 15001, mark=mark, transparent=True, namespace=namespace) as l1:
        with sockets.listen_tcp("::", 15001, mark=mark, namespace=namespace) as second:
            assert second.getsockname()[1] == 15001
        client = sockets.start_connect((host, 15001), mark=mark, namespace=namespace)
        with accept(l1) as served, client:
            connected(client)
            assert sockets.peer_of(served) == sockets.local_of(client)
            assert sockets.local_of(served) == (host, 15001)
            # Nobody translated it: the original destination is where it arrived.
            assert sockets.original_destination(served) == (host, 15001)
            assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert served.getsockopt(socket.SOL_SOCKET, sockets.SO_MARK) & 0xFFFFFFFF == mark
            client.send(b"x" * 100)
            select.select([served], [], [], 5)
            assert progress(served) == (100, 0, 0)
            assert progress(client)[:2] == (0, 100)


@pytest.mark.root
def test_the_backlog_holds_a_thousand(namespace: NetworkNamespace) -> None:
    with sockets.listen_tcp("127.0.0.1", 80, namespace=namespace) as listener:
        clients = [
            sockets.start_connect(("127.0.0.1", 80), namespace=namespace) for _ in range(1000)
        ]
        poller = select.poll()
        for client in clients:
            poller.register(client, select.POLLOUT)
        try:
            # All of them are established though nobody has accepted a single one.
            assert len(poller.poll(900)) == 1000
            for client in clients:
                connect_result(client)
        finally:
            for client in clients:
                client.close()
        assert listener.fileno() >= 0


@pytest.mark.root
def test_sockets_stay_in_their_namespace(namespace: NetworkNamespace) -> None:
    with (
        netns.create() as other,
        sockets.listen_tcp("127.0.0.1", 80, namespace=namespace) as listener,
    ):
        with other.enter():
            netns.bring_up("lo")
        with (
            sockets.start_connect(("127.0.0.1", 80), namespace=other) as client,
            pytest.raises(ConnectionRefusedError, match="ECONNREFUSED"),
        ):
            connected(client)
        with sockets.start_connect(("127.0.0.1", 80), namespace=namespace) as client:
            accept(listener).close()
            connected(client)


@pytest.mark.root
def test_a_refused_connection_says_so(namespace: NetworkNamespace) -> None:
    with pytest.raises(OSError) as refused:
        sockets.start_connect(("192.0.2.1", 80), namespace=namespace)
    assert refused.value.errno == errno.ENETUNREACH


@pytest.mark.root
@pytest.mark.parametrize(("host", "client"), [("127.0.0.1", "192.0.2.7"), ("::1", "2001:db8::7")])
def test_a_transparent_source_needs_no_such_address(
    namespace: NetworkNamespace, host: str, client: str
) -> None:
    with sockets.start_connect((host, 80), source=client, namespace=namespace) as sock:
        assert sockets.local_of(sock)[0] == client


@pytest.mark.root
def test_keepalive_options(namespace: NetworkNamespace) -> None:
    keepalive = sockets.Keepalive(time=10, interval=3, retries=4, user_timeout=True)
    with (
        sockets.listen_tcp("127.0.0.1", 80, namespace=namespace) as listener,
        sockets.start_connect(("127.0.0.1", 80), keepalive=keepalive, namespace=namespace) as sock,
    ):
        accept(listener).close()
        tcp = socket.IPPROTO_TCP
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(tcp, socket.TCP_KEEPIDLE) == 10
        assert sock.getsockopt(tcp, socket.TCP_KEEPINTVL) == 3
        assert sock.getsockopt(tcp, socket.TCP_KEEPCNT) == 4
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 22_000


@pytest.mark.root
def test_a_connection_on_this_machine_is_up_at_once(namespace: NetworkNamespace) -> None:
    with sockets.listen_tcp("127.0.0.1", 80, namespace=namespace) as listener:
        address = sockets.local_of(listener)
        with sockets.start_connect(address, namespace=namespace) as client:
            assert sockets.is_connected(client)
    with sockets.start_connect(address, namespace=namespace) as refused:
        assert not sockets.is_connected(refused)


@pytest.mark.root
def test_udp_listens_beside_another(namespace: NetworkNamespace) -> None:
    with (
        sockets.udp("127.0.0.1", 15053, mark=7, namespace=namespace) as first,
        sockets.udp("127.0.0.1", 15053, mark=7, namespace=namespace) as second,
        sockets.udp("::1", 15053, namespace=namespace) as six,
    ):
        assert first.getsockname() == second.getsockname()
        assert six.getsockname()[0] == "::1"


@pytest.mark.root
def test_root_lacks_nothing() -> None:
    assert sockets.missing_capabilities(1337) == []
