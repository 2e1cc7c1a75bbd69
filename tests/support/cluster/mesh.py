"""The mesh on a cluster of tests, installed by the command that the README tells users."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from daemonset.agent.pod_notes import REDIRECTION
from daemonset.local.capture import HBONE_PORT, Capture, Wire
from tests.support.cluster.cluster import NodeCluster
from tests.support.cluster.pods import NO_ANSWER, RunningPod, Traffic, application, service
from tests.support.kube.api import Json
from tests.support.kube.objects import account
from tests.support.program import wait_for

MODE = "istio.io/dataplane-mode"
SYSTEM = "ambient-system"
PARTS = ("daemonset/ambient-agent", "daemonset/ztunnel", "deployment/ambient-control-plane")
MARKER = "card=4111-1111-1111-1111"
"""What no one on the wire is to read."""

_ROLLOUT = "--timeout=280s"
_DRAIN_SECONDS = 0.05


class Mesh:
    """The mesh of one cluster, and what happens to it."""

    def __init__(self, cluster: NodeCluster) -> None:
        self.cluster = cluster

    def install(self) -> None:
        """The README's line, and until it is ready."""
        kustomization = "daemonset/manifests/kind"
        # A definition is not served at the moment when it is there; nothing here needs it yet.
        self.cluster.kubectl("apply", "--server-side", "-k", kustomization)
        self.wait_rolled_out(*PARTS)

    def wait_rolled_out(self, *parts: str) -> None:
        """Raises RuntimeError when they are not ready in time."""
        for part in parts:
            self.cluster.kubectl("-n", SYSTEM, "rollout", "status", part, _ROLLOUT)

    def begin_update(self, part: str) -> None:
        """A rolling update to the same version."""
        self.cluster.kubectl("-n", SYSTEM, "rollout", "restart", part)

    def part(self, app: str, node: str | None = None) -> RunningPod:
        """The pod of one of our parts, on a node where there is one on each."""
        path = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app%3D{app}"
        [name] = [
            each["metadata"]["name"]
            for each in self.cluster.api.call("GET", path)["items"]
            if node in (None, each["spec"]["nodeName"])
        ]
        return RunningPod(self.cluster, SYSTEM, name)

    def label(self, namespace: str, mode: str | None) -> None:
        """Put a namespace into the mesh, or take it out."""
        self.cluster.api.call(
            "PATCH",
            f"/api/v1/namespaces/{namespace}",
            {"metadata": {"labels": {MODE: mode}}},
            content_type="application/merge-patch+json",
        )

    def annotated(self) -> list[str]:
        """All pods, of whatever namespace, that are said to be captured or about to be."""
        found = self.cluster.api.call("GET", "/api/v1/pods")["items"]
        return [
            f"{each['metadata']['namespace']}/{each['metadata']['name']}"
            for each in found
            if REDIRECTION in each["metadata"].get("annotations", {})
        ]

    def shop(self, namespace: str, *, mode: str | None = None) -> Shop:
        """A namespace with pods that talk to each other, ready."""
        return Shop(self, namespace, mode)

    def logs(self, app: str) -> str:
        """What all pods of one of our parts have said."""
        return self.cluster.kubectl(
            "-n", SYSTEM, "logs", f"--selector=app={app}", "--tail=-1", "--prefix=false"
        )

    @contextlib.contextmanager
    def wire(self) -> Iterator[Capture]:
        """What goes over the wire between the nodes; to be looked at when the block has ended.

        It is the link of node-1, whichever boot of it that was when the block began.
        """
        wire = Wire(self.cluster.host, self.cluster.addresses[0].link)
        capture, over = Capture(), threading.Event()

        def follow() -> None:
            while not over.wait(_DRAIN_SECONDS):  # the kernel keeps no more than a few MiB
                wire.read_into(capture)

        thread = threading.Thread(target=follow, name="wire")
        thread.start()
        try:
            yield capture
        finally:
            over.set()
            thread.join()
            wire.read_into(capture)
            wire.close()

    @contextlib.contextmanager
    def unseen(self, shop: Shop) -> Iterator[tuple[Traffic, Traffic]]:
        """Requests of web to orders, none of which may be read between the nodes: on new
        connections, and on one that is kept."""
        path = f"/?{MARKER}"
        with (
            self.wire() as wire,
            shop.web.enter() as network,
            Traffic(network, shop.cluster_ip, 80, path) as traffic,
            Traffic(network, shop.cluster_ip, 80, path, kept=True) as kept,
        ):
            traffic.more()
            kept.more()
            yield traffic, kept
        assert not wire.shows(MARKER.encode()), "a request went over the wire in the clear"

    def wait_encrypted(self, shop: Shop) -> None:
        """Until the ztunnel of node-1 knows that orders is there, and reached by a tunnel."""

        def look() -> bool:
            with self.wire() as capture:
                answered = shop.is_answered("web", f"/?{MARKER}")
            return answered and not capture.shows(MARKER.encode())

        wait_for(f"what web asks of orders in {shop.namespace} is encrypted", look)


class Shop:
    """Pods `web` on node-1, `orders` on node-2 (with a Service) and `visitor` on node-1, each with
    a service account of its own."""

    PODS = (("web", "node-1"), ("orders", "node-2"), ("visitor", "node-1"))

    def __init__(self, mesh: Mesh, namespace: str, mode: str | None) -> None:
        self.namespace = namespace
        self._cluster = cluster = mesh.cluster
        labels = {} if mode is None else {MODE: mode}
        cluster.api.namespace(namespace, **labels)
        items = [service(namespace, "orders", type="NodePort", ipFamilyPolicy="PreferDualStack")]
        for name, node in self.PODS:
            account(cluster.api, namespace, name)
            items.append(application(namespace, name, node, name))
        for item in items:
            cluster.api.apply(item)
        self.web, self.orders, self.visitor = (self.pod(name) for name, _ in self.PODS)
        for pod in self.pods:
            pod.wait_ready()
        service_path = f"/api/v1/namespaces/{namespace}/services/orders"
        self.service: Json = cluster.api.call("GET", service_path)

    @property
    def pods(self) -> tuple[RunningPod, RunningPod, RunningPod]:
        return self.web, self.orders, self.visitor

    @property
    def cluster_ip(self) -> str:
        address: str = self.service["spec"]["clusterIP"]
        return address

    @property
    def node_port(self) -> int:
        port: int = self.service["spec"]["ports"][0]["nodePort"]
        return port

    def pod(self, name: str) -> RunningPod:
        return RunningPod(self._cluster, self.namespace, name)

    def wait_redirection(self, value: str | None) -> None:
        for pod in self.pods:
            pod.wait_redirection(value)

    def is_answered(self, name: str, path: str = "/") -> bool:
        """Whether orders answers one of the pods at its Service's address."""
        try:
            return bool(self.pod(name).get(self.cluster_ip, 80, path)["pod"] == "orders")
        except NO_ANSWER:
            return False

    def events(self, name: str) -> list[str]:
        """What is said about a pod."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        items = self._cluster.api.call("GET", path)["items"]
        return [each["message"] for each in items if each["involvedObject"]["name"] == name]

    def wait_event(self, name: str, text: str) -> str:
        """The first event of a pod that has the text in it."""

        def look() -> str | None:
            return next((each for each in self.events(name) if text in each), None)

        return wait_for(f"an event of {name} that says {text!r}", look)


def is_all_tls(capture: Capture) -> bool:
    """Whether there was something between the nodes' ztunnels, and nothing but TLS."""
    records, strangers = capture.tls_records(HBONE_PORT)
    return records > 0 and strangers == 0
