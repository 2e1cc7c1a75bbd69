"""What a change costs the control plane in meshes of growing size: from an object that a source
hands over to the resources at a client of delta ADS, over a socket of this machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from daemonset.control_plane.grpc_server import GrpcThread, Listener
from daemonset.control_plane.mesh import Mesh
from daemonset.control_plane.metrics import ControlPlaneMetrics
from daemonset.control_plane.objects.authorization_policy import AuthorizationPolicy, Rule
from daemonset.control_plane.objects.endpoint_slice import Endpoint, EndpointPort, EndpointSlice
from daemonset.control_plane.objects.meta import ObjectMeta
from daemonset.control_plane.objects.namespace import Namespace
from daemonset.control_plane.objects.objectset import ObjectSet, object_set
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.objects.registry import AnyObject
from daemonset.control_plane.objects.selector import LabelSelector
from daemonset.control_plane.objects.service import Service, ServicePort
from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.xds.service import DiscoveryService
from tests.support.delta_stream import DeltaStream, delta_stream

SIZES = (100, 1_000, 5_000, 20_000)
_TRIES = 101
_PODS_OF_SERVICE = 5
_NAMESPACES = 20


@dataclass(frozen=True, slots=True)
class Pushed:
    """Milliseconds until a change is with a client that has everything.

    Attributes:
        pods: in the mesh, with a fifth as many services and a tenth as many policies.
        seconds: of the first translation of all of it.
    """

    what: str
    pods: int
    seconds: float
    median: float
    p99: float
    most: float


def pushes(pods: int) -> Iterator[Pushed]:
    """One figure for each kind of change."""
    objects = _mesh(pods)
    mesh = Mesh(MeshSettings(), ControlPlaneMetrics())
    started = time.perf_counter()
    mesh.update(objects, None, str, 0)
    seconds = time.perf_counter() - started
    gc.collect()
    gc.freeze()  # as the control plane does
    try:
        with _client(mesh) as (publish, client):
            for what, field, change in _CHANGES:
                times = []
                keys = list(getattr(objects, field))
                for number in range(_TRIES):
                    key = keys[number % len(keys)]
                    inside = dict(getattr(objects, field))
                    inside[key] = change(inside[key], number)
                    objects = replace(objects, **{field: inside})
                    started = time.perf_counter()
                    mesh.update(objects, None, str, 0)
                    publish()
                    client.receive()
                    times.append((time.perf_counter() - started) * 1e3)
                times.sort()
                p99 = times[len(times) * 99 // 100]
                yield Pushed(what, pods, seconds, statistics.median(times), p99, times[-1])
    finally:
        gc.unfreeze()


@contextmanager
def _client(mesh: Mesh) -> Iterator[tuple[Callable[[], None], DeltaStream]]:
    """How to publish, and a stream that has all there is."""
    discovery = DiscoveryService(mesh.snapshot, lambda: None)
    grpc = GrpcThread()
    [port] = grpc.start(lambda: [Listener("127.0.0.1", 0, [discovery.handler(None)], None)])
    try:
        with delta_stream(f"127.0.0.1:{port}") as client:
            client.send(ADDRESS)
            client.send(AUTHORIZATION)
            for _ in range(2):
                client.receive()
            yield (lambda: grpc.ask(lambda: discovery.publish(mesh.snapshot))), client
    finally:
        grpc.stop()


def _pod(pod: Pod, number: int) -> Pod:
    return replace(pod, ready=not pod.ready)


def _label(pod: Pod, number: int) -> Pod:
    labels = {**pod.meta.labels, "version": f"v{number}"}
    return replace(pod, meta=replace(pod.meta, labels=labels))


def _slice(found: EndpointSlice, number: int) -> EndpointSlice:
    return replace(found, ports=(EndpointPort("", 9000 + number),))


def _policy(policy: AuthorizationPolicy, number: int) -> AuthorizationPolicy:
    return replace(policy, action="DENY" if policy.action == "ALLOW" else "ALLOW")


def _service(service: Service, number: int) -> Service:
    return replace(service, publish_not_ready=not service.publish_not_ready)


_CHANGES: tuple[tuple[str, str, Callable[[Any, int], Any]], ...] = (
    ("a pod that becomes ready or unready", "pods", _pod),
    ("another label of a pod", "pods", _label),
    ("an EndpointSlice", "endpoint_slices", _slice),
    ("an AuthorizationPolicy", "authorization_policies", _policy),
    ("a Service", "services", _service),
)


def _mesh(pods: int) -> ObjectSet:
    services = max(1, pods // _PODS_OF_SERVICE)
    return object_set([*_namespaces(), *_pods(pods, services), *_services(services)])


def _meta(kind: str, namespace: str, name: str, **labels: str) -> ObjectMeta:
    return ObjectMeta(kind, namespace, name, labels, {})


def _namespaces() -> Iterator[AnyObject]:
    for number in range(_NAMESPACES):
        labels = {"istio.io/dataplane-mode": "ambient"}
        yield Namespace(ObjectMeta("Namespace", "", f"ns-{number}", labels, {}))


def _pods(pods: int, services: int) -> Iterator[AnyObject]:
    for number in range(pods):
        of = number % services
        meta = _meta("Pod", f"ns-{of % _NAMESPACES}", f"app-{of}-{number:05x}", app=f"app-{of}")
        ip = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        node = f"node-{number % 100}"
        yield Pod(meta, node, f"app-{of}", False, (ip,), "Running", True, ())


def _services(services: int) -> Iterator[AnyObject]:
    """Every tenth lists its endpoints in a slice; every other one has a policy."""
    for number in range(services):
        namespace, name = f"ns-{number % _NAMESPACES}", f"app-{number}"
        listed = number % 10 == 0
        yield Service(
            meta=_meta("Service", namespace, name),
            type="ClusterIP",
            selector={} if listed else {"app": name},
            cluster_ips=(f"10.96.{number >> 8}.{number & 255}",),
            headless=False,
            ports=(ServicePort("", 80, 8080, "TCP", ""),),
            ip_families=("IPv4",),
            traffic_distribution="",
            internal_traffic_local=False,
            publish_not_ready=False,
        )
        if listed:
            labels = {"kubernetes.io/service-name": name}
            meta = ObjectMeta("EndpointSlice", namespace, name, labels, {})
            endpoint = Endpoint((), True, f"{name}-{number:05x}", "")
            yield EndpointSlice(meta, name, False, (endpoint,), (EndpointPort("", 8080),))
        if number % 2 == 0:
            meta = _meta("AuthorizationPolicy", namespace, name)
            rule = Rule("spec.rules[0]", (), (), ())
            selector = LabelSelector({"app": name})
            yield AuthorizationPolicy(meta, selector, (), "ALLOW", (rule,), "", False)
