"""What each node's proxy is sent of a real cluster's policies, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
import trio

from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION
from tests.support.delta_stream import DeltaStream, delta_stream
from tests.support.kube.cluster import Cluster
from tests.support.kube.manifests import MANIFESTS, install, read_base
from tests.support.kube.objects import account, node, pod, policy, run, running
from tests.support.kube.plane import Running, control_plane

DB = {"app": "db"}
UID = "Kubernetes//Pod/shop/db-0"
MOST = 20  # responses to look at


@pytest.fixture(scope="module")
def mesh(cluster: Cluster) -> Cluster:
    """Two nodes with a ztunnel each; a pod on the first, with a policy of its own and one of its
    namespace."""
    for name in ("istio-system", "ambient-system"):
        cluster.namespace(name)
    cluster.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
    for name in ("node-a", "node-b"):
        node(cluster, name)
    account(cluster, "istio-system", "ztunnel")
    account(cluster, "shop", "default")
    install(cluster, read_base(MANIFESTS / "crds"))
    for number, letter in enumerate("ab"):
        item = pod("istio-system", f"zt-{letter}", account="ztunnel", node=f"node-{letter}")
        run(cluster, item, f"10.0.9.{number}")
    run(cluster, pod("shop", "db-0", node="node-a", labels=DB), "10.0.0.1")
    selector = {"selector": {"matchLabels": DB}}
    cluster.apply(policy("shop", "of-db", {**selector, "action": "ALLOW"}))
    cluster.apply(policy("shop", "of-shop", {"action": "ALLOW"}))
    cluster.apply(policy("istio-system", "of-all", {"action": "DENY", "rules": []}))
    return cluster


class Proxy:
    """What a ztunnel has, response by response."""

    def __init__(self, stream: DeltaStream) -> None:
        self._stream = stream
        self.policies: set[str] = set()
        self.order: list[str] = []
        stream.send(ADDRESS)
        stream.send(AUTHORIZATION)

    def until(self, name: str) -> None:
        """Take responses up to the one that brings a resource, or takes it away."""
        for _ in range(MOST):
            response = self._stream.receive()
            names = [resource.name for resource in response.resources]
            self.order += names
            if response.type_url == AUTHORIZATION:
                self.policies.update(names)
                self.policies.difference_update(response.removed_resources)
            if name in names or name in response.removed_resources:
                return
        raise AssertionError(f"no {name} in {self.order}")


@contextmanager
def proxy_of(mesh: Cluster, plane: Running, letter: str) -> Iterator[Proxy]:
    bound = mesh.call("GET", f"/api/v1/namespaces/istio-system/pods/zt-{letter}")
    token = mesh.token("istio-system", "ztunnel", audience="istio-ca", pod=bound)
    credentials = grpc.ssl_channel_credentials(plane.plane.roots_pem.encode())
    metadata = [("authorization", f"Bearer {token}")]
    with delta_stream(f"localhost:{plane.ports.tls}", credentials, metadata) as stream:
        yield Proxy(stream)


def move(mesh: Cluster, plane: Running) -> None:
    """As a StatefulSet does when its node is drained: same name, another node."""
    with proxy_of(mesh, plane, "a") as here, proxy_of(mesh, plane, "b") as there:
        here.until(UID)
        there.until(UID)
        assert here.policies == {"shop/of-db", "shop/of-shop", "istio-system/of-all"}
        assert there.policies == {"istio-system/of-all"}
        moved = pod("shop", "db-0", node="node-b", labels=DB)
        mesh.delete(moved)
        there.until(UID)  # it is gone
        there.order.clear()
        mesh.apply(moved)
        # Scheduled, and without an address: its policies are there before it can be reached.
        there.until("shop/of-db")
        assert there.policies == {"shop/of-db", "shop/of-shop", "istio-system/of-all"}
        assert UID not in there.order
        mesh.set_status(moved, running("10.0.0.2"))
        there.until(UID)
        # And where it was they are taken away.
        here.until("shop/of-db")
        assert here.policies == {"istio-system/of-all"}


async def test_policies_follow_a_pod_that_moves_and_are_there_before_it(mesh: Cluster) -> None:
    async with control_plane(mesh) as plane:
        await trio.to_thread.run_sync(move, mesh, plane)
