"""The sockets of a pod: where they are, how they are marked, and who shares them."""

import errno
import socket
import struct
import time

import pytest
import trio

from tests.support.lab import Lab, lab
from tests.support.pair import ECHO, Pair
from tests.support.proxies import Proxies, proxies
from tests.support.sockets import listen, receive_exactly, serve_echo
from ztunnel.linux.netns import set_sysctl
from ztunnel.linux.sockets import IP_TRANSPARENT, SO_MARK
from ztunnel.proxy.gathering import ENOUGH
from ztunnel.proxy.local_pod import PodInfo
from ztunnel.proxy.pod import PodProxy

pytestmark = pytest.mark.root

PORTS = {"outbound": 15001, "plaintext": 15006, "hbone": 15008}
DNS = {
    f"dns-{kind}-{address}": 15053 for kind in ("udp", "tcp") for address in ("127.0.0.1", "::1")
}


def mark_of(sock: socket.socket) -> int:
    (mark,) = struct.unpack("=I", sock.getsockopt(socket.SOL_SOCKET, SO_MARK, 4))
    return int(mark)


async def echoes(stream: trio.SocketStream) -> bool:
    with trio.fail_after(30):
        await stream.send_all(b"hello")
        return await receive_exactly(stream, 5) == b"hello"


@pytest.mark.parametrize(("settings", "mark"), [({}, 1337), ({"PACKET_MARK": "2898927616"}, None)])
async def test_ports_marks_and_shared_ports(settings: dict[str, str], mark: int | None) -> None:
    """Any mark of 32 bits; connections work with it, so that sockets which connect have it too."""
    mark = mark or int(settings["PACKET_MARK"])
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with (
            proxies(room, ISTIO_META_DNS_CAPTURE="true", **settings) as mesh,
            trio.open_nursery() as nursery,
        ):
            pair = Pair(room, mesh, mesh.enroll("client"), mesh.enroll("server"))
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            sockets = mesh.pods["client"].sockets()
            assert {kind: sock.getsockname()[1] for kind, sock in sockets.items()} == PORTS | DNS
            for kind, sock in sockets.items():
                assert mark_of(sock) == mark, kind
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1, kind
                if kind in PORTS:
                    assert sock.getsockname()[0] == "::"
                    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
            # They are in the pod's namespace and not in ours.
            with room.pod("client").network.enter(), socket.socket() as taken:
                with pytest.raises(OSError, match="in use") as refused:
                    taken.bind(("0.0.0.0", 15001))
                assert refused.value.errno == errno.EADDRINUSE
            assert await echoes(await pair.dial())
            pair.close()
            nursery.cancel_scope.cancel()


async def test_two_workers_share_every_port() -> None:
    """One takes the first connections; those that are too many for it are spread over both."""
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with proxies(room) as mesh, trio.open_nursery() as nursery:
            pair = Pair(room, mesh, mesh.enroll("client"), mesh.enroll("server"))
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            first = mesh.pods["client"]
            namespace = room.pod("client").network.duplicate()
            info = PodInfo("other-worker", "client", "shop", "client")
            second = PodProxy(mesh.context, mesh.neighbours, info, namespace, {})
            streams = [await pair.dial() for _ in range(2 * ENOUGH)]
            for stream in streams:
                assert await echoes(stream)
            registry = mesh.context.registry
            shares = len(registry.of(first.uid)), len(registry.of(second.uid))
            assert sum(shares) == 2 * ENOUGH
            assert max(shares) >= ENOUGH
            assert min(shares) > 8
            # The one may go while the other serves on.
            second.close("enough")
            for _ in range(8):
                assert await echoes(await pair.dial())
            pair.close()
            nursery.cancel_scope.cancel()


async def _seen_by_the_application(room: Lab, mesh: Proxies, plaintext: bool) -> str:
    pair = Pair(room, mesh, mesh.enroll("client"), mesh.enroll("server"))
    listener = pair.listen(7001)
    if plaintext:
        mesh.pods["client"].close("its traffic comes as it is")
        mesh.captures[0].remove()
    stream = await pair.dial(7001)
    accepted = await pair.accept(listener)
    await stream.send_all(b"x")
    assert await receive_exactly(accepted, 1) == b"x"
    seen = str(accepted.socket.getpeername()[0])
    pair.close()
    return seen


@pytest.mark.parametrize("plaintext", [False, True], ids=["hbone", "plaintext"])
@pytest.mark.parametrize("setting", ["", "true", "false"], ids=["default", "on", "off"])
async def test_whose_address_the_application_sees(setting: str, plaintext: bool) -> None:
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        settings = {"ENABLE_ORIG_SRC": setting} if setting else {}
        async with proxies(room, **settings) as mesh:
            seen = await _seen_by_the_application(room, mesh, plaintext)
            wanted = room.ip("server" if setting == "false" else "client")
            assert seen == wanted
            for kind in ("plaintext", "hbone"):
                sock = mesh.pods["server"].sockets()[kind]
                transparent = sock.getsockopt(socket.IPPROTO_IPV6, 75)
                assert bool(transparent) is (setting != "false")
            outbound = mesh.pods["server"].sockets()["outbound"]
            assert outbound.getsockopt(socket.SOL_IP, IP_TRANSPARENT) == 0


