"""Our server end against Envoy as HBONE client."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.interop.apps import closed_port, ending, make_it_reset, pattern
from tests.interop.conftest import ENVOYS
from tests.support.envoy import Envoy
from tests.support.envoy_config import ClientOptions, Http2Options, client
from tests.support.hand_made import echo, server_of
from tests.support.pki import make_root
from tests.support.tunnel import Flow, TunnelListener, listener
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.settings import LocalSettings
from ztunnel.mesh.identity import Identity
from ztunnel.tls.contexts import Records
from ztunnel.tls.errors import Alert, PeerRefused, TlsError
from ztunnel.tls.spiffe import ClientMustBe
from ztunnel.tls.workload_certificate import WorkloadCertificate

MIB = 1024 * 1024
VERIFY = ClientMustBe(["cluster.local"])
AUTHORITY = "10.9.8.7:80"


class EnvoyClient:
    """An Envoy whose port leads through tunnels to a listener of ours."""

    def __init__(
        self,
        folder: Path,
        certificate: WorkloadCertificate,
        ours: TunnelListener,
        http2: Http2Options | None = None,
        server_prefix: str = "spiffe://cluster.local/",
    ) -> None:
        self.port = closed_port()
        options = ClientOptions(
            server_prefix=server_prefix,
            peer=("127.0.0.1", ours.port),
            tunnels={self.port: AUTHORITY},
            http2=http2 or Http2Options(),
        )
        self.envoy = Envoy(folder, client(options), certificate)
        self.envoy.start()

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def envoy(
    folder: Path,
    certificate: WorkloadCertificate,
    ours: TunnelListener,
    http2: Http2Options | None = None,
    server_prefix: str = "spiffe://cluster.local/",
) -> AsyncIterator[EnvoyClient]:
    found = await trio.to_thread.run_sync(
        EnvoyClient, folder, certificate, ours, http2, server_prefix
    )
    try:
        yield found
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(found.envoy.stop)


async def read_exactly(stream: trio.SocketStream, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = await stream.receive_some(count - len(found))
        assert data, f"ended after {len(found)} of {count} bytes"
        found += data
    return found


@pytest.mark.parametrize("records", ["own", "openssl"])
async def test_bytes_and_half_close_go_both_ways(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate, records: Records
) -> None:
    async with (
        listener(ours, VERIFY, echo, records) as server,
        envoy(tmp_path, envoys, server) as e,
    ):
        async with await e.connect() as stream:
            await stream.send_all(b"hello")
            assert await read_exactly(stream, 5) == b"hello"
            await stream.send_all(b"more")
            await stream.send_eof()
            assert await ending(stream) == (b"more", "fin")
        [tunnel] = server.tunnels
        assert tunnel.alpn == "h2"
        assert tunnel.peer.identity == ENVOYS
        assert tunnel.session.implementation == records


async def test_our_end_first_leaves_the_other_direction_open(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    seen: list[bytes] = []
    done = trio.Event()

    async def say_then_listen(flow: Flow) -> None:
        assert flow.request is not None
        assert str(flow.request.authority.host) == "10.9.8.7"
        assert flow.request.authority.port == 80
        await server_of(flow).accept(flow)
        await flow.write(b"bye", end=True)
        seen.append(await flow.read_to_end())
        done.set()

    async with (
        listener(ours, VERIFY, say_then_listen) as server,
        envoy(tmp_path, envoys, server) as e,
        await e.connect() as stream,
    ):
        assert await ending(stream) == (b"bye", "fin")
        data = pattern(3 * MIB)
        await stream.send_all(data)
        await stream.send_eof()
        await done.wait()
        assert seen == [data]


@pytest.mark.parametrize("records", ["own", "openssl"])
async def test_much_at_once_in_both_directions(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate, records: Records
) -> None:
    there, back = pattern(40 * MIB, 1), pattern(40 * MIB, 2)
    arrived: list[bytes] = []
    done = trio.Event()

    async def swap(flow: Flow) -> None:
        await server_of(flow).accept(flow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.write, back, True)
            arrived.append(await flow.read_to_end())
        done.set()

    async with (
        listener(ours, VERIFY, swap, records) as server,
        envoy(tmp_path, envoys, server) as e,
    ):
        async with await e.connect() as stream:

            async def send() -> None:
                await stream.send_all(there)
                await stream.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                received = bytearray()
                async for data in stream:
                    received += data
            assert received == back
        await done.wait()
        assert arrived == [there]


async def test_many_connections_share_a_tunnel(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    async with listener(ours, VERIFY, echo) as server, envoy(tmp_path, envoys, server) as e:

        async def one(number: int) -> None:
            data = pattern(20_000, number)
            async with await e.connect() as stream:
                await stream.send_all(data)
                await stream.send_eof()
                assert await ending(stream) == (data, "fin")

        await one(0)
        async with trio.open_nursery() as nursery:
            for number in range(1, 300):
                nursery.start_soon(one, number)
        assert len(server.tunnels) == 1
        assert e.envoy.stat("cluster.hbone.upstream_rq_total") == 300
        assert e.envoy.stat("http2.rx_reset") == e.envoy.stat("http2.tx_reset") == 0


async def test_a_burst_on_a_cold_tunnel_is_taken(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    """Envoy does not wait for our SETTINGS: what we announce must be as much as it opens."""
    async with listener(ours, VERIFY, echo) as server, envoy(tmp_path, envoys, server) as e:
        answered = 0

        async def one(number: int) -> None:
            nonlocal answered
            async with await e.connect() as stream:
                await stream.send_all(number.to_bytes(4, "big"))
                assert await read_exactly(stream, 4) == number.to_bytes(4, "big")
                answered += 1

        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(one, number)
        assert answered == 500
        assert sum(tunnel.connection.streams_refused for tunnel in server.tunnels) == 0


async def test_a_small_number_of_streams_makes_more_tunnels(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    settings = LocalSettings(max_concurrent_streams=10)
    async with (
        listener(ours, VERIFY, echo, settings=settings) as server,
        envoy(tmp_path, envoys, server) as e,
    ):
        streams = []
        for number in range(25):
            stream = await e.connect()
            streams.append(stream)
            await stream.send_all(bytes([number]))
            assert await read_exactly(stream, 1) == bytes([number])
        assert len(server.tunnels) == 3
        assert all(len(tunnel.connection.streams) <= 10 for tunnel in server.tunnels)
        for stream in streams:
            await stream.send_eof()
            assert await ending(stream) == (b"", "fin")
            await stream.aclose()


async def test_a_stream_nobody_reads_does_not_hold_up_the_others(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    stuck: list[Flow] = []
    arrived = trio.Event()

    async def first_is_stuck(flow: Flow) -> None:
        if not stuck:
            stuck.append(flow)
            flow.paused = True
            await server_of(flow).accept(flow)
            arrived.set()
        else:
            await echo(flow)

    async with (
        listener(ours, VERIFY, first_is_stuck) as server,
        envoy(tmp_path, envoys, server) as e,
        trio.open_nursery() as nursery,
    ):
        data = pattern(8 * MIB)
        held = await e.connect()
        nursery.start_soon(held.send_all, data)
        await arrived.wait()
        for number in range(5):
            async with await e.connect() as stream:
                some = pattern(2 * MIB, number)
                async with trio.open_nursery() as sending:
                    sending.start_soon(stream.send_all, some)
                    assert await read_exactly(stream, len(some)) == some
        [flow] = stuck
        assert flow.total <= flow.tunnel.connection.local.initial_window < len(data)
        flow.resume()
        assert await flow.read(len(data)) == data
        assert len(server.tunnels) == 1
        await held.aclose()


@pytest.mark.parametrize("status", [401, 503])
async def test_a_refusal_ends_the_clients_connection(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate, status: int
) -> None:
    async def refuse(flow: Flow) -> None:
        await server_of(flow).refuse(flow, status, "not today")

    async with listener(ours, VERIFY, refuse) as server, envoy(tmp_path, envoys, server) as e:
        for _ in range(3):
            async with await e.connect() as stream:
                assert await ending(stream) == (b"", "fin")
        assert len(server.tunnels) == 1
        assert server.tunnels[0].lost is None


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        (ErrorCode.NO_ERROR, "rst"),
        (ErrorCode.CANCEL, "rst"),
        (ErrorCode.INTERNAL_ERROR, "rst"),
        (ErrorCode.CONNECT_ERROR, "fin"),
    ],
)
async def test_what_our_reset_means_to_the_client(
    tmp_path: Path,
    ours: WorkloadCertificate,
    envoys: WorkloadCertificate,
    code: ErrorCode,
    seen: str,
) -> None:
    async def cut(flow: Flow) -> None:
        await server_of(flow).accept(flow)
        await flow.write(b"part")
        await flow.read(1)
        await flow.cancel(code)

    async with (
        listener(ours, VERIFY, cut) as server,
        envoy(tmp_path, envoys, server) as e,
        await e.connect() as stream,
    ):
        assert await read_exactly(stream, 4) == b"part"
        await stream.send_all(b"x")
        assert await ending(stream) == (b"", seen)


async def test_a_client_that_resets_is_told_from_one_that_ends(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    resets: list[ErrorCode] = []
    done = trio.Event()

    async def watch(flow: Flow) -> None:
        await server_of(flow).accept(flow)
        await flow.write(b"x")
        resets.append((await flow.until_reset()).code)
        assert not flow.ended
        done.set()

    async with listener(ours, VERIFY, watch) as server, envoy(tmp_path, envoys, server) as e:
        stream = await e.connect()
        assert await read_exactly(stream, 1) == b"x"
        make_it_reset(stream)
        await stream.aclose()
        await done.wait()
        assert resets == [ErrorCode.INTERNAL_ERROR]


async def test_our_drain_moves_new_connections_to_another_tunnel(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    async with listener(ours, VERIFY, echo) as server, envoy(tmp_path, envoys, server) as e:
        async with await e.connect() as old:
            await old.send_all(b"1")
            assert await read_exactly(old, 1) == b"1"
            [first] = server.tunnels
            first.connection.shutdown(False)
            first.connection.ping(b"goneaway")
            await first.flush()
            await first.change.until(lambda: bool(first.pongs))  # it has read the GOAWAY
            first.connection.shutdown(True)
            await first.flush()
            async with await e.connect() as new:
                await new.send_all(b"2")
                assert await read_exactly(new, 1) == b"2"
            assert len(server.tunnels) == 2
            await old.send_all(b"still")
            await old.send_eof()
            assert await ending(old) == (b"still", "fin")
        await first.change.until(lambda: first.lost is not None)  # Envoy lets go of it


async def test_keepalive_of_both_ends(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    options = Http2Options(keepalive_interval=0.3, keepalive_timeout=2.0)
    async with (
        listener(ours, VERIFY, echo) as server,
        envoy(tmp_path, envoys, server, options) as e,
        await e.connect() as stream,
    ):
        await stream.send_all(b"1")
        assert await read_exactly(stream, 1) == b"1"
        [tunnel] = server.tunnels
        for number in range(4):
            tunnel.connection.ping(number.to_bytes(8, "big"))
            await tunnel.flush()
            await tunnel.change.until(lambda n=number: len(tunnel.pongs) > n)  # type: ignore[misc]
            await trio.sleep(0.8)
        await stream.send_all(b"2")
        assert await read_exactly(stream, 1) == b"2"
        assert e.envoy.stat("http2.keepalive_timeout") == 0


async def test_a_lost_tunnel_ends_its_connections_and_the_next_gets_another(
    tmp_path: Path, ours: WorkloadCertificate, envoys: WorkloadCertificate
) -> None:
    async with listener(ours, VERIFY, echo) as server, envoy(tmp_path, envoys, server) as e:
        async with await e.connect() as stream:
            await stream.send_all(b"1")
            assert await read_exactly(stream, 1) == b"1"
            server.tunnels[0].transport.socket.shutdown(socket.SHUT_RDWR)
            received, _ = await ending(stream)
            assert received == b""
        async with await e.connect() as stream:
            await stream.send_all(b"2")
            assert await read_exactly(stream, 1) == b"2"


async def failure(server: TunnelListener) -> BaseException:
    """Why a handshake failed, or by which alert the peer ended the tunnel after it."""
    await server.change.until(lambda: bool(server.failures or server.tunnels))
    if server.failures:
        return server.failures[0]
    [tunnel] = server.tunnels
    await tunnel.change.until(lambda: tunnel.lost is not None)
    assert tunnel.session.error is not None
    return tunnel.session.error


@pytest.mark.parametrize(
    "trust_domains",
    [["elsewhere"], []],
)
async def test_a_client_of_another_trust_domain_is_refused(
    tmp_path: Path,
    ours: WorkloadCertificate,
    envoys: WorkloadCertificate,
    trust_domains: list[str],
) -> None:
    verify = ClientMustBe(trust_domains)
    async with listener(ours, verify, echo) as server, envoy(tmp_path, envoys, server) as e:
        async with await e.connect() as stream:
            assert (await ending(stream))[0] == b""
        error = await failure(server)
        assert isinstance(error, PeerRefused)
        assert ENVOYS.uri in str(error)


async def test_a_client_of_another_authority_is_refused(
    tmp_path: Path, ours: WorkloadCertificate
) -> None:
    stranger = make_root("another").workload(ENVOYS)
    trusting = WorkloadCertificate(
        stranger.identity,
        stranger.private_key_pem,
        stranger.chain_pem,
        ours.roots_pem,
        stranger.not_before,
        stranger.not_after,
        stranger.serial,
    )
    async with listener(ours, VERIFY, echo) as server, envoy(tmp_path, trusting, server) as e:
        async with await e.connect() as stream:
            assert (await ending(stream))[0] == b""
        error = await failure(server)
        assert isinstance(error, TlsError)
        assert error.alert is Alert.UNKNOWN_CA
        assert not error.from_peer


@pytest.mark.parametrize(
    ("prefix", "alert"),
    [("spiffe://cluster.local/ns/other/", Alert.CERTIFICATE_UNKNOWN)],
)
async def test_envoy_refuses_our_identity_and_we_know_why(
    tmp_path: Path,
    ours: WorkloadCertificate,
    envoys: WorkloadCertificate,
    prefix: str,
    alert: Alert,
) -> None:
    async with (
        listener(ours, VERIFY, echo) as server,
        envoy(tmp_path, envoys, server, server_prefix=prefix) as e,
    ):
        async with await e.connect() as stream:
            assert (await ending(stream))[0] == b""
        error = await failure(server)
        assert isinstance(error, TlsError)
        assert error.alert is alert
        assert error.from_peer


async def test_envoy_refuses_our_authority_and_we_know_why(
    tmp_path: Path, envoys: WorkloadCertificate
) -> None:
    stranger = make_root("another").workload(Identity("cluster.local", "ns", "ours"))
    async with listener(stranger, VERIFY, echo) as server, envoy(tmp_path, envoys, server) as e:
        async with await e.connect() as stream:
            assert (await ending(stream))[0] == b""
        error = await failure(server)
        assert isinstance(error, TlsError)
        assert error.alert is Alert.UNKNOWN_CA
        assert error.from_peer
