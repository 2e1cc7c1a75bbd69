"""The client against the project's own control plane, from YAML to resources in force."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from daemonset.control_plane.grpc_server import GrpcThread, Listener
from daemonset.control_plane.xds.service import DiscoveryService
from daemonset.control_plane.xds.snapshot import Snapshot
from tests.support.control_plane import AMBIENT_SHOP, translate
from ztunnel.config import NodeConfig, RootCertificates, Token
from ztunnel.telemetry.counters import Counters
from ztunnel.xds.channel import ControlPlane
from ztunnel.xds.client import XdsClient
from ztunnel.xds.messages import node
from ztunnel.xds.protocol import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    Outcome,
    Rejection,
    Resource,
)

PODS = """
---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop}
spec: {nodeName: %s, serviceAccountName: web}
status: {phase: Running, podIP: %s, podIPs: [{ip: %s}]}
"""


def mesh(generation: int, *pods: tuple[str, str, str]) -> Snapshot:
    text = AMBIENT_SHOP + "".join(PODS % (name, where, ip, ip) for name, where, ip in pods)
    raw = translate(text).raw
    return Snapshot(generation, raw.addresses, raw.authorizations)


class Plane:
    def __init__(self, first: Snapshot, port: int = 0) -> None:
        self.rejections = 0
        self.service = DiscoveryService(first, self._rejected)
        self._thread = GrpcThread()
        (self.port,) = self._thread.start(
            lambda: [Listener("127.0.0.1", port, [self.service.handler(None)], None)]
        )

    def _rejected(self) -> None:
        self.rejections += 1

    def publish(self, snapshot: Snapshot) -> None:
        self._thread.call(lambda: self.service.publish(snapshot)).result(10)

    def stop(self) -> None:
        self._thread.stop()


@pytest.fixture
def plane() -> Iterator[Plane]:
    made = Plane(mesh(1, ("a", "n1", "10.0.0.1"), ("b", "n2", "10.0.0.2")))
    yield made
    made.stop()


class Held:
    def __init__(self) -> None:
        self.names: set[str] = set()
        self.received: list[str] = []
        self.bad: set[str] = set()
        self.changed = trio.Event()

    async def apply(
        self, type_url: str, resources: Sequence[Resource], removed: Sequence[str]
    ) -> list[Rejection]:
        if type_url == ADDRESS_TYPE:
            self.names -= {name.rpartition("/")[2] for name in removed}
            self.received += [one.name.rpartition("/")[2] for one in resources]
            self.names |= {one.name.rpartition("/")[2] for one in resources}
        self.changed.set()
        self.changed = trio.Event()
        bad = [one.name for one in resources if one.name.rpartition("/")[2] in self.bad]
        return [Rejection(name, "the test says no") for name in bad]

    async def until(self, names: set[str]) -> None:
        while self.names != names:
            await self.changed.wait()


@asynccontextmanager
async def client(plane: Plane, held: Held, on_demand: bool) -> AsyncIterator[XdsClient]:
    config = NodeConfig("n1", "", "Kubernetes", "cluster.local", "td", "z", "s", "a", "1.1.1.1", "")
    made = XdsClient(
        ControlPlane(
            f"http://127.0.0.1:{plane.port}", RootCertificates("SYSTEM"), Token(), "k", {}, None
        ),
        node(config, {}),
        {ADDRESS_TYPE: not on_demand, AUTHORIZATION_TYPE: True},
        held,
        Counters(),
        10.0,
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            yield made
            nursery.cancel_scope.cancel()


async def test_everything_and_every_change(plane: Plane) -> None:
    held = Held()
    async with client(plane, held, on_demand=False) as one:
        await one.warm.wait()
        await held.until({"a", "b"})
        plane.publish(mesh(2, ("a", "n1", "10.0.0.1"), ("c", "n2", "10.0.0.3")))
        await held.until({"a", "c"})


async def test_on_demand(plane: Plane) -> None:
    held = Held()
    async with client(plane, held, on_demand=True) as one:
        assert await one.lookup(ADDRESS_TYPE, "/10.0.0.2") is Outcome.FOUND
        # Its own node's pods come without being asked for.
        await held.until({"a", "b"})
        assert await one.lookup(ADDRESS_TYPE, "/10.0.0.9") is Outcome.ABSENT
        plane.publish(mesh(2, ("a", "n1", "10.0.0.1"), ("d", "n2", "10.0.0.9")))
        await held.until({"a", "d"})
        assert await one.lookup(ADDRESS_TYPE, "/10.0.0.9") is Outcome.FOUND
        assert await one.lookup(ADDRESS_TYPE, "/10.0.0.2") is Outcome.ABSENT


async def test_after_a_restart_of_the_control_plane_only_what_changed_is_sent(
    plane: Plane,
) -> None:
    """The client says which versions it has; what was deleted meanwhile is removed."""
    held = Held()
    async with client(plane, held, on_demand=False):
        await held.until({"a", "b"})
        await trio.to_thread.run_sync(plane.stop)
        changed = mesh(1, ("a", "n1", "10.0.0.1"), ("c", "n2", "10.0.0.3"))
        second = await trio.to_thread.run_sync(Plane, changed, plane.port)
        try:
            await held.until({"a", "c"})
        finally:
            await trio.to_thread.run_sync(second.stop)
    assert sorted(held.received) == ["a", "b", "c"]


async def test_after_a_restart_what_was_asked_for_is_asked_again(plane: Plane) -> None:
    held = Held()
    async with client(plane, held, on_demand=True) as one:
        assert await one.lookup(ADDRESS_TYPE, "/10.0.0.2") is Outcome.FOUND
        await held.until({"a", "b"})
        await trio.to_thread.run_sync(plane.stop)
        changed = mesh(1, ("a", "n1", "10.0.0.1"), ("moved", "n2", "10.0.0.2"))
        second = await trio.to_thread.run_sync(Plane, changed, plane.port)
        try:
            await held.until({"a", "moved"})
        finally:
            await trio.to_thread.run_sync(second.stop)
    assert held.received.count("a") == 1


async def test_what_was_refused_is_sent_again_after_a_restart(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    held.bad = {"b"}
    async with client(plane, held, on_demand=False) as one:
        await one.warm.wait()
        while not plane.rejections:
            await trio.sleep(0.01)
        held.bad = set()
        await trio.to_thread.run_sync(plane.stop)
        again = mesh(1, ("a", "n1", "10.0.0.1"), ("b", "n2", "10.0.0.2"))
        second = await trio.to_thread.run_sync(Plane, again, plane.port)
        try:
            while held.received.count("b") < 2:
                await trio.sleep(0.01)
        finally:
            await trio.to_thread.run_sync(second.stop)
    assert held.received.count("a") == 1
    assert any("Kubernetes//Pod/shop/b: the test says no" in line for line in caplog.messages)