async def test_without_ipv6_everything_listens_on_ipv4() -> None:
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with (
            proxies(room, IPV6_ENABLED="false", ISTIO_META_DNS_CAPTURE="true") as mesh,
            trio.open_nursery() as nursery,
        ):
            pair = Pair(room, mesh, mesh.enroll("client"), mesh.enroll("server"))
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            for kind, sock in mesh.pods["client"].sockets().items():
                if kind in PORTS:
                    assert sock.family == socket.AF_INET, kind
                    assert sock.getsockname()[0] == "0.0.0.0"
            stream = await pair.dial()
            assert await echoes(stream)
            await stream.aclose()
            assert 'dst.identity="' in await mesh.line('direction="outbound"', "connection")
            pair.close()
            nursery.cancel_scope.cancel()


async def test_a_pod_whose_port_is_taken_gets_nothing_and_leaves_nothing_open() -> None:
    with lab(nodes=1, pods={"client": 1}) as room:
        async with proxies(room) as mesh:
            network = room.pod("client").network
            with network.socket(socket.AF_INET6, socket.SOCK_STREAM) as squatter:
                squatter.bind(("::", 15008))
                squatter.listen()
                with pytest.raises(OSError, match="listen on port 15008: Address already in use"):
                    mesh.enroll("client")
            # The ports before it in the list were given back, so that a retry works.
            mesh.enroll("client")
            assert set(mesh.pods["client"].sockets()) == set(PORTS)


async def test_a_taken_dns_port_is_named() -> None:
    with lab(nodes=1, pods={"client": 1}) as room:
        async with proxies(room, ISTIO_META_DNS_CAPTURE="true") as mesh:
            network = room.pod("client").network
            with network.socket(socket.AF_INET, socket.SOCK_STREAM) as squatter:
                squatter.bind(("127.0.0.1", 15053))
                squatter.listen()
                with pytest.raises(OSError, match=r"DNS on 127\.0\.0\.1 port 15053: Address alr"):
                    mesh.enroll("client")
            mesh.enroll("client")
            assert set(mesh.pods["client"].sockets()) == set(PORTS | DNS)


async def test_dns_can_listen_elsewhere() -> None:
    with lab(nodes=1, pods={"client": 1}) as room:
        settings = {
            "ISTIO_META_DNS_CAPTURE": "true",
            "ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:15153",
        }
        async with proxies(room, **settings) as mesh:
            mesh.enroll("client")
            found = {
                kind: sock.getsockname()
                for kind, sock in mesh.pods["client"].sockets().items()
                if kind.startswith("dns")
            }
            where = ("127.0.0.1", 15153)
            assert found == {"dns-udp-127.0.0.1": where, "dns-tcp-127.0.0.1": where}


async def test_a_pod_without_ipv6_is_served_all_the_same() -> None:
    with lab(nodes=1, pods={"client": 1}, ipv6=False) as room:
        async with proxies(room, ISTIO_META_DNS_CAPTURE="true") as mesh:
            with room.pod("client").network.enter():
                set_sysctl("net.ipv6.conf.all.disable_ipv6", 1)
            mesh.enroll("client")
            kinds = set(mesh.pods["client"].sockets())
            assert kinds == {*PORTS, "dns-udp-127.0.0.1", "dns-tcp-127.0.0.1"}


@pytest.mark.parametrize("enabled", [True, False])
async def test_connections_are_kept_alive_as_configured(enabled: bool) -> None:
    """Of each accepted connection, which inherits it; tunnels have PING instead."""
    settings = {"KEEPALIVE_TIME": "77s", "KEEPALIVE_INTERVAL": "7s", "KEEPALIVE_RETRIES": "3"}
    with lab(nodes=1, pods={"client": 1}) as room:
        switch = {"KEEPALIVE_ENABLED": str(enabled).lower()}
        async with proxies(room, **settings, **switch) as mesh:
            mesh.enroll("client")
            for kind, sock in mesh.pods["client"].sockets().items():
                wanted = enabled and kind != "hbone"
                assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is wanted
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                if wanted:
                    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                    found = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options]
                    assert found == [77, 7, 3]


async def test_a_client_of_whom_nothing_is_said_is_found_nevertheless(pair: Pair) -> None:
    """Not every kernel tells of those that come from the queue of a listener that was closed."""
    pod = pair.mesh.pods["client"]
    pair.mesh.context.engine.unregister(pod.sockets()["outbound"].fileno())
    stream = await pair.dial()
    pod.tick(time.monotonic())
    assert await echoes(stream)
