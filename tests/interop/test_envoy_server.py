"""Our client end against Envoy as HBONE server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.interop.apps import app, closed_port, echo, ending, make_it_reset, pattern
from tests.interop.conftest import ENVOYS
from tests.support.envoy import Envoy
from tests.support.envoy_config import Http2Options, ServerOptions, server
from tests.support.pki import Authority, make_root
from tests.support.tunnel import ClientTunnel, Flow, Refused, TunnelLost, client, until_settings
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.settings import LocalSettings
from ztunnel.mesh.identity import Identity
from ztunnel.tls.contexts import Records
from ztunnel.tls.errors import Alert, PeerRefused, TlsError
from ztunnel.tls.spiffe import ServerMustBe
from ztunnel.tls.workload_certificate import WorkloadCertificate

MIB = 1024 * 1024
VERIFY = ServerMustBe([ENVOYS])


class Server:
    """An Envoy that serves tunnels on a port of loopback."""

    def __init__(
        self, folder: Path, certificate: WorkloadCertificate, http2: Http2Options | None = None
    ) -> None:
        self.port = closed_port()
        options = ServerOptions(
            "127.0.0.1", self.port, http2=http2 or Http2Options(max_concurrent_streams=1024)
        )
        self.envoy = Envoy(folder, server(options), certificate)

    def __enter__(self) -> Server:
        self.envoy.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.envoy.stop()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, envoys: WorkloadCertificate
) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), envoys) as found:
        yield found


@pytest.mark.parametrize("records", ["own", "openssl"])
async def test_bytes_and_half_close_go_both_ways(
    shared: Server, ours: WorkloadCertificate, records: Records
) -> None:
    async with app(echo) as authority, client(shared.port, ours, VERIFY, records) as tunnel:
        flow = await tunnel.connect(authority)
        await flow.write(b"hello")
        assert await flow.read(5) == b"hello"
        await flow.write(b"more")
        await flow.end()
        assert await flow.read_to_end() == b"more"
        assert tunnel.alpn == "h2"
        assert tunnel.peer.identity == ENVOYS
        assert tunnel.session.implementation == records


async def test_headers_of_ours_are_taken(shared: Server, ours: WorkloadCertificate) -> None:
    async with app(echo) as authority, client(shared.port, ours, VERIFY) as tunnel:
        flow = await tunnel.connect(
            authority,
            baggage="k8s.namespace.name=ns,service.name=ours",
            forwarded='for="10.0.0.1:4000"',
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        )
        await flow.write(b"x", end=True)
        assert await flow.read_to_end() == b"x"


@pytest.mark.parametrize("records", ["own", "openssl"])
async def test_much_at_once_in_both_directions(
    shared: Server, ours: WorkloadCertificate, records: Records
) -> None:
    there, back = pattern(40 * MIB, 1), pattern(40 * MIB, 2)
    arrived = bytearray()

    async def swap(stream: trio.SocketStream) -> None:
        async def receive() -> None:
            async for data in stream:
                arrived.extend(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await stream.send_all(back)

    async with app(swap) as authority, client(shared.port, ours, VERIFY, records) as tunnel:
        flow = await tunnel.connect(authority)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.write, there, True)
        assert await flow.read_to_end() == back
        assert arrived == there


async def test_many_streams_share_a_tunnel(shared: Server, ours: WorkloadCertificate) -> None:
    async with app(echo) as authority, client(shared.port, ours, VERIFY) as tunnel:

        async def one(number: int) -> None:
            flow = await tunnel.connect(authority)
            data = pattern(20_000, number)
            await flow.write(data, end=True)
            assert await flow.read_to_end() == data

        before = shared.envoy.stat("http.hbone.downstream_cx_total")
        async with trio.open_nursery() as nursery:
            for number in range(400):
                nursery.start_soon(one, number)
        assert shared.envoy.stat("http.hbone.downstream_cx_total") == before
        assert not tunnel.connection.streams


async def test_a_slow_stream_does_not_hold_up_the_others(
    shared: Server, ours: WorkloadCertificate
) -> None:
    data = pattern(4 * MIB)

    async def source(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.receive_some(1)  # until the client ends

    async with app(source) as authority, client(shared.port, ours, VERIFY) as tunnel:
        stuck = await tunnel.connect(authority)
        stuck.paused = True
        for _ in range(8):
            flow = await tunnel.connect(authority)
            assert await flow.read(len(data)) == data
            await flow.end()
        assert stuck.total <= tunnel.connection.local.initial_window < len(data)
        stuck.resume()
        assert await stuck.read(len(data)) == data


@pytest.mark.parametrize("window", [256 * 1024, 16 * MIB])
async def test_what_envoy_cuts_when_the_application_finishes_first(
    shared: Server, ours: WorkloadCertificate, window: int
) -> None:
    """Envoy throws away what our window did not let it send before the application's end.

    Two Envoys do that to one another as well, beyond their 16 MiB. It must never look like the
    end of the stream.
    """
    data = pattern(4 * MIB)

    async def say_and_go(stream: trio.SocketStream) -> None:
        await stream.send_all(data)

    settings = LocalSettings(initial_window=window)
    async with (
        app(say_and_go) as authority,
        client(shared.port, ours, VERIFY, settings=settings) as tunnel,
    ):
        flow = await tunnel.connect(authority)
        reset = await flow.until_reset()
        whole = window > len(data)
        assert flow.ended is whole
        assert (flow.received == data) is whole
        assert reset.clean is whole
        assert reset.code is (ErrorCode.NO_ERROR if whole else ErrorCode.INTERNAL_ERROR)


async def test_a_refused_connection_says_so_and_costs_nobody_else(
    shared: Server, ours: WorkloadCertificate
) -> None:
    async with app(echo) as authority, client(shared.port, ours, VERIFY) as tunnel:
        other = await tunnel.connect(authority)
        with pytest.raises(Refused, match="remote connection failure") as refusal:
            await tunnel.connect(f"127.0.0.1:{closed_port()}")
        assert refusal.value.status == 503
        with pytest.raises(Refused, match="no healthy upstream"):
            await tunnel.connect("some.name:80")
        await other.write(b"still here", end=True)
        assert await other.read_to_end() == b"still here"


async def test_an_application_that_finishes_first_is_a_clean_end(
    shared: Server, ours: WorkloadCertificate
) -> None:
    async def say_and_go(stream: trio.SocketStream) -> None:
        await stream.send_all(b"bye")

    async with app(say_and_go) as authority, client(shared.port, ours, VERIFY) as tunnel:
        flow = await tunnel.connect(authority)
        assert await flow.read_to_end() == b"bye"
        reset = await flow.until_reset()
        assert reset.code is ErrorCode.NO_ERROR
        assert reset.clean


async def test_an_application_that_resets_is_not_a_clean_end(
    shared: Server, ours: WorkloadCertificate
) -> None:
    async def say_and_reset(stream: trio.SocketStream) -> None:
        await stream.send_all(b"part")
        await stream.receive_some(1)
        make_it_reset(stream)

    async with app(say_and_reset) as authority, client(shared.port, ours, VERIFY) as tunnel:
        flow = await tunnel.connect(authority)
        assert await flow.read(4) == b"part"
        await flow.write(b"x")
        reset = await flow.until_reset()
        assert reset.code is ErrorCode.CONNECT_ERROR
        assert not reset.clean
        assert not flow.ended


async def test_our_reset_reaches_the_application_as_an_end(
    shared: Server, ours: WorkloadCertificate
) -> None:
    seen: list[tuple[bytes, str]] = []
    done = trio.Event()

    async def watch(stream: trio.SocketStream) -> None:
        seen.append(await ending(stream))
        done.set()

    async with app(watch) as authority, client(shared.port, ours, VERIFY) as tunnel:
        flow = await tunnel.connect(authority)
        await flow.write(b"some")
        await flow.cancel()
        await done.wait()
        assert seen == [(b"some", "fin")]
        assert tunnel.lost is None


async def test_the_announced_number_of_streams_is_kept(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    with Server(tmp_path, envoys, Http2Options(max_concurrent_streams=5)) as few:
        async with app(echo) as authority, client(few.port, ours, VERIFY) as tunnel:
            await until_settings(tunnel)
            flows = [await tunnel.connect(authority) for _ in range(5)]
            assert not tunnel.connection.can_open()
            async with client(few.port, ours, VERIFY) as second:
                sixth = await second.connect(authority)
                await sixth.write(b"6", end=True)
                assert await sixth.read_to_end() == b"6"
            await flows[0].end()
            await flows[0].read_to_end()
            again = await tunnel.connect(authority)
            for flow in [*flows[1:], again]:
                await flow.write(b"x", end=True)
                assert await flow.read_to_end() == b"x"
        assert few.envoy.stat("http.hbone.downstream_rq_rx_reset") == 0
        assert few.envoy.stat("http2.rx_reset") == 0


async def test_a_queue_before_settings_is_kept_too(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    with Server(tmp_path, envoys, Http2Options(max_concurrent_streams=3)) as few:
        async with app(echo) as authority, client(few.port, ours, VERIFY) as tunnel:

            async def one(number: int) -> None:
                flow = await tunnel.connect(authority)
                await flow.write(pattern(1000, number), end=True)
                assert await flow.read_to_end() == pattern(1000, number)
                tunnel.change.tell()

            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(one, number)
        assert few.envoy.stat("http2.tx_reset") == 0


async def test_keepalive_of_both_ends(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    options = Http2Options(
        max_concurrent_streams=100, keepalive_interval=0.3, keepalive_timeout=2.0
    )
    with Server(tmp_path, envoys, options) as busy:
        async with app(echo) as authority, client(busy.port, ours, VERIFY) as tunnel:
            flow = await tunnel.connect(authority)
            # Envoy closes the connection when three of its PINGs in a row have had no answer.
            for number in range(4):
                payload = number.to_bytes(8, "big")
                tunnel.connection.ping(payload)
                await tunnel.flush()
                await tunnel.change.until(lambda p=payload: p in tunnel.pongs)  # type: ignore[misc]
                await trio.sleep(0.8)
            await flow.write(b"alive", end=True)
            assert await flow.read_to_end() == b"alive"
            assert busy.envoy.stat("http2.keepalive_timeout") == 0


async def test_a_drain_lets_streams_go_on_and_takes_no_new_ones(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    with Server(tmp_path, envoys) as draining:
        async with app(echo) as authority, client(draining.port, ours, VERIFY) as tunnel:
            old = await tunnel.connect(authority)
            await trio.to_thread.run_sync(draining.envoy.drain)
            last = await tunnel.connect(authority)  # its response is preceded by GOAWAY
            await tunnel.change.until(lambda: tunnel.goaway is not None)
            assert tunnel.goaway is not None
            assert tunnel.goaway.code is ErrorCode.NO_ERROR
            assert tunnel.goaway.unprocessed == ()
            assert not tunnel.connection.can_open()
            for flow in (old, last):
                await flow.write(b"still", end=True)
                assert await flow.read_to_end() == b"still"


async def test_our_goaway_leaves_streams_alone(shared: Server, ours: WorkloadCertificate) -> None:
    async with app(echo) as authority, client(shared.port, ours, VERIFY) as tunnel:
        flow = await tunnel.connect(authority)
        tunnel.connection.shutdown()
        await flow.write(b"still", end=True)
        assert await flow.read_to_end() == b"still"


async def test_a_killed_server_cuts_every_stream(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    with Server(tmp_path, envoys) as doomed:
        async with app(echo) as authority, client(doomed.port, ours, VERIFY) as tunnel:
            flows: list[Flow] = [await tunnel.connect(authority) for _ in range(3)]
            await trio.to_thread.run_sync(doomed.envoy.stop)
            for flow in flows:
                with pytest.raises(TunnelLost):
                    await flow.read_to_end()


async def refusal(tunnel: ClientTunnel) -> TlsError:
    """The alert by which a TLS 1.3 server refuses a client, after the client's handshake."""
    await tunnel.change.until(lambda: tunnel.lost is not None)
    error = tunnel.session.error
    assert error is not None
    assert error.from_peer
    return error


