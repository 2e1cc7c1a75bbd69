"""What a pod's proxy says to peers that open tunnels to it, good ones and bad ones."""

import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.pair import ECHO, Pair
from tests.support.pki import make_root
from tests.support.proxies import NAMESPACE, service
from tests.support.sockets import connect, receive_all, receive_exactly, until
from tests.support.tunnel import ClientTunnel, Flow, Refused, TunnelLost, client_on, until_settings
from ztunnel.http2 import frames, limits
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.headers import Header
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy import Authorization, Match, PolicyAction, PolicyScope
from ztunnel.tls.errors import Alert, TlsError
from ztunnel.tls.spiffe import ServerMustBe
from ztunnel.tls.workload_certificate import WorkloadCertificate

pytestmark = pytest.mark.root

PEER = Identity("cluster.local", NAMESPACE, "peer")
BAGGAGE = (
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=server,"
    "service.name=server"
)


@asynccontextmanager
async def tunnel_to_server(
    pair: Pair, certificate: WorkloadCertificate | None = None
) -> AsyncIterator[ClientTunnel]:
    """A tunnel from the first node, where nothing is captured, to the server pod."""
    transport = await connect(pair.room.node(1).network, pair.room.ip("server"), 15008)
    certificate = certificate or pair.mesh.authority.workload(PEER)
    verify = ServerMustBe([pair.server.identity])
    async with client_on(transport, certificate, verify) as tunnel:
        await until_settings(tunnel)
        yield tunnel


def authority(pair: Pair, port: int = ECHO) -> str:
    return f"{pair.room.ip('server')}:{port}"


def ask_with(tunnel: ClientTunnel, fields: Sequence[Header], end_stream: bool = False) -> Flow:
    """A request of any form."""
    return Flow(tunnel, tunnel.connection.open(fields, end_stream))


def connect_to(text: str, *more: Header) -> list[Header]:
    return [(b":method", b"CONNECT"), (b":authority", text.encode()), *more]


async def test_the_answer_names_the_destination(pair: Pair) -> None:
    async with tunnel_to_server(pair) as tunnel:
        flow = await tunnel.connect(authority(pair))
        assert flow.accepted is not None
        assert flow.accepted.baggage == BAGGAGE
        await flow.write(b"x", end=True)
        assert await flow.read_to_end() == b"x"


async def test_1024_streams_are_announced_and_no_more_are_taken(pair: Pair) -> None:
    refused: list[Refused] = []
    async with tunnel_to_server(pair) as tunnel:
        assert tunnel.connection.peer.max_concurrent_streams == 1024
        tunnel.connection.peer.max_concurrent_streams = 2000  # a client that does not listen

        async def one() -> None:
            try:
                await tunnel.connect(authority(pair))
            except Refused as refusal:
                refused.append(refusal)

        async with trio.open_nursery() as nursery:
            for _ in range(1030):
                nursery.start_soon(one)
        assert len(refused) == 6
        assert all("REFUSED_STREAM" in str(refusal) for refusal in refused)
        assert tunnel.lost is None


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("10.244.9.9:80", 400, "ip mismatch"),
        ("no-port", 400, "has no port"),
        ("10.244.2.300:80", 400, "10.244.2.300"),
        ("SERVER:15008", 503, "recursive call"),
        ("SERVER:15006", 503, "recursive call"),
        ("SERVER:7999", 503, "Connection refused"),
        ("nobody.shop.svc.cluster.local:80", 503, "no service nobody.shop"),
    ],
)
async def test_what_cannot_be_reached_is_refused_with_the_reason(
    pair: Pair, target: str, status: int, words: str
) -> None:
    async with tunnel_to_server(pair) as tunnel:
        with pytest.raises(Refused) as refusal:
            await tunnel.connect(target.replace("SERVER", pair.room.ip("server")))
        assert refusal.value.status == status
        assert words in str(refusal.value)
        await pair.mesh.line('direction="inbound"', words)
        assert tunnel.lost is None  # the tunnel is as good as before


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_only_connect_is_served(pair: Pair, method: bytes) -> None:
    async with tunnel_to_server(pair) as tunnel:
        flow = ask_with(
            tunnel,
            [(b":method", method), (b":scheme", b"http"), (b":path", b"/"),
             (b":authority", b"server")],
            end_stream=True,
        )  # fmt: skip
        await tunnel.flush()
        with pytest.raises(Refused, match="only CONNECT is served here") as refusal:
            await flow.established()
        assert refusal.value.status == 400


