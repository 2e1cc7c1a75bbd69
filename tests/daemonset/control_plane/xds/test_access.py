"""What a node's proxy is sent, and in which order: no gRPC here.

The proxy is a stand-in that fails open, as Istio's does: a policy that it does not have refuses
nobody. The tests look at what it would let through after each response.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.translation.resident import Viewpoint
from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translator
from daemonset.control_plane.xds.access import Access, ForbiddenError
from daemonset.control_plane.xds.snapshot import Differences, Snapshot
from daemonset.control_plane.xds.subscription import Client
from tests.support.control_plane import AMBIENT_SHOP, read_objects
from ztunnel.proto.authorization_pb2 import GLOBAL, NAMESPACE, Authorization
from ztunnel.proto.workload_pb2 import Address, Workload


def pod(name: str, node: str = "", ip: str = "", labels: str = "app: web") -> str:
    where = f"nodeName: {node}, " if node else ""
    return (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, "
        f"labels: {{{labels}}}}}, spec: {{{where}serviceAccountName: {name}}}, "
        f"status: {{{f'podIP: {ip}' if ip else ''}}}}}"
    )


def policy(name: str, namespace: str = "shop", app: str = "") -> str:
    selector = f"selector: {{matchLabels: {{app: {app}}}}}" if app else ""
    return (
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, "
        f"metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{selector}}}}}"
    )


@dataclass
class Proxy:
    """A node's proxy: takes responses, and knows what it has."""

    client: Client
    node: str
    workloads: dict[str, Workload] = field(default_factory=dict)
    policies: dict[str, Authorization] = field(default_factory=dict)

    def send(self, type_url: str, snapshot: Snapshot, nonce: str = "", node: str = "") -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)
        if node:
            request.node.id = "ztunnel"
            request.node.metadata["NODE_NAME"] = node
        self.client.receive(request, snapshot)

    def take(self, snapshot: Snapshot) -> str:
        """One response, applied and acknowledged: its type, or ""."""
        data = self.client.next_response(snapshot)
        if data is None:
            return ""
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
        for item in response.resources:
            if response.type_url == ADDRESS:
                address = Address.FromString(item.resource.value)
                if address.HasField("workload"):
                    self.workloads[item.name] = address.workload
            else:
                self.policies[item.name] = Authorization.FromString(item.resource.value)
        for name in response.removed_resources:
            self.workloads.pop(name, None)
            self.policies.pop(name, None)
        type_url: str = response.type_url
        self.send(type_url, snapshot, response.nonce)
        return type_url

    def missing(self, snapshot: Snapshot) -> set[str]:
        """Policies of this moment that hold for a pod that it serves, and that it does not have."""
        return {
            name
            for workload in self.workloads.values()
            if workload.node == self.node
            for name, entry in snapshot.authorizations.items()
            if name not in self.policies and _holds(workload, name, entry.resource.payload)
        } | {
            # What the workload names counts as well, as long as it is there.
            name
            for workload in self.workloads.values()
            if workload.node == self.node
            for name in workload.authorization_policies
            if name not in self.policies and name in snapshot.authorizations
        }


def _holds(workload: Workload, name: str, payload: bytes) -> bool:
    found = Authorization.FromString(payload)
    if found.scope == GLOBAL:
        return True
    if found.scope == NAMESPACE:
        return found.namespace == workload.namespace
    return name in workload.authorization_policies


class World:
    """A mesh that changes, and the proxies of its nodes."""

    def __init__(self, *nodes: str) -> None:
        self.translator = Translator(MeshSettings())
        self.snapshot = Snapshot(0, {}, {})
        self.differences = Differences()
        self.proxies = [self.proxy(node) for node in nodes]

    def proxy(self, node: str) -> Proxy:
        access = Access(f"ztunnel on {node}", Viewpoint(node=node))
        proxy = Proxy(Client("test", self.differences, lambda: None, access), node)
        proxy.send(ADDRESS, self.snapshot)
        proxy.send(AUTHORIZATION, self.snapshot)
        return proxy

    def set(self, *documents: str) -> None:
        objects = read_objects(AMBIENT_SHOP + "\n---\n".join(documents))
        found = self.translator.translate(objects)
        self.snapshot = Snapshot(
            self.snapshot.generation + 1,
            found.addresses,
            found.authorizations,
            self.snapshot,
            found.residents,
        )

    def settle(self) -> None:
        for proxy in self.proxies:
            while proxy.take(self.snapshot):
                pass


def names(proxy: Proxy) -> list[str]:
    return sorted(name.partition("/")[2] for name in proxy.policies)


def test_a_node_gets_all_addresses_and_the_policies_of_its_own_pods_only() -> None:
    world = World("a", "b", "c")
    here, there, empty = world.proxies
    world.set(
        pod("web", "a", "10.0.0.1"),
        pod("db", "b", "10.0.0.2", "app: db"),
        policy("for-web", app="web"),
        policy("for-db", app="db"),
        policy("for-nobody", app="ghost"),
        policy("for-shop"),
        policy("for-elsewhere", "elsewhere"),
        policy("for-all", "istio-system"),
    )
    world.settle()
    assert names(here) == ["for-all", "for-shop", "for-web"]
    assert names(there) == ["for-all", "for-db", "for-shop"]
    assert names(empty) == ["for-all"]
    assert len(here.workloads) == len(there.workloads) == len(empty.workloads) == 2


def test_a_pod_that_is_scheduled_has_its_policies_before_its_address() -> None:
    world = World("a")
    [proxy] = world.proxies
    world.set(pod("web"), policy("p", app="web"))
    world.settle()
    assert names(proxy) == []
    world.set(pod("web", "a"), policy("p", app="web"))
    world.settle()
    assert names(proxy) == ["p"]
    assert not proxy.workloads


