from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from tests.ztunnel.dns.fakes import FakeLookup, vip
from ztunnel.dns import forward, server
from ztunnel.dns.forward import Upstream, read_exactly
from ztunnel.dns.lookup import Client
from ztunnel.dns.resolv_conf import ResolvConf
from ztunnel.dns.resolver import Resolver
from ztunnel.dns.server import DnsServer

WEB = "web.prod.svc.cluster.local"
Reply = Callable[[dns.message.Message], dns.message.Message | bytes | None]


@contextmanager
def bound(
    kind: socket.SocketKind, address: tuple[str, int] = ("127.0.0.1", 0)
) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(address)
        if kind is socket.SOCK_STREAM:
            sock.listen()
        yield sock


def pair() -> tuple[socket.socket, socket.socket]:
    """A UDP socket and a listening TCP socket on one port."""
    for _ in range(50):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        udp.bind(("127.0.0.1", 0))
        try:
            tcp.bind(udp.getsockname())
        except OSError:
            udp.close()
            tcp.close()
            continue
        tcp.listen()
        return udp, tcp
    raise AssertionError("no port is free for both UDP and TCP")


class FakeNameserver:
    """Answers what `by_udp` and `by_tcp` say (None: silence), and keeps what it was asked."""

    def __init__(self, by_udp: Reply, by_tcp: Reply) -> None:
        self.udp, self.tcp = pair()
        self.address: tuple[str, int] = self.udp.getsockname()
        self.by_udp, self.by_tcp = by_udp, by_tcp
        self.asked: list[tuple[str, dns.message.Message]] = []

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._datagrams)
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.tcp))
            nursery.start_soon(trio.serve_listeners, self._connection, [listener])

    async def _datagrams(self) -> None:
        with trio.socket.from_stdlib_socket(self.udp) as sock:
            while True:
                wire, sender = await sock.recvfrom(65535)
                reply = self._reply("udp", self.by_udp, wire)
                if reply is not None:
                    await sock.sendto(reply, sender)

    async def _connection(self, stream: trio.SocketStream) -> None:
        wire = await read_exactly(stream, int.from_bytes(await read_exactly(stream, 2), "big"))
        reply = self._reply("tcp", self.by_tcp, wire)
        if reply is not None:
            await stream.send_all(len(reply).to_bytes(2, "big") + reply)
        await stream.aclose()

    def _reply(self, protocol: str, how: Reply, wire: bytes) -> bytes | None:
        query = dns.message.from_wire(wire)
        self.asked.append((protocol, query))
        reply = how(query)
        return reply.to_wire() if isinstance(reply, dns.message.Message) else reply