async def test_a_denied_peer_is_not_told_why(pair: Pair) -> None:
    deny = Authorization(
        "deny-port", NAMESPACE, PolicyScope.NAMESPACE, PolicyAction.DENY,
        rules=(((Match(destination_ports=(ECHO,)),),),),
    )  # fmt: skip
    pair.mesh.apply(deny)
    async with tunnel_to_server(pair) as tunnel:
        with pytest.raises(Refused) as refusal:
            await tunnel.connect(authority(pair))
        assert str(refusal.value) == "the peer answered CONNECT with status 401"
    assert "shop/deny-port" in await pair.mesh.line('direction="inbound"', "DENY")


async def test_a_request_may_end_its_half_at_once(pair: Pair) -> None:
    listener = pair.listen(7001)
    async with tunnel_to_server(pair) as tunnel:
        flow = ask_with(tunnel, connect_to(authority(pair, 7001)), end_stream=True)
        await tunnel.flush()
        accepted = await pair.accept(listener)
        with trio.fail_after(30):
            assert await receive_all(accepted) == b""
        await accepted.send_all(b"for you")
        await accepted.aclose()
        await flow.established()
        assert await flow.read_to_end() == b"for you"
    line = await pair.mesh.line('direction="inbound"', "bytes_sent=7 bytes_recv=0")
    assert 'closed_by="client"' in line
    assert "error=" not in line


@pytest.mark.parametrize("end", [False, True])
async def test_bytes_sent_before_the_answer_are_delivered(pair: Pair, end: bool) -> None:
    async with tunnel_to_server(pair) as tunnel:
        flow = ask_with(tunnel, connect_to(authority(pair)))
        early = bytes(range(256)) * 700
        tunnel.connection.send(flow.stream, early[:20_000], False)
        assert tunnel.connection.send(flow.stream, early[20_000:], end) == len(early) - 20_000
        await tunnel.flush()
        await flow.established()
        assert await flow.read(len(early)) == early
        if not end:
            await flow.end()
        assert await flow.read_to_end() == b""


async def test_a_peer_that_changes_its_mind_leaves_nothing_behind(pair: Pair) -> None:
    async with tunnel_to_server(pair) as tunnel:
        for _ in range(50):
            flow = ask_with(tunnel, connect_to(authority(pair)))
            tunnel.connection.reset(flow.stream, ErrorCode.CANCEL, trio.current_time())
        await tunnel.flush()
        flow = await tunnel.connect(authority(pair))
        await flow.write(b"x", end=True)
        assert await flow.read_to_end() == b"x"
        await until(lambda: not len(pair.mesh.context.registry))
        assert pair.mesh.pods["server"].tunnel_counts[2:] == (1, 0)


async def test_the_forwarded_host_chooses_the_service_that_is_reported(pair: Pair) -> None:
    keys = [f"{NAMESPACE}/{name}.{NAMESPACE}.svc.cluster.local" for name in ("aa", "echo")]
    pair.mesh.apply(
        service("aa", "10.96.0.51", {80: ECHO}),
        service("echo", "10.96.0.50", {80: ECHO}),
        dataclasses.replace(pair.server, services={key: {80: ECHO} for key in keys}),
    )
    async with tunnel_to_server(pair) as tunnel:
        for forwarded in ('for="10.0.0.1:4000";host=echo.shop.svc.cluster.local', ""):
            flow = await tunnel.connect(authority(pair), forwarded=forwarded)
            await flow.write(b"x", end=True)
            await flow.read_to_end()
    await pair.mesh.line('direction="inbound"', 'dst.service="echo.shop.svc.cluster.local"')
    await pair.mesh.line('direction="inbound"', 'dst.service="aa.shop.svc.cluster.local"')


async def test_who_comes_through_a_gateway_is_known_by_its_own_words(pair: Pair) -> None:
    said = "k8s.cluster.name=far,k8s.namespace.name=away,k8s.deployment.name=visitor"
    async with tunnel_to_server(pair) as tunnel:
        flow = ask_with(
            tunnel,
            connect_to(
                authority(pair), (b"baggage", said.encode()), (b"x-forwarded-network", b"other")
            ),
        )
        await tunnel.flush()
        await flow.established()
        await flow.write(b"x", end=True)
        await flow.read_to_end()
    line = await pair.mesh.line('direction="inbound"', "bytes_recv=1")
    for part in ('src.namespace="away"', 'src.cluster="far"', f'src.identity="{PEER.uri}"'):
        assert part in line


