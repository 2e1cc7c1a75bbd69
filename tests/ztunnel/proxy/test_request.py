"""What a source's proxy says of a connection in its CONNECT, and what it makes of the answer."""

import dataclasses
import re

import pytest
import trio

from tests.support.hand_made import hand_made, server_of
from tests.support.pair import Pair
from tests.support.sockets import receive_all, receive_exactly
from tests.support.tunnel import Flow
from ztunnel.hbone.events import ConnectRequested
from ztunnel.http2.errors import ErrorCode
from ztunnel.mesh.workload import Locality, WorkloadType

pytestmark = pytest.mark.root


async def test_each_connection_says_who_and_where(pair: Pair) -> None:
    requests: list[ConnectRequested] = []

    async def serve(flow: Flow) -> None:
        assert flow.request is not None
        requests.append(flow.request)
        await server_of(flow).accept(flow)
        await flow.write(b"!")

    described = dataclasses.replace(
        pair.client,
        cluster_id="east",
        workload_type=WorkloadType.CRONJOB,
        workload_name="nightly",
        canonical_revision="v 2",
        locality=Locality("r1", "z1", ""),
    )
    pair.mesh.apply(described)
    async with hand_made(pair, serve) as peer:
        streams = [await peer.dial(4711) for _ in range(2)]
        for stream in streams:
            assert await receive_exactly(stream, 1) == b"!"
        assert {str(request.authority) for request in requests} == {
            f"{peer.workload.addresses[0]}:4711"
        }
        assert {request.baggage for request in requests} == {
            "k8s.cluster.name=east,k8s.namespace.name=shop,k8s.cronjob.name=nightly,"
            "service.name=client,service.version=v%202,cloud.region=r1,cloud.availability_zone=z1"
        }
        names = [stream.socket.getsockname() for stream in streams]
        assert {request.forwarded for request in requests} == {
            f'for="{host}:{port}"' for host, port in names
        }
        parents = [request.traceparent for request in requests]
        assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", one) for one in parents)
        assert len(set(parents)) == 2
        assert {request.network for request in requests} == {""}


@pytest.mark.parametrize("status", [201, 204, 400, 401, 404, 502, 503])
async def test_any_answer_but_200_ends_the_connection(pair: Pair, status: int) -> None:
    async def serve(flow: Flow) -> None:
        server = server_of(flow)
        server.connection.send_headers(flow.stream, [(b":status", b"%d" % status)], end_stream=True)
        await server.flush()

    async with hand_made(pair, serve) as peer:
        stream = await peer.dial()
        with trio.fail_after(30):
            try:
                assert await receive_all(stream) == b""
            except trio.BrokenResourceError:
                pass  # an end as well
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert f"status {status}" in line
        assert 'response_flags="CONNECT"' in line
        assert peer.tunnels[0].lost is None


async def test_an_end_that_is_followed_by_a_quiet_reset_is_clean(pair: Pair) -> None:
    """So does Envoy end every tunnel whose application finished first."""

    async def serve(flow: Flow) -> None:
        await server_of(flow).accept(flow)
        await flow.write(b"bye", end=True)
        await flow.cancel(ErrorCode.NO_ERROR)

    async with hand_made(pair, serve) as peer:
        stream = await peer.dial()
        with trio.fail_after(30):
            assert await receive_all(stream) == b"bye"
            for _ in range(20):
                await stream.send_all(bytes(100))  # it is not reset for what nobody wants
            await stream.send_eof()
        line = await pair.mesh.line('direction="outbound"', "connection complete")
        assert "error=" not in line
        assert 'closed_by="server"' in line
        assert "bytes_discarded=2000" in line


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CANCEL, ErrorCode.INTERNAL_ERROR])
async def test_a_reset_in_the_middle_is_never_a_clean_end(pair: Pair, code: ErrorCode) -> None:
    async def serve(flow: Flow) -> None:
        await server_of(flow).accept(flow)
        await flow.write(b"half a mess")
        await flow.read(1)
        await flow.cancel(code)

    async with hand_made(pair, serve) as peer:
        stream = await peer.dial()
        assert await receive_exactly(stream, 11) == b"half a mess"
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
            await receive_all(stream)
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert f"stream reset ({code.name})" in line
