"""The gRPC service of delta ADS, with real clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from daemonset.control_plane.grpc_server import GrpcThread, Listener
from daemonset.control_plane.translation.resource import (
    ADDRESS,
    AUTHORIZATION,
    Resource,
    workload_resource,
)
from daemonset.control_plane.xds.service import DiscoveryService
from daemonset.control_plane.xds.snapshot import Snapshot
from tests.support.delta_stream import delta_stream
from ztunnel.proto import workload_pb2


def pods(count: int, version: str = "", size: int = 0) -> dict[str, Resource]:
    found = {}
    for number in range(count):
        uid = f"c//Pod/ns/{number}"
        message = workload_pb2.Workload(
            uid=uid, canonical_revision=version if number == 0 else "", name="x" * size
        )
        found[uid] = workload_resource(message, ())
    return found


class Server:
    """A served snapshot on a free port."""

    def __init__(self, count: int, size: int = 0) -> None:
        self.snapshot = Snapshot(1, pods(count, size=size), {})
        self.discovery = DiscoveryService(self.snapshot, lambda: None)
        self.grpc = GrpcThread()
        (self.port,) = self.grpc.start(
            lambda: [Listener("127.0.0.1", 0, [self.discovery.handler(None)], None)]
        )
        self.target = f"127.0.0.1:{self.port}"

    def publish(self, addresses: dict[str, Resource]) -> None:
        before = self.snapshot
        snapshot = Snapshot(before.generation + 1, addresses, {}, before)
        self.snapshot = snapshot
        self.grpc.ask(lambda: self.discovery.publish(snapshot))

    def clients(self) -> int:
        return self.grpc.ask(lambda: len(self.discovery.clients))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(10)
    try:
        yield server
    finally:
        server.grpc.stop()


def test_fifty_clients_get_a_change_each(server: Server) -> None:
    ready = threading.Barrier(51, timeout=20)
    results: list[list[str]] = []

    def client() -> None:
        with delta_stream(server.target) as stream:
            stream.send(ADDRESS)
            assert len(stream.receive().resources) == 10
            ready.wait()
            results.append([item.name for item in stream.receive().resources])

    threads = [threading.Thread(target=client) for _ in range(50)]
    for thread in threads:
        thread.start()
    ready.wait()
    server.publish(pods(10, "new"))
    for thread in threads:
        thread.join(20)
    assert results == [["c//Pod/ns/0"]] * 50


def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    server = Server(2000, size=10_000)  # 20 MB: more than any buffer on the way
    try:
        with delta_stream(server.target) as slow, delta_stream(server.target) as quick:
            slow.send(ADDRESS)
            quick.send(ADDRESS)
            assert len(quick.receive().resources) == 2000
            for number in range(3):
                server.publish(pods(2000, str(number), 10_000))
                assert [item.name for item in quick.receive().resources] == ["c//Pod/ns/0"]
            # And what it missed comes as one difference.
            assert len(slow.receive().resources) == 2000
            (item,) = slow.receive().resources
            workload = workload_pb2.Address.FromString(item.resource.value).workload
            assert workload.canonical_revision == "2"
    finally:
        server.grpc.stop()


def test_the_first_policies_come_before_the_first_addresses(server: Server) -> None:
    with delta_stream(server.target) as stream:
        stream.send(ADDRESS)
        stream.send(AUTHORIZATION)
        assert [stream.receive().type_url for _ in range(2)] == [AUTHORIZATION, ADDRESS]


def test_a_client_that_goes_is_forgotten(server: Server) -> None:
    with delta_stream(server.target) as stream:
        stream.send(ADDRESS)
        stream.receive()
        assert server.clients() == 1
    deadline = time.monotonic() + 5
    while server.clients() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.clients() == 0


def test_streams_end_when_the_server_stops() -> None:
    server = Server(1)
    with delta_stream(server.target) as stream:
        stream.send(ADDRESS)
        stream.receive()
        server.grpc.stop()
        with pytest.raises(grpc.RpcError):
            stream.receive()


def test_a_port_that_is_taken_is_an_error(server: Server) -> None:
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        GrpcThread().start(
            lambda: [Listener("127.0.0.1", server.port, [server.discovery.handler(None)], None)]
        )
