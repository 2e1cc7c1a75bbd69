"""The command itself on a cluster of many pods: time to start, memory, and time to push."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION
from tests.support.delta_stream import METHOD, DeltaStream, delta_stream
from tests.support.kube.cluster import ApiFailure, Cluster, Json, free_ports, send
from tests.support.kube.objects import account, node, pod, running
from tests.support.program import Program

PODS = int(os.environ.get("AMBIENTD_SCALE_PODS", "2000"))
SERVICES = PODS // 5
NAMESPACES = 20
START_SECONDS = 120.0
PUSHES = int(os.environ.get("AMBIENTD_SCALE_PUSHES", "40"))
STORM = 500
STORM_SECONDS = 240.0
WRITERS = 8
ZTUNNEL = pod("istio-system", "ztunnel-a", account="ztunnel")


def names(number: int) -> tuple[str, str]:
    return f"many-{number % NAMESPACES}", f"pod-{number}"


def many_pods() -> list[Json]:
    result = []
    for number in range(PODS):
        namespace, name = names(number)
        labels = {"app": f"app-{number % SERVICES}"}
        captured = {"ambient.istio.io/redirection": "enabled"}
        place = f"node-{number % 50}"
        result.append(pod(namespace, name, node=place, labels=labels, annotations=captured))
    return result


def many_services() -> list[Json]:
    result = []
    for number in range(SERVICES):
        meta = {"name": f"service-{number}", "namespace": f"many-{number % NAMESPACES}"}
        spec = {
            "selector": {"app": f"app-{number}"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        }
        result.append({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
    return result


def listed() -> list[Json]:
    """A service whose endpoint, the first pod, somebody wrote into a slice."""
    namespace, name = names(0)
    spec = {"ports": [{"name": "http", "port": 80}]}
    meta = {"name": "listed", "namespace": namespace}
    labels = {"kubernetes.io/service-name": "listed"}
    target = {"kind": "Pod", "name": name, "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**meta, "name": "listed-1", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.0"], "targetRef": target}],
            "ports": [{"name": "http", "port": 1999}],
        },
    ]


@pytest.fixture(scope="module")
def many(cluster: Cluster) -> Cluster:
    for name in ("istio-system", "ambient-system"):
        cluster.namespace(name)
    account(cluster, "istio-system", "ztunnel")
    node(cluster, "node-a")
    cluster.apply(ZTUNNEL)
    for number in range(NAMESPACES):
        cluster.namespace(f"many-{number}", **{"istio.io/dataplane-mode": "ambient"})

    def write(share: int) -> None:
        """Each writer has a connection of its own, and every WRITERS-th object."""
        with contextlib.closing(cluster.connect()) as connection:
            for item in many_services()[share::WRITERS]:
                folder = f"/api/v1/namespaces/{item['metadata']['namespace']}/services"
                send(connection, "POST", folder, item)
            for number, item in list(enumerate(many_pods()))[share::WRITERS]:
                folder = f"/api/v1/namespaces/{item['metadata']['namespace']}/pods"
                send(connection, "POST", folder, item)
                status = {
                    "status": running(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
                }
                path = f"{folder}/{item['metadata']['name']}/status"
                patch = "application/merge-patch+json"
                send(connection, "PATCH", path, status, content_type=patch)

    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(write, range(WRITERS)))
    for item in listed():
        cluster.apply(item)
    return cluster


class Command(Program):
    """The control plane as a process of its own."""

    def __init__(self, cluster: Cluster, log: Path) -> None:
        [self.port] = free_ports(1)
        super().__init__(
            "the control plane",
            [
                *(sys.executable, "-m", "daemonset.cli", "control-plane", "--source", "kubernetes"),
                *("--tls-port", str(self.port), "--status-port", "0"),
            ],
            log,
            environment={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
            grace=30.0,
        )
        started = time.monotonic()
        self.start()
        self.seconds_to_start = time.monotonic() - started

    def is_ready(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port)).close()
        return True

    def memory(self, what: str = "VmRSS") -> int:
        """MiB of memory that is resident now; "VmHWM": that ever was."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) // 1024
        raise AssertionError(f"no {what}")

    def processor(self) -> tuple[float, float]:
        """Seconds of processor time until now, and seconds that it waited for a processor."""
        lines = [
            file.read_text().split() for file in Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        ]
        return sum(int(one[0]) for one in lines) / 1e9, sum(int(one[1]) for one in lines) / 1e9


