"""The gRPC service of delta ADS, with real clients."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemonset.control_plane.grpc_server import GrpcThread, Listener
from daemonset.control_plane.translation.resource import (
    ADDRESS,
    AUTHORIZATION,
    Resource,
    workload_resource,
)
from daemonset.control_plane.xds.budget import SendBudget
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

    def __init__(self, count: int, size: int = 0, budget: SendBudget | None = None) -> None:
        self.snapshot = Snapshot(1, pods(count, size=size), {})
        self.rejections = 0
        self.discovery = DiscoveryService(self.snapshot, self.reject, budget)
        self.grpc = GrpcThread()
        (self.port,) = self.grpc.start(
            lambda: [Listener("127.0.0.1", 0, [self.discovery.handler(None)], None)]
        )
        self.target = f"127.0.0.1:{self.port}"

    def reject(self) -> None:
        self.rejections += 1

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
    ready = threading.Barrier(51, timeout=60)
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
        thread.join(60)
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


async def take_turns(budget: SendBudget, sizes: list[int], stalled: set[int]) -> int:
    """The most bytes that were on their way at once; returns when all but the stalled are served.
    Answers of up to 5 bytes are not counted."""
    going: dict[int, int] = {}
    most = 0

    async def client(number: int, size: int) -> None:
        async def write(data: bytes) -> None:
            nonlocal most
            if size > 5:
                going[number] = size
            most = max(most, sum(going.values()))
            await (asyncio.Event().wait() if number in stalled else asyncio.sleep(0.001))
            going.pop(number, None)

        await budget.send(write, b"x" * size)

    tasks = [asyncio.create_task(client(number, size)) for number, size in enumerate(sizes)]
    quick = [task for number, task in enumerate(tasks) if number not in stalled]
    async with asyncio.timeout(60):
        await asyncio.gather(*quick)
    for task in tasks:
        task.cancel()
    return most


SIZES = st.lists(st.integers(1, 150), max_size=12)


@given(sizes=SIZES)
@settings(max_examples=30, deadline=None)
def test_whoever_sends_much_takes_turns(sizes: list[int]) -> None:
    budget = SendBudget(limit=100, free=5, patience=60.0)
    assert asyncio.run(take_turns(budget, sizes, set())) <= max([100, *sizes])


@given(sizes=SIZES, stalled=st.sets(st.integers(0, 11), max_size=3))
@settings(max_examples=30, deadline=None)
def test_nobody_waits_for_ever_for_one_that_takes_nothing(
    sizes: list[int], stalled: set[int]
) -> None:
    budget = SendBudget(limit=100, free=5, patience=0.02)
    asyncio.run(take_turns(budget, sizes, stalled))


def test_clients_that_take_nothing_hold_up_nobody_for_long() -> None:
    budget = SendBudget(50_000_000, patience=1.0)
    server = Server(2000, size=10_000, budget=budget)  # 20 MB for each
    try:
        with ExitStack() as stack:
            stalled = [stack.enter_context(delta_stream(server.target)) for _ in range(4)]
            for stream in stalled:
                stream.send(ADDRESS)
            for _ in range(3):
                with delta_stream(server.target) as quick:
                    quick.send(ADDRESS)
                    assert len(quick.receive().resources) == 2000
            # They were not given up, and have what they are owed.
            for stream in stalled:
                assert len(stream.receive().resources) == 2000
    finally:
        server.grpc.stop()


def test_a_client_that_rejects_everything_holds_up_nobody(server: Server) -> None:
    with delta_stream(server.target) as bad, delta_stream(server.target) as good:
        for stream in (bad, good):
            stream.send(ADDRESS)
        good.receive()
        for number in range(5):
            rejected = bad.receive(ack=False)
            bad.send(ADDRESS, response_nonce=rejected.nonce, error="no good")
            server.publish(pods(10, str(number)))
            assert [item.name for item in good.receive().resources] == ["c//Pod/ns/0"]
        bad.receive()
    assert server.rejections == 5


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
    deadline = time.monotonic() + 30
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


@pytest.mark.parametrize("ipv6", [True, False])
def test_everywhere_is_both_families_or_the_one_that_the_kernel_has(
    server: Server, monkeypatch: pytest.MonkeyPatch, ipv6: bool
) -> None:
    class Socket(socket.socket):
        def __init__(self, family: int = -1, *others: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *others, **named)

    thread = GrpcThread()
    with monkeypatch.context() as patched:
        if not ipv6:
            patched.setattr(socket, "socket", Socket)
        handlers = [server.discovery.handler(None)]
        [port] = thread.start(lambda: [Listener("::", 0, handlers, None)])
    try:
        for host in ("127.0.0.1", "::1") if ipv6 else ("127.0.0.1",):
            socket.create_connection((host, port), timeout=5).close()
    finally:
        thread.stop()
