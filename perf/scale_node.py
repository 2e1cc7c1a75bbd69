"""A whole ztunnel in a mesh of growing size: real processes, fed by delta ADS."""

from __future__ import annotations

import contextlib
import os
import queue
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from daemonset.local.mesh_programs import ztunnel_name
from perf.implementations import services_yaml
from perf.processes import proportional_kib, with_descendants
from perf.scale import mesh, workload
from tests.support.mesh_lab import mesh_lab
from tests.support.program import NotInTime, Program, ProgramEnded, wait_for
from tests.support.to_proto import address_to_proto
from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import Workload, WorkloadStatus

SIZES = (0, 1_000, 10_000, 50_000)
_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_ADDRESS = "type.googleapis.com/istio.workload.Address"
_PORT = 15010
_METRICS = "http://127.0.0.1:15020/metrics"
_CHANGES = 21
_BEHIND = 1_000.0  # milliseconds that only a worker takes which has not got the whole mesh yet
_PATIENCE = 120.0  # seconds for any one step
_LIMIT = 200 << 20  # bytes of one message


class ScaleError(Exception):
    """The ztunnel did not do what was asked of it; the text says what, and what it said."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A ztunnel with two workers that has a mesh.

    Attributes:
        workloads: in the mesh, with a tenth as many services.
        seconds: from its first request until control process and workers have the mesh in force.
        change_ms: the median, and the most, until one changed endpoint is in force in all of them.
        control_mib, worker_mib: proportional set size of the control process, and of each worker.
        total_mib: of all its processes.
        peak_mib: the most that the control process ever had resident (not proportional).
    """

    workloads: int
    seconds: float
    change_ms: float
    change_most_ms: float
    control_mib: float
    worker_mib: float
    total_mib: float
    peak_mib: float