@pytest.fixture(scope="module")
def command(many: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    running = Command(many, tmp_path_factory.mktemp("scale") / "log")
    try:
        yield running
    finally:
        status = running.stop()
    assert status == 0, running.last_words()


def ztunnel_token(cluster: Cluster) -> str:
    bound = cluster.call("GET", "/api/v1/namespaces/istio-system/pods/ztunnel-a")
    return cluster.token("istio-system", "ztunnel", audience="istio-ca", pod=bound)


def roots(cluster: Cluster) -> bytes:
    path = "/api/v1/namespaces/kube-system/configmaps/istio-ca-root-cert"
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(ApiFailure):  # not handed out yet
            data: str = cluster.call("GET", path)["data"]["root-cert.pem"]
            return data.encode()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def stream(many: Cluster, command: Command) -> Iterator[DeltaStream]:
    """A ztunnel that has everything."""
    credentials = grpc.ssl_channel_credentials(roots(many))
    metadata = [("authorization", f"Bearer {ztunnel_token(many)}")]
    with delta_stream(f"localhost:{command.port}", credentials, metadata) as client:
        client.send(ADDRESS, node="node-a")
        client.send(AUTHORIZATION)
        first: set[str] = set()
        while not first:
            response = client.receive()
            if response.type_url == ADDRESS:
                first = {resource.name for resource in response.resources}
        for number in (0, PODS - 1):
            assert "Kubernetes//Pod/{}/{}".format(*names(number)) in first
        assert len(first) >= PODS + SERVICES
        yield client


@pytest.mark.slow
def test_it_starts_in_time_and_in_bounded_memory(command: Command, stream: DeltaStream) -> None:
    print(f"{PODS} pods: serves after {command.seconds_to_start:.1f} s, {command.memory()} MiB")
    assert command.seconds_to_start < START_SECONDS / 2  # the machine may have other work
    assert command.memory() < 150 + PODS // 20


def push(
    many: Cluster,
    command: Command,
    stream: DeltaStream,
    what: str,
    change: Callable[[Any, int], str],
) -> None:
    """Change something again and again (what it is called, is returned), and print how long it is
    on its way: from the request, and from the API server's answer. Whatever else the machine has to
    do is in it, and so the processor's time is told as well."""
    times: list[float] = []
    after: list[float] = []
    ran, waited = command.processor()
    with contextlib.closing(many.connect()) as connection:
        for number in range(PUSHES):
            started = time.monotonic()
            name = change(connection, number)
            answered = time.monotonic()
            response = stream.receive()
            times.append(time.monotonic() - started)
            after.append(time.monotonic() - answered)
            assert [resource.name for resource in response.resources] == [name]
            assert not response.removed_resources
    ran, waited = (now - then for now, then in zip(command.processor(), (ran, waited), strict=True))
    print(
        f"{PODS} pods, {what}: {ran / PUSHES * 1000:.1f} ms of processor time each in the control "
        f"plane, which waited for a processor {waited / PUSHES * 1000:.1f} ms"
    )
    for since, found in (("the request", times), ("the answer", after)):
        found.sort()
        median, p99, worst = (found[at] * 1000 for at in (PUSHES // 2, PUSHES * 99 // 100, -1))
        print(
            f"{PODS} pods, {what}, since {since}: median {median:.0f} ms, p99 {p99:.0f} ms, "
            f"worst {worst:.0f} ms"
        )
    assert statistics.median(times) < 1.0


@pytest.mark.slow
def test_one_changed_pod_is_one_resource_pushed_at_once(
    many: Cluster, command: Command, stream: DeltaStream
) -> None:
    def change(connection: Any, number: int) -> str:
        namespace, name = names(number)
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        body = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
        send(connection, "PATCH", path, body, content_type="application/merge-patch+json")
        return f"Kubernetes//Pod/{namespace}/{name}"

    push(many, command, stream, "a pod", change)


@pytest.mark.slow
def test_one_changed_slice_is_one_resource_pushed_at_once(
    many: Cluster, command: Command, stream: DeltaStream
) -> None:
    namespace, name = names(0)

    def change(connection: Any, number: int) -> str:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/listed-1"
        body = {"ports": [{"name": "http", "port": 2000 + number}]}
        send(connection, "PATCH", path, body, content_type="application/merge-patch+json")
        return f"Kubernetes//Pod/{namespace}/{name}"

    push(many, command, stream, "an EndpointSlice", change)


class Ztunnels:
    """Stand-ins for all node proxies of a cluster, which connect at one moment."""

    def __init__(self, port: int, roots_pem: bytes, token: str) -> None:
        self._target = f"localhost:{port}"
        self._credentials = grpc.ssl_channel_credentials(roots_pem)
        self._metadata = [("authorization", f"Bearer {token}")]
        self._connected = 0
        self._all = asyncio.Event()

    async def storm(self, change: Callable[[], None]) -> tuple[float, float]:
        """Seconds until all have everything, and from a change until all have that."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(number)) for number in range(STORM)]
            await self._all.wait()
            first = time.monotonic() - started
            started = time.monotonic()
            await asyncio.to_thread(change)
        assert {task.result() for task in tasks} == {1}
        return first, time.monotonic() - started

    async def _one(self, number: int) -> int:
        """How many resources the change was."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
            ("grpc.max_receive_message_length", -1),
        ]
        async with grpc.aio.secure_channel(self._target, self._credentials, options) as channel:
            call = channel.stream_stream(
                METHOD,
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                # Five hundred decoded meshes would be this process's memory, not the other's.
                response_deserializer=lambda data: data,
            )(metadata=self._metadata)
            await self._send(call, AUTHORIZATION)
            await self._send(call, ADDRESS)
            size = 0
            while size < PODS * 50:
                size = len(await self._receive(call))
            self._connected += 1
            if self._connected == STORM:
                self._all.set()
            message = discovery_pb2.DeltaDiscoveryResponse.FromString(await self._receive(call))
            return len(message.resources)

    async def _send(self, call: Any, type_url: str, nonce: str = "") -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)
        await call.write(request)

    async def _receive(self, call: Any) -> bytes:
        data: bytes = await call.read()
        if len(data) < 10_000:
            message = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
            await self._send(call, message.type_url, message.nonce)
        else:
            # Type and nonce stand before the resources.
            await self._send(call, ADDRESS, _nonce(data))
        return data


def _nonce(data: bytes) -> str:
    head = data.partition(b"Address")[2][:40]
    length = head[head.index(b"\x2a") + 1]
    start = head.index(b"\x2a") + 2
    return head[start : start + length].decode()


@pytest.mark.slow
def test_all_node_proxies_may_come_back_at_one_moment(many: Cluster, command: Command) -> None:
    namespace, name = names(PODS - 1)
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
    body = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}

    def change() -> None:
        many.call("PATCH", path, body, content_type="application/merge-patch+json")

    async def run() -> tuple[float, float]:
        token = await asyncio.to_thread(ztunnel_token, many)
        roots_pem = await asyncio.to_thread(roots, many)
        async with asyncio.timeout(STORM_SECONDS):
            return await Ztunnels(command.port, roots_pem, token).storm(change)

    before = command.memory()
    first, then = asyncio.run(run())
    most = command.memory("VmHWM")
    print(f"{STORM} clients, {PODS} pods: {first:.1f} s, change {then:.1f} s, {before}->{most} MiB")
    # The mesh is encoded once for all; each stream has its buffers.
    assert most < before + STORM