@pytest.mark.parametrize("scope", ["app", "namespace"])
def test_a_pod_that_moves_finds_its_policies_on_the_other_node(scope: str) -> None:
    """One of a StatefulSet keeps its name, so that the other node knows it already."""
    guard = policy("p", app="web" if scope == "app" else "")
    world = World("a", "b")
    _, other = world.proxies
    world.set(pod("web", "a", "10.0.0.1"), guard)
    world.settle()
    assert list(other.workloads)
    assert names(other) == []
    world.set(pod("web", "b", "10.0.0.2"), guard)
    assert other.take(world.snapshot) == AUTHORIZATION
    assert names(other) == ["p"]
    assert other.take(world.snapshot) == ADDRESS
    world.settle()
    assert [names(proxy) for proxy in world.proxies] == [[], ["p"]]


def test_a_policy_is_taken_away_after_the_pod_that_carried_it() -> None:
    world = World("a")
    [proxy] = world.proxies
    world.set(pod("web", "a", "10.0.0.1"), policy("p", app="web"))
    world.settle()
    world.set(policy("p", app="web"))
    assert proxy.take(world.snapshot) == ADDRESS
    assert names(proxy) == ["p"]
    assert proxy.take(world.snapshot) == AUTHORIZATION
    assert names(proxy) == []


def test_a_policy_of_another_node_is_no_message_at_all() -> None:
    world = World("a", "b")
    here, there = world.proxies
    pods = (pod("web", "a", "10.0.0.1"), pod("db", "b", "10.0.0.2", "app: db"))
    world.set(*pods, policy("p", app="web"))
    world.settle()
    changed = policy("p", app="web").replace("spec: {", "spec: {action: DENY, ")
    world.set(*pods, changed)
    assert there.take(world.snapshot) == ""
    assert here.take(world.snapshot) == AUTHORIZATION


def test_a_proxy_of_its_own_gets_the_policies_of_its_own_account() -> None:
    world = World()
    solo = Viewpoint("", "shop", "solo")
    client = Client("test", world.differences, lambda: None, Access("shop/solo", solo))
    proxy = Proxy(client, "a")
    world.set(
        pod("solo", "a", "10.0.0.1", "app: solo, networking.istio.io/tunnel: http"),
        pod("web", "a", "10.0.0.2"),
        policy("for-solo", app="solo"),
        policy("for-web", app="web"),
        policy("for-shop"),
    )
    proxy.send(AUTHORIZATION, world.snapshot)
    proxy.take(world.snapshot)
    assert names(proxy) == ["for-shop", "for-solo"]
    assert world.snapshot.has_residents(solo)
    assert not world.snapshot.has_residents(Viewpoint("", "shop", "web"))


def test_who_says_to_be_on_another_node_is_refused() -> None:
    world = World("a")
    [proxy] = world.proxies
    proxy.send(ADDRESS, world.snapshot, node="a")
    with pytest.raises(ForbiddenError, match="ztunnel on a says that it is on node 'b'"):
        proxy.send(ADDRESS, world.snapshot, node="b")


def test_policies_by_name_are_those_of_its_own_node() -> None:
    world = World("a")
    proxy = Proxy(Client("test", world.differences, lambda: None, Access("z", Viewpoint("a"))), "a")
    world.set(
        pod("web", "a", "10.0.0.1"),
        pod("db", "b", "10.0.0.2", "app: db"),
        policy("for-web", app="web"),
        policy("for-db", app="db"),
    )
    request = discovery_pb2.DeltaDiscoveryRequest(
        type_url=AUTHORIZATION, resource_names_subscribe=["shop/for-web", "shop/for-db"]
    )
    proxy.client.receive(request, world.snapshot)
    proxy.take(world.snapshot)
    assert names(proxy) == ["for-web"]


POD = st.tuples(
    st.sampled_from(["", "a", "b"]), st.booleans(), st.sampled_from(["web", "db", "solo"])
)
MESHES = st.tuples(
    st.dictionaries(st.sampled_from(["p1", "p2", "p3"]), POD),
    st.dictionaries(
        st.sampled_from(["x", "y", "z"]), st.sampled_from(["", "web", "db", "istio-system"])
    ),
)


def documents(mesh: tuple[dict[str, tuple[str, bool, str]], dict[str, str]]) -> list[str]:
    pods, policies = mesh
    found = [
        pod(name, node, f"10.0.0.{name[1]}" if ready else "", f"app: {app}")
        for name, (node, ready, app) in pods.items()
    ]
    for name, target in policies.items():
        if target == "istio-system":
            found.append(policy(name, "istio-system"))
        else:
            found.append(policy(name, app=target))
    return found


@given(steps=st.lists(st.tuples(MESHES, st.integers(0, 3)), max_size=6))
def test_no_pod_is_ever_served_without_its_policies(
    steps: list[tuple[tuple[dict[str, tuple[str, bool, str]], dict[str, str]], int]],
) -> None:
    """However pods move and policies change, and however slowly the proxies follow: after each
    response a proxy has every policy for its pods that it could know of."""
    world = World("a", "b")
    for mesh, patience in steps:
        world.set(*documents(mesh))
        for proxy in world.proxies:
            for _ in range(patience):
                kind = proxy.take(world.snapshot)
                if kind == ADDRESS:
                    assert proxy.missing(world.snapshot) == set()
    world.settle()
    for proxy in world.proxies:
        seen = world.snapshot.of_type(AUTHORIZATION, Viewpoint(node=proxy.node))
        assert seen is not None
        assert proxy.policies.keys() == seen.keys()
        assert proxy.missing(world.snapshot) == set()
