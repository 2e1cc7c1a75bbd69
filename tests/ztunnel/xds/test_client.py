"""The client against a real gRPC server on loopback."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing

from ztunnel.config import NodeConfig, RootCertificates, Token
from ztunnel.telemetry.counters import Counters
from ztunnel.xds import client as client_module
from ztunnel.xds.channel import ControlPlane
from ztunnel.xds.client import LookupTimeout, XdsClient
from ztunnel.xds.messages import node
from ztunnel.xds.protocol import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    Outcome,
    Rejection,
    Resource,
)

NODE = NodeConfig(
    "node-1", "", "east", "cluster.local", "td", "zt-1", "istio-system", "ztunnel", "10.1.1.1", "x"
)


@dataclass
class Recorder:
    """A handler that remembers, refuses what a test names, and waits where it is told to."""

    applied: dict[str, bytes] = field(default_factory=dict)
    refuse: set[str] = field(default_factory=set)
    gate: trio.Event | None = None
    broken: bool = False

    async def apply(
        self, type_url: str, resources: Sequence[Resource], removed: Sequence[str]
    ) -> list[Rejection]:
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise RuntimeError("oh")
        for name in removed:
            self.applied.pop(name, None)
        for one in resources:
            if one.name not in self.refuse:
                self.applied[one.name] = one.body
        return [Rejection(one.name, "no") for one in resources if one.name in self.refuse]


class Setup:
    def __init__(
        self,
        address: str,
        roots: str = "SYSTEM",
        token: Token | None = None,
        types: dict[str, bool] | None = None,
        name: str | None = None,
        lookup_timeout: float = 10.0,
    ) -> None:
        self.handler = Recorder()
        self.counters = Counters()
        plane = ControlPlane(
            address, RootCertificates(roots), token or Token(), "east", {"x-a": "b"}, name
        )
        self.client = XdsClient(
            plane,
            node(NODE, {"CLUSTER_ID": "east"}),
            types or {ADDRESS_TYPE: True},
            self.handler,
            self.counters,
            lookup_timeout,
        )

    def count(self, name: str, *labels: str) -> float:
        return self.counters.counter(name, *labels).value

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.client.run)
                yield
                nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """For what happens in another thread and can be awaited in no other way."""
    while not condition():
        await trio.sleep(0.005)


async def test_subscribe_apply_and_acknowledge(make_server: Any) -> None:
    server = make_server()
    setup = Setup(
        f"http://127.0.0.1:{server.port}", types={ADDRESS_TYPE: True, AUTHORIZATION_TYPE: True}
    )
    async with setup.running():
        stream = await server.stream()
        first, second = await stream.request(), await stream.request()
        assert first.node.id == "ztunnel~10.1.1.1~zt-1.istio-system~istio-system.svc.cluster.local"
        assert dict(first.node.metadata) == {
            "NAME": "zt-1",
            "NAMESPACE": "istio-system",
            "INSTANCE_IPS": "10.1.1.1",
            "NODE_NAME": "node-1",
            "CLUSTER_ID": "east",
        }
        assert not second.HasField("node")
        assert (first.type_url, second.type_url) == (ADDRESS_TYPE, AUTHORIZATION_TYPE)
        assert not first.resource_names_subscribe
        assert (stream.metadata["clusterid"], stream.metadata["x-a"]) == ("east", "b")

        setup.handler.gate = trio.Event()
        stream.send(("a", "1"), ("b", "1"), nonce="n1")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert stream.silent()
        setup.handler.gate.set()
        ack = await stream.request()
        assert (ack.response_nonce, ack.HasField("error_detail")) == ("n1", False)
        assert setup.handler.applied == {"a": b"a", "b": b"b"}
        assert not setup.client.warm.is_set()

        stream.send(nonce="n2", type_url=AUTHORIZATION_TYPE)
        await setup.client.warm.wait()
        assert (await stream.request()).response_nonce == "n2"
        stream.send(removed=("a",), nonce="n3")
        await stream.request()
        assert setup.handler.applied == {"b": b"b"}
        assert setup.client.connected
    assert setup.count("istio_xds_message", ADDRESS_TYPE) == 2
    assert setup.count("istio_xds_message_bytes", ADDRESS_TYPE) > 100
    assert setup.counters.gauge("ztunnel_xds_resources", ADDRESS_TYPE).value == 1
    assert setup.counters.gauge("ztunnel_xds_connected").value == 0
    assert not setup.client.connected


async def test_refusals(make_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}")
    setup.handler.refuse = {"b"}
    async with setup.running():
        stream = await server.stream()
        await stream.request()
        stream.send(("a", "1"), ("b", "1"))
        nack = await stream.request()
        assert nack.error_detail.message == "b: no"
        assert setup.handler.applied == {"a": b"a"}
        await setup.client.warm.wait()

        stream.send(("x", "1"), type_url="type.googleapis.com/unknown")
        assert "was not subscribed to" in (await stream.request()).error_detail.message

        setup.handler.broken = True
        stream.send(("c", "1"))
        assert "internal error: RuntimeError" in (await stream.request()).error_detail.message
        stream.send(removed=("a",))
        assert "internal error: RuntimeError" in (await stream.request()).error_detail.message

        setup.handler.broken = False
        stream.end(grpc.StatusCode.UNAVAILABLE)
        again = await (await server.stream()).request()
        assert dict(again.initial_resource_versions) == {"b": "", "c": ""}
    assert setup.count("ztunnel_xds_rejected_resources", ADDRESS_TYPE) == 3
    assert setup.count("istio_xds_message", "unknown") == 1
    assert "refused b of" in caplog.text


@pytest.mark.parametrize(
    ("code", "reason"),
    [(None, "Complete"), (grpc.StatusCode.UNAVAILABLE, "Reconnect")],
)
async def test_a_stream_that_ends_is_taken_up_where_it_ended(
    make_server: Any, code: grpc.StatusCode | None, reason: str
) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}")
    async with setup.running():
        stream = await server.stream()
        await stream.request()
        stream.send(("a", "1"), ("b", "7"))
        await stream.request()
        stream.end(code)
        stream = await server.stream()
        first = await stream.request()
        assert dict(first.initial_resource_versions) == {"a": "1", "b": "7"}
        assert first.HasField("node")
        assert setup.handler.applied == {"a": b"a", "b": b"b"}
        stream.send(("b", "8"), removed=("a",))
        await stream.request()
        assert setup.handler.applied == {"b": b"b"}
    assert setup.count("istio_xds_connection_terminations", reason) == 1


async def test_the_state_stays_while_the_control_plane_is_away(make_server: Any) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}")
    async with setup.running():
        stream = await server.stream()
        stream.send(("a", "1"))
        await setup.client.warm.wait()
        await trio.to_thread.run_sync(server.stop)
        refused = setup.counters.counter("istio_xds_connection_terminations", "ConnectionError")
        await until(lambda: refused.value >= 3)
        assert setup.handler.applied == {"a": b"a"}
        assert setup.client.warm.is_set()
        assert not setup.client.connected
        server = make_server(port=server.port)
        first = await (await server.stream()).request()
        assert dict(first.initial_resource_versions) == {"a": "1"}


async def test_delays_double_and_start_again_after_a_stream_that_worked(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}")
    waits: list[float] = []

    def jitter(seconds: float) -> float:
        waits.append(seconds)
        return 0.0

    monkeypatch.setattr(client_module, "LAST_DELAY", 0.05)
    setup.client._jitter = jitter
    async with setup.running():
        for _ in range(4):
            (await server.stream()).end(grpc.StatusCode.PERMISSION_DENIED)
        stream = await server.stream()
        stream.send(("a", "1"))
        await setup.client.warm.wait()
        stream.end(grpc.StatusCode.UNKNOWN)
        await server.stream()
    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.05, 0.01])
    assert setup.count("istio_xds_connection_terminations", "Error") == 4


async def test_roots_and_token_are_read_at_each_attempt(
    make_server: Any,
    authority: Any,
    other_authority: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make_server(authority.server("localhost"))
    roots, token = tmp_path / "roots.pem", tmp_path / "token"
    setup = Setup(f"https://localhost:{server.port}", str(roots), Token(path=token))
    failures = setup.counters.counter("istio_xds_connection_terminations", "ConnectionError")
    async with setup.running():
        await until(lambda: "cannot read the token" in caplog.text)
        token.write_text("one\n")
        await until(lambda: "cannot read the roots" in caplog.text)
        roots.write_bytes(other_authority.roots)
        await until(lambda: "certificate signature failure" in caplog.text)
        assert server.streams.empty()
        roots.write_bytes(authority.roots)
        stream = await server.stream()
        assert stream.metadata["authorization"] == "Bearer one"
        assert failures.value >= 3
        stream.send(("a", "1"))
        await setup.client.warm.wait()
        token.write_text("two\n")
        stream.end()
        assert (await server.stream()).metadata["authorization"] == "Bearer two"


async def test_the_name_in_the_certificate_counts(
    make_server: Any, authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server(authority.server("istiod.example"))
    address = f"https://localhost:{server.port}"
    wrong = Setup(address, authority.roots.decode())
    async with wrong.running():
        await until(lambda: "ostname" in caplog.text)
    assert server.streams.empty()
    right = Setup(address, authority.roots.decode(), name="istiod.example")
    async with right.running():
        assert await (await server.stream()).request()


async def test_no_token_goes_out_unencrypted(make_server: Any) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}", token=Token(literal="secret"))
    async with setup.running():
        assert "authorization" not in (await server.stream()).metadata


async def test_a_lookup_by_address_ends_with_a_workload_named_by_its_uid(make_server: Any) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}", types={ADDRESS_TYPE: False})
    results: list[Outcome] = []

    async def ask(key: str) -> None:
        results.append(await setup.client.lookup(ADDRESS_TYPE, key))

    async with setup.running():
        assert setup.client.warm.is_set()
        stream = await server.stream()
        first = await stream.request()
        assert list(first.resource_names_subscribe) == ["*"]
        assert list(first.resource_names_unsubscribe) == ["*"]
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, "/10.0.0.1")
            request = await stream.request()
            assert list(request.resource_names_subscribe) == ["/10.0.0.1"]
            setup.handler.gate = trio.Event()
            stream.send(("uid", "1", "/10.0.0.1"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert results == []
            setup.handler.gate.set()
        assert results == [Outcome.FOUND] * 5
        assert setup.handler.applied == {"uid": b"uid"}
        assert (await stream.request()).response_nonce == "n"
        assert stream.silent()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "/10.9.9.9")
            await stream.request()
            stream.send(removed=("/10.9.9.9",))
        assert results[5:] == [Outcome.ABSENT]
        await stream.request()
        assert await setup.client.lookup(ADDRESS_TYPE, "/10.9.9.9") is Outcome.ABSENT
        assert stream.silent()

        setup.handler.refuse = {"bad"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "bad")
            await stream.request()
            stream.send(("bad", "1"))
        assert results[6:] == [Outcome.REJECTED]


async def test_lookups_time_out_and_are_taken_back(make_server: Any) -> None:
    server = make_server()
    setup = Setup(
        f"http://127.0.0.1:{server.port}", types={ADDRESS_TYPE: False}, lookup_timeout=0.1
    )
    with pytest.raises(LookupTimeout, match=r"'a' within 0\.1 s, there is no stream"):
        await setup.client.lookup(ADDRESS_TYPE, "a")
    async with setup.running():
        stream = await server.stream()
        assert list((await stream.request()).resource_names_subscribe) == ["*"]
        with pytest.raises(LookupTimeout, match="did not answer"):
            await setup.client.lookup(ADDRESS_TYPE, "b")
        assert list((await stream.request()).resource_names_subscribe) == ["b"]
        assert list((await stream.request()).resource_names_unsubscribe) == ["b"]
        stream.send(("b", "1"))
        await stream.request()
        assert await setup.client.lookup(ADDRESS_TYPE, "b") is Outcome.FOUND


async def test_a_lookup_without_a_stream_goes_out_with_the_next_one(make_server: Any) -> None:
    server = make_server()
    port = server.port
    await trio.to_thread.run_sync(server.stop)
    setup = Setup(f"http://127.0.0.1:{port}", types={ADDRESS_TYPE: False})
    async with setup.running(), trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(setup.client.lookup, ADDRESS_TYPE, "a"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        server = make_server(port=port)
        stream = await server.stream()
        assert list((await stream.request()).resource_names_subscribe) == ["*", "a"]
        stream.send(("a", "1"))


async def test_a_cancelled_lookup_leaves_the_others_waiting(make_server: Any) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}", types={ADDRESS_TYPE: False})
    async with setup.running():
        stream = await server.stream()
        await stream.request()
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05):
                nursery.start_soon(setup.client.lookup, ADDRESS_TYPE, "a")
                await setup.client.lookup(ADDRESS_TYPE, "a")
            assert list((await stream.request()).resource_names_subscribe) == ["a"]
            assert stream.silent()
            stream.send(("a", "1"))


async def test_a_server_that_says_nothing_can_be_left(make_server: Any) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}")
    async with setup.running():
        stream = await server.stream()
        await stream.request()
    assert await stream.request() is None


async def test_messages_beyond_four_mebibytes_arrive(make_server: Any) -> None:
    server = make_server()
    setup = Setup(f"http://127.0.0.1:{server.port}")
    async with setup.running():
        stream = await server.stream()
        stream.send(*(("n" * 1000 + str(number), "1") for number in range(5000)))
        await setup.client.warm.wait()
        assert len(setup.handler.applied) == 5000


def test_node_needs_metadata_that_json_can_express() -> None:
    with pytest.raises((ValueError, TypeError)):
        node(NODE, {"a": object()})