async def test_a_server_with_another_identity_is_refused(
    shared: Server, ours: WorkloadCertificate
) -> None:
    expected = Identity("cluster.local", "ns", "somebody-else")
    with pytest.raises(PeerRefused, match=re.escape(ENVOYS.uri)):
        async with client(shared.port, ours, ServerMustBe([expected])):
            raise AssertionError("accepted")


async def test_a_server_of_another_authority_is_refused(shared: Server) -> None:
    stranger = make_root("another").workload(Identity("cluster.local", "ns", "ours"))
    with pytest.raises(TlsError) as error:
        async with client(shared.port, stranger, VERIFY):
            raise AssertionError("accepted")
    assert error.value.alert is Alert.UNKNOWN_CA
    assert not error.value.from_peer


async def test_a_refusal_of_our_certificate_is_told_as_such(
    shared: Server, ours: WorkloadCertificate
) -> None:
    foreign = make_root("another").workload(ours.identity)
    mixed = WorkloadCertificate(
        foreign.identity,
        foreign.private_key_pem,
        foreign.chain_pem,
        ours.roots_pem,
        foreign.not_before,
        foreign.not_after,
        foreign.serial,
    )
    async with client(shared.port, mixed, VERIFY) as tunnel:
        assert (await refusal(tunnel)).alert is Alert.UNKNOWN_CA


@pytest.mark.parametrize(
    ("uri", "alert"),
    [
        ("spiffe://elsewhere/ns/ns/sa/ours", Alert.CERTIFICATE_UNKNOWN),
        ("https://cluster.local/", Alert.CERTIFICATE_UNKNOWN),
    ],
)
async def test_a_refusal_of_our_identity_is_told_as_such(
    shared: Server, root: Authority, uri: str, alert: Alert
) -> None:
    async with client(shared.port, root.leaf_with_uris([uri]), VERIFY) as tunnel:
        assert (await refusal(tunnel)).alert is alert