def records(*addresses: str) -> Reply:
    def reply(query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        name = query.question[0].name.to_text()
        response.answer.append(dns.rrset.from_text_list(name, 60, "IN", "A", list(addresses)))
        return response

    return reply


def code(rcode: dns.rcode.Rcode) -> Reply:
    def reply(query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.set_rcode(rcode)
        return response

    return reply


def cut(query: dns.message.Message) -> dns.message.Message:
    response = dns.message.make_response(query)
    response.flags |= dns.flags.TC
    return response


def silence(query: dns.message.Message) -> None:
    return None


class Counts:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def request(self, query_type: str, protocol: str) -> None:
        self.seen.append(f"request {query_type} {protocol}")

    def upstream_request(self, query_type: str, protocol: str) -> None:
        """What comes of it is seen."""

    def upstream_answer(self, query_type: str, protocol: str, seconds: float) -> None:
        assert seconds >= 0
        self.seen.append("answer")

    def upstream_failure(self, query_type: str, protocol: str) -> None:
        self.seen.append("failure")


class Proxy:
    """The server under test with its nameservers, and a client for it."""

    def __init__(self, *nameservers: FakeNameserver, timeout: float = 1.0) -> None:
        self.nameservers = nameservers
        self.client: Client | None = Client("prod", "")
        self.comes: trio.Event | None = None  # when it is set the mesh knows the pod
        self.counts = Counts()
        self.udp, self.tcp = pair()
        self.address: tuple[str, int] = self.udp.getsockname()
        many = tuple(f"10.0.{n // 250}.{n % 250 + 1}" for n in range(100))
        lookup = FakeLookup(vip(WEB, "prod", "10.0.0.1"), vip("many.example.com", "prod", *many))
        conf = ResolvConf(tuple(n.address for n in nameservers), (), timeout, attempts=1)
        self.server = DnsServer(
            Resolver(lookup, rng=random.Random(1)),
            lambda: self.client,
            self.wait_for_client,
            Upstream(conf, socket.socket),
            self.counts,
        )

    async def wait_for_client(self) -> Client | None:
        if self.comes is not None:
            await self.comes.wait()
            self.client = Client("prod", "")
        return self.client

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for nameserver in self.nameservers:
                    nursery.start_soon(nameserver.run)
                nursery.start_soon(self.server.serve, [self.udp], [self.tcp])
                yield
                nursery.cancel_scope.cancel()
        assert self.udp.fileno() == self.tcp.fileno() == -1

    async def by_udp(self, name: str, kind: str = "A", **options: object) -> dns.message.Message:
        query = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
        return await self.raw_udp(query.to_wire())

    async def raw_udp(self, wire: bytes) -> dns.message.Message:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.connect(self.address)
            await sock.send(wire)
            response = dns.message.from_wire(await sock.recv(65535))
        assert response.id == int.from_bytes(wire[:2], "big")
        return response

    async def by_tcp(self, *names: str) -> list[dns.message.Message]:
        found = []
        async with await trio.open_tcp_stream(*self.address) as stream:
            for name in names:
                wire = dns.message.make_query(name, "A").to_wire()
                await stream.send_all(len(wire).to_bytes(2, "big") + wire)
                length = int.from_bytes(await read_exactly(stream, 2), "big")
                found.append(dns.message.from_wire(await read_exactly(stream, length)))
        return found


def addresses(response: dns.message.Message) -> list[str]:
    return sorted(item.to_text() for rrset in response.answer for item in rrset)


async def test_names_of_the_mesh_are_answered_without_upstream() -> None:
    proxy = Proxy()
    async with proxy.running():
        assert addresses(await proxy.by_udp("web.prod")) == ["10.0.0.1"]
        assert [addresses(r) for r in await proxy.by_tcp(WEB, "web")] == [["10.0.0.1"]] * 2
        assert addresses(await proxy.by_udp("web.prod", "AAAA")) == []
    assert proxy.counts.seen == [
        "request a udp",
        "request a tcp",
        "request a tcp",
        "request aaaa udp",
    ]


async def test_a_long_answer_is_cut_for_udp_and_whole_over_tcp() -> None:
    proxy = Proxy()
    async with proxy.running():
        short = await proxy.by_udp("many.example.com")
        assert short.flags & dns.flags.TC
        assert 0 < len(addresses(short)) < 100
        assert len(addresses(await proxy.by_udp("many.example.com", payload=4096))) == 100
        [whole] = await proxy.by_tcp("many.example.com")
        assert len(addresses(whole)) == 100


async def test_other_names_go_upstream_byte_for_byte() -> None:
    nameserver = FakeNameserver(records("192.0.2.7"), records("192.0.2.8"))
    proxy = Proxy(nameserver)
    async with proxy.running():
        assert addresses(await proxy.by_udp("example.com", use_edns=0, payload=1400)) == [
            "192.0.2.7"
        ]
        [by_tcp] = await proxy.by_tcp("example.com")
        assert addresses(by_tcp) == ["192.0.2.8"]
    assert [(how, query.payload) for how, query in nameserver.asked] == [("udp", 1400), ("tcp", 0)]
    assert proxy.counts.seen.count("answer") == 2


async def test_types_that_the_mesh_has_not_go_upstream() -> None:
    nameserver = FakeNameserver(code(dns.rcode.NXDOMAIN), silence)
    proxy = Proxy(nameserver)
    async with proxy.running():
        assert (await proxy.by_udp(WEB, "MX")).rcode() == dns.rcode.NXDOMAIN


async def test_a_truncated_answer_is_fetched_by_tcp_when_the_client_can_take_it() -> None:
    nameserver = FakeNameserver(cut, records(*(f"192.0.2.{n}" for n in range(1, 60))))
    proxy = Proxy(nameserver)
    async with proxy.running():
        small = await proxy.by_udp("example.com")
        assert small.flags & dns.flags.TC
        assert len(addresses(await proxy.by_udp("example.com", payload=4096))) == 59


async def test_a_truncated_answer_is_passed_on_when_tcp_fails() -> None:
    proxy = Proxy(FakeNameserver(cut, silence))
    async with proxy.running():
        assert (await proxy.by_udp("example.com", payload=4096)).flags & dns.flags.TC


async def test_a_datagram_longer_than_the_client_takes_becomes_a_truncated_one() -> None:
    proxy = Proxy(FakeNameserver(records(*(f"192.0.2.{n}" for n in range(1, 60))), silence))
    async with proxy.running():
        response = await proxy.by_udp("example.com")
        assert response.flags & dns.flags.TC
        assert response.answer == []


async def test_the_next_nameserver_is_asked_and_then_stays_the_first() -> None:
    dead = FakeNameserver(silence, silence)
    alive = FakeNameserver(records("192.0.2.7"), silence)
    proxy = Proxy(dead, alive)
    async with proxy.running():
        for _ in range(3):
            assert addresses(await proxy.by_udp("example.com")) == ["192.0.2.7"]
    assert len(dead.asked) == 1
    assert len(alive.asked) == 3


async def test_an_unwilling_nameservers_answer_counts_only_when_no_other_has_one() -> None:
    unwilling = FakeNameserver(code(dns.rcode.REFUSED), silence)
    proxy = Proxy(unwilling, FakeNameserver(records("192.0.2.7"), silence))
    async with proxy.running():
        assert addresses(await proxy.by_udp("example.com")) == ["192.0.2.7"]
    alone = Proxy(FakeNameserver(code(dns.rcode.REFUSED), silence))
    async with alone.running():
        assert (await alone.by_udp("example.com")).rcode() == dns.rcode.REFUSED


async def test_forged_answers_are_passed_over() -> None:
    def forged(query: dns.message.Message) -> bytes:
        wire = records("192.0.2.66")(query)
        assert isinstance(wire, dns.message.Message)
        wire.id ^= 1
        return wire.to_wire()

    proxy = Proxy(FakeNameserver(forged, forged))
    async with proxy.running():
        assert (await proxy.by_udp("example.com")).rcode() == dns.rcode.SERVFAIL
        [by_tcp] = await proxy.by_tcp("example.com")
        assert by_tcp.rcode() == dns.rcode.SERVFAIL
    assert proxy.counts.seen.count("failure") == 2


async def test_no_upstream_is_servfail_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    proxy = Proxy()
    async with proxy.running():
        assert (await proxy.by_udp("example.com")).rcode() == dns.rcode.SERVFAIL
    assert "example.com. failed upstream: resolv.conf names no nameserver" in caplog.text


async def test_a_pod_that_has_just_started_is_waited_for() -> None:
    proxy = Proxy()
    proxy.client, proxy.comes = None, trio.Event()
    found: list[list[str]] = []
    async with proxy.running():

        async def ask(by: str) -> None:
            if by == "udp":
                found.append(addresses(await proxy.by_udp("web.prod")))
            else:
                found.extend(addresses(response) for response in await proxy.by_tcp("web.prod"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "udp")
            nursery.start_soon(ask, "tcp")
            await trio.sleep(0.05)
            assert found == []
            proxy.comes.set()
    assert found == [["10.0.0.1"]] * 2


async def test_an_unknown_pod_gets_servfail() -> None:
    proxy = Proxy()
    proxy.client = None
    async with proxy.running():
        assert (await proxy.by_udp(WEB)).rcode() == dns.rcode.SERVFAIL


async def test_bad_messages_are_answered_and_harm_nobody() -> None:
    proxy = Proxy()
    async with proxy.running():
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.sendto(b"x", proxy.address)
        bad = dns.message.make_query(WEB, "A").to_wire()[:-2]
        assert (await proxy.raw_udp(bad)).rcode() == dns.rcode.FORMERR
        assert addresses(await proxy.by_udp(WEB)) == ["10.0.0.1"]


async def test_too_many_waiting_queries_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_FORWARDED", 2)
    nameserver = FakeNameserver(silence, silence)
    proxy = Proxy(nameserver, timeout=60)
    async with proxy.running(), trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(proxy.by_udp, "slow.example.com")
        while len(nameserver.asked) < 2:
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await proxy.by_udp("example.com")).rcode() == dns.rcode.SERVFAIL
        assert addresses(await proxy.by_udp(WEB)) == ["10.0.0.1"]
        nursery.cancel_scope.cancel()


async def closed(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True


async def test_tcp_connections_are_bounded_and_idle_ones_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_TCP_CONNECTIONS", 1)
    monkeypatch.setattr(server, "TCP_IDLE_SECONDS", 0.2)
    proxy = Proxy()
    async with proxy.running():
        async with (
            await trio.open_tcp_stream(*proxy.address) as idle,
            await trio.open_tcp_stream(*proxy.address) as surplus,
        ):
            await surplus.send_all(b"\0")
            assert await closed(surplus)
            assert await closed(idle)
        assert [addresses(r) for r in await proxy.by_tcp(WEB)] == [["10.0.0.1"]]


@pytest.mark.parametrize("rest", [b"", b"\x00", b"\x00\x20half", b"\x00\x00"])
async def test_a_broken_stream_ends_alone(rest: bytes) -> None:
    proxy = Proxy()
    async with proxy.running():
        async with await trio.open_tcp_stream(*proxy.address) as stream:
            await stream.send_all(rest)
            await stream.send_eof()
            assert await closed(stream)
        assert addresses(await proxy.by_udp(WEB)) == ["10.0.0.1"]


async def test_upstream_sockets_come_from_the_given_factory() -> None:
    made: list[tuple[int, int]] = []

    def refuse(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        made.append((family, kind))
        raise OSError("no socket for you")

    upstream = Upstream(ResolvConf((("::1", 53),), (), 1, attempts=2), refuse)
    query = dns.message.make_query("example.com", "A").to_wire()
    with pytest.raises(forward.UpstreamError, match="::1:53: no socket for you; ::1:53"):
        await upstream.ask(query, False, 512)
    assert made == [(socket.AF_INET6, socket.SOCK_DGRAM)] * 2