# ---- floods


def settings(number: int) -> bytes:
    return frames.frame(frames.SETTINGS, 0, 0, b"")


def pings(number: int) -> bytes:
    return frames.frame(frames.PING, 0, 0, bytes(8))


def empty(number: int) -> bytes:
    return frames.frame(frames.DATA, 0, 1, b"")


def window_updates(number: int) -> bytes:
    return frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.UINT32.pack(1))


def priorities(number: int) -> bytes:
    return frames.frame(frames.PRIORITY, 0, 1, bytes(5))


@pytest.mark.parametrize(
    ("wave", "least", "words"),
    [
        (pings, limits.PING_BURST, "too many PING frames"),
        (settings, limits.SETTINGS_BURST, "too many SETTINGS frames"),
        (empty, limits.EMPTY_BURST, "too many empty DATA frames"),
        (window_updates, limits.WINDOW_UPDATE_BASE, "too many WINDOW_UPDATE frames"),
        (priorities, limits.PRIORITY_BASE, "too many PRIORITY frames"),
    ],
)
async def test_a_flood_costs_the_tunnel_that_it_came_through(
    pair: Pair, wave: Callable[[int], bytes], least: int, words: str
) -> None:
    honest = await pair.dial()
    await honest.send_all(b"1")
    assert await receive_exactly(honest, 1) == b"1"
    async with tunnel_to_server(pair) as tunnel:
        flow = await tunnel.connect(authority(pair))
        tunnel.connection.out += b"".join(wave(number) for number in range(least // 2))
        await tunnel.flush()
        await flow.write(b"x")
        assert await flow.read(1) == b"x"  # so much is taken
        tunnel.connection.out += b"".join(wave(number) for number in range(4 * least))
        await tunnel.flush()
        await tunnel.change.until(lambda: tunnel.goaway is not None)
        assert tunnel.goaway is not None
        assert tunnel.goaway.code is ErrorCode.ENHANCE_YOUR_CALM
        assert tunnel.goaway.debug.decode() == words
        with pytest.raises(TunnelLost):
            await flow.read_to_end()
    line = await pair.mesh.line("connection failed", words)
    assert PEER.uri in line
    await honest.send_all(b"2")
    assert await receive_exactly(honest, 1) == b"2"
    assert pair.mesh.pods["server"].tunnel_counts[2:] == (1, 1)


@pytest.mark.parametrize("at_once", [True, False])
async def test_rapid_reset_is_stopped(pair: Pair, at_once: bool) -> None:
    """Whether the resets come together with their requests, or behind them."""
    requests = limits.RESET_BURST + 100
    async with tunnel_to_server(pair) as tunnel:
        connection = tunnel.connection
        streams = []
        for number in range(requests):
            streams.append(ask_with(tunnel, connect_to(authority(pair))).stream)
            if at_once:
                connection.reset(streams[-1], ErrorCode.CANCEL, trio.current_time())
            elif len(streams) == 500 or number == requests - 1:
                await tunnel.flush()
                for stream in streams:
                    connection.reset(stream, ErrorCode.CANCEL, trio.current_time())
                await tunnel.flush()
                streams.clear()
        await tunnel.flush()
        await tunnel.change.until(lambda: tunnel.goaway is not None)
        assert tunnel.goaway is not None
        assert tunnel.goaway.code is ErrorCode.ENHANCE_YOUR_CALM
    await pair.mesh.line("connection failed", "too many RST_STREAM frames")
    await until(lambda: not len(pair.mesh.context.registry))
    assert not pair.mesh.engine._deadlines


async def test_header_bombs_are_refused(pair: Pair) -> None:
    async with tunnel_to_server(pair) as tunnel:
        tunnel.connection.peer.max_header_list_size = 1 << 30
        # Larger than the 64 KiB that are taken: it costs the stream.
        flow = ask_with(tunnel, connect_to(authority(pair), (b"baggage", b"a" * 66_000)))
        await tunnel.flush()
        with pytest.raises(Refused):
            await flow.established()
        good = await tunnel.connect(authority(pair))
        await good.write(b"x", end=True)
        assert await good.read_to_end() == b"x"
        # A few bytes on the wire that stand for very many: it costs the tunnel, or the stream.
        field = (b"baggage", b"b" * 3000)
        for _ in range(3):
            ask_with(tunnel, connect_to(authority(pair), *([field] * 300)))
        await tunnel.flush()
        # Blocks without an end.
        tunnel.connection.out += frames.frame(frames.HEADERS, 0, 1001, b"\x00")
        for _ in range(limits.MAX_CONTINUATIONS + 1):
            tunnel.connection.out += frames.frame(frames.CONTINUATION, 0, 1001, b"\x00")
        await tunnel.flush()
        await tunnel.change.until(lambda: tunnel.lost is not None)
    assert len(pair.mesh.context.registry) == 0


# ---- who may come


def of_a_stranger(pair: Pair) -> WorkloadCertificate:
    """Signed by nobody we know; it trusts our root itself."""
    stranger = make_root("another").workload(PEER)
    return stranger.with_roots(pair.mesh.authority.workload(PEER).roots_pem)


def expired(pair: Pair) -> WorkloadCertificate:
    return pair.mesh.authority.workload(PEER, not_before=0)


def of_another_trust_domain(pair: Pair) -> WorkloadCertificate:
    return pair.mesh.authority.workload(Identity("elsewhere", NAMESPACE, "peer"))


def of_no_workload(pair: Pair) -> WorkloadCertificate:
    return pair.mesh.authority.leaf_with_uris(["https://cluster.local/peer"])


@pytest.mark.parametrize(
    ("made", "alert", "words"),
    [
        (of_a_stranger, Alert.UNKNOWN_CA, "not valid"),
        (expired, Alert.CERTIFICATE_EXPIRED, "expired"),
        (of_another_trust_domain, Alert.CERTIFICATE_UNKNOWN, "expected trust domain cluster.local"),
        (of_no_workload, Alert.CERTIFICATE_UNKNOWN, "expected a workload of trust domain"),
    ],
)
async def test_a_peer_that_is_not_of_the_mesh_is_told_so(
    pair: Pair, made: Callable[[Pair], WorkloadCertificate], alert: Alert, words: str
) -> None:
    transport = await connect(pair.room.node(1).network, pair.room.ip("server"), 15008)
    async with client_on(transport, made(pair), ServerMustBe([pair.server.identity])) as tunnel:
        await tunnel.change.until(lambda: tunnel.lost is not None)
        error = tunnel.session.error
        assert isinstance(error, TlsError)
        assert error.alert is alert
    await pair.mesh.line("connection failed", words)


# ---- the end


async def drain(pair: Pair) -> None:
    pair.mesh.pods["server"].drain()


async def expire(pair: Pair) -> None:
    server = pair.mesh.pods["server"]
    with trio.fail_after(30):
        while not any(owner.leaving for owner in server.arrivals.tunnels):
            server.tick(time.monotonic())
            await trio.sleep(0.05)


@pytest.mark.parametrize("leave", [drain, expire])
async def test_a_tunnel_is_left_in_order(
    pair: Pair, leave: Callable[[Pair], Awaitable[None]]
) -> None:
    """On a drain, and when the peer's certificate expires: streams go on, new ones do not."""
    now = time.time()
    soon = pair.mesh.authority.workload(PEER, not_before=now - 100, lifetime=106)
    async with tunnel_to_server(pair, soon) as tunnel:
        old = await tunnel.connect(authority(pair))
        await leave(pair)
        await tunnel.change.until(
            lambda: tunnel.goaway is not None and tunnel.goaway.last_stream_id == 1
        )
        assert tunnel.goaway is not None
        assert tunnel.goaway.code is ErrorCode.NO_ERROR
        assert not tunnel.connection.can_open()
        await old.write(b"still", end=True)
        assert await old.read_to_end() == b"still"
        await tunnel.change.until(lambda: tunnel.lost is not None)
        assert tunnel.lost == "close_notify"
    await until(lambda: pair.mesh.pods["server"].tunnel_counts[2:] == (0, 0))


async def test_a_client_that_does_not_answer_pings_is_closed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = pair.listen(7001)
    async with tunnel_to_server(pair) as tunnel:
        await tunnel.connect(authority(pair, 7001))
        accepted = await pair.accept(listener)

        async def silence() -> None:
            """It hears everything and says nothing any more."""

        monkeypatch.setattr(tunnel, "flush", silence)
        now = time.monotonic()
        pair.mesh.pods["server"].tick(now + 11)
        pair.mesh.pods["server"].tick(now + 32)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
            await receive_all(accepted)
    await pair.mesh.line('direction="inbound"', "did not answer a PING for 20s")