class _ControlPlane:
    """Says what it is told to say to one client, and hears when that is in force."""

    def __init__(self) -> None:
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.requested = threading.Event()
        self.acknowledged: queue.Queue[str] = queue.Queue()
        self.refused: list[str] = []
        self._nonce = 0

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(
                    self._serve,
                    request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
                    response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
                )
            },
        )

    def _serve(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        threading.Thread(target=self._read, args=(requests, context), daemon=True).start()
        while (response := self._out.get()) is not None:
            yield response

    def _read(self, requests: Iterator[Any], context: grpc.ServicerContext) -> None:
        try:
            for request in requests:
                if request.response_nonce:
                    if request.HasField("error_detail"):
                        self.refused.append(request.error_detail.message)
                    self.acknowledged.put(request.response_nonce)
                elif request.type_url == _ADDRESS:
                    self.requested.set()
                else:
                    self.send(request.type_url, [])
        except grpc.RpcError:
            pass  # the client is gone
        finally:
            self._out.put(None)

    def send(self, type_url: str, resources: Sequence[Any]) -> str:
        """Gives the nonce that its acknowledgement will have."""
        self._nonce += 1
        nonce = str(self._nonce)
        self._out.put(
            discovery_pb2.DeltaDiscoveryResponse(
                type_url=type_url, resources=resources, nonce=nonce, system_version_info=nonce
            )
        )
        return nonce

    def in_force(self, nonce: str) -> None:
        """Returns once the client has acknowledged it. Raises ScaleError."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                if self.acknowledged.get(timeout=until - time.monotonic()) == nonce:
                    break
            except (queue.Empty, ValueError):
                raise ScaleError(f"no acknowledgement within {_PATIENCE:g} s") from None
        if self.refused:
            raise ScaleError(f"resources were refused: {self.refused[0]}")


def load(workloads: int, workers: int = 2) -> Loaded:
    """Starts a ztunnel in an empty network namespace and gives it a mesh. Needs root.

    Raises:
        ScaleError: it did not take it.
    """
    resources = [_encoded(one) for one in (mesh(workloads) if workloads else ())]
    first = workload(0, max(1, workloads // 10))
    with netns.create() as namespace, tempfile.TemporaryDirectory() as folder:
        with namespace.enter():
            netns.bring_up("lo")
        plane = _ControlPlane()
        ztunnel = _Ztunnel(namespace, Path(folder), workers)
        with _serving(plane, namespace), ztunnel, _quoting(ztunnel):
            if not plane.requested.wait(_PATIENCE):
                raise ScaleError("the ztunnel does not ask for the mesh")
            started = time.monotonic()
            plane.in_force(plane.send(_ADDRESS, resources))
            # Workers join when the control process has the mesh; they say when they have it, too.
            _wait_for_workers(ztunnel, namespace, workers)
            while _change(plane, first, 0) > _BEHIND:
                pass  # it waits for workers that are still at it, but not for ever
            seconds = time.monotonic() - started
            changes = [_change(plane, first, number) for number in range(1, _CHANGES + 1)]
            return _measure(ztunnel.pid, workloads, workers, seconds, changes)


def _change(plane: _ControlPlane, first: Workload, number: int) -> float:
    """Milliseconds until one endpoint that changed is in force everywhere."""
    status = WorkloadStatus.HEALTHY if number % 2 else WorkloadStatus.UNHEALTHY
    resource = _encoded(replace(first, status=status), str(number))
    started = time.monotonic()
    plane.in_force(plane.send(_ADDRESS, [resource]))
    return (time.monotonic() - started) * 1e3


def _encoded(one: Workload | Service, version: str = "1") -> Any:
    found = discovery_pb2.Resource(
        name=one.uid if isinstance(one, Workload) else one.key, version=version
    )
    found.resource.type_url = _ADDRESS
    found.resource.value = address_to_proto(one).SerializeToString()
    return found


@contextmanager
def _serving(plane: _ControlPlane, namespace: NetworkNamespace) -> Iterator[None]:
    options = [("grpc.max_send_message_length", _LIMIT)]
    server = grpc.server(ThreadPoolExecutor(4), options=options)
    server.add_generic_rpc_handlers((plane.handler(),))
    with namespace.enter():
        server.add_insecure_port(f"127.0.0.1:{_PORT}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


class _Ztunnel(Program):
    def __init__(self, namespace: NetworkNamespace, folder: Path, workers: int) -> None:
        environment = {
            **os.environ,
            "XDS_ADDRESS": f"http://127.0.0.1:{_PORT}",
            "CA_ADDRESS": "",
            "INPOD_UDS": str(folder / "zds.sock"),
            "ZTUNNEL_WORKER_THREADS": str(workers),
            "NODE_NAME": "node-none",
            "RUST_LOG": "error",
        }
        command = [sys.executable, "-m", "ztunnel"]
        super().__init__(
            "ztunnel",
            command,
            folder / "log",
            namespace=namespace,
            environment=environment,
            grace=_PATIENCE,
        )


@contextmanager
def _quoting(ztunnel: _Ztunnel) -> Iterator[None]:
    """An error has the end of its log."""
    try:
        yield
    except ScaleError as error:
        raise ScaleError(f"{error}; it said: {ztunnel.last_words()}") from error


def _roles(pid: int) -> dict[str, list[int]]:
    """The processes of a ztunnel by their part."""
    found: dict[str, list[int]] = {}
    for each in with_descendants([pid]):
        variables = Path(f"/proc/{each}/environ").read_bytes().split(b"\0")
        role = next((v[13:].decode() for v in variables if v.startswith(b"ZTUNNEL_ROLE=")), "")
        found.setdefault(role or "supervisor", []).append(each)
    return found


def _wait_for_workers(ztunnel: _Ztunnel, namespace: NetworkNamespace, workers: int) -> None:
    """Until every worker is being given the mesh: each step after that waits for them all."""
    wanted = f"\nztunnel_workers {workers}.0\n".encode()

    def all_there() -> bool:
        ztunnel.check()
        with (
            contextlib.suppress(OSError),
            namespace.enter(),
            urllib.request.urlopen(_METRICS, timeout=10) as answer,
        ):
            return wanted in answer.read()
        return False

    try:
        wait_for("its workers", all_there, _PATIENCE)
    except (NotInTime, ProgramEnded) as error:
        raise ScaleError("not all of its workers serve") from error


@dataclass(frozen=True, slots=True)
class Node:
    """A node as people run them: how much memory each part of its ztunnel has, in MiB."""

    pods: int
    services: int
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def node(pods: int = 50, services: int = 1_000, workers: int = 2) -> Node:
    """A whole mesh of one node with so many pods in it, captured, with certificates. Needs root.

    Proportional set size, of all processes of the node's ztunnel.
    """
    names = {f"pod-{number}": 1 for number in range(pods)}
    objects = services_yaml(services)
    environment = {"ZTUNNEL_WORKER_THREADS": str(workers)}
    with (
        tempfile.TemporaryDirectory() as folder,
        mesh_lab(Path(folder), nodes=1, pods=names, objects=objects, ztunnel=environment) as room,
    ):
        room.enrol()
        process = room.mesh.processes.running[ztunnel_name("node-1")].process
        assert process is not None
        parts: dict[str, float] = {}
        for role, pids in _roles(process.pid).items():
            for number, pid in enumerate(pids):
                name = f"{role} {number}" if len(pids) > 1 else role
                parts[name] = proportional_kib(pid) / 1024
        return Node(pods, services, parts)


def _measure(
    pid: int, workloads: int, workers: int, seconds: float, changes: list[float]
) -> Loaded:
    roles = _roles(pid)
    [control] = roles["control"]
    of_workers = [proportional_kib(worker) for worker in roles["worker"]]
    everything = sum(proportional_kib(each) for each in with_descendants([pid]))
    peak = 0
    for line in Path(f"/proc/{control}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            peak = int(line.split()[1])
    return Loaded(
        workloads=workloads,
        seconds=seconds,
        change_ms=statistics.median(changes),
        change_most_ms=max(changes),
        control_mib=proportional_kib(control) / 1024,
        worker_mib=sum(of_workers) / workers / 1024,
        total_mib=everything / 1024,
        peak_mib=peak / 1024,
    )
