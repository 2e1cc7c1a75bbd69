"""What a client of delta ADS is sent: no gRPC here."""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.translation.resource import (
    ADDRESS,
    AUTHORIZATION,
    WORKLOAD,
    Resource,
    authorization_resource,
    service_resource,
    workload_resource,
)
from daemonset.control_plane.xds.snapshot import Differences, Snapshot
from daemonset.control_plane.xds.subscription import Client
from ztunnel.proto import authorization_pb2, workload_pb2

Response: TypeAlias = discovery_pb2.DeltaDiscoveryResponse


def pod(
    name: str, version: str = "", node: str = "", service: str = "", policies: str = ""
) -> Resource:
    message = workload_pb2.Workload(
        uid=f"c//Pod/ns/{name}",
        name=name,
        canonical_revision=version,
        node=node,
        authorization_policies=policies.split(),
    )
    if service:
        message.services[service].SetInParent()
    return workload_resource(message, [f"net/10.0.0.{name}"])


def service(hostname: str, address: str = "") -> Resource:
    message = workload_pb2.Service(namespace="ns", hostname=hostname)
    return service_resource(message, [f"net/{address}"] if address else [])


def policy(name: str, dry_run: bool = False) -> Resource:
    return authorization_resource(
        authorization_pb2.Authorization(namespace="ns", name=name, dry_run=dry_run)
    )


class World:
    """Snapshots, one after the other, and one client."""

    def __init__(self, *resources: Resource) -> None:
        self.snapshot = Snapshot(0, {}, {})
        self.differences = Differences()
        self.rejections = 0
        self.client = self.connect()
        self.set(*resources)

    def reject(self) -> None:
        self.rejections += 1

    def connect(self) -> Client:
        self.client = Client("test", self.differences, self.reject)
        return self.client

    def set(self, *resources: Resource) -> None:
        self.snapshot = Snapshot(
            self.snapshot.generation + 1,
            {item.name: item for item in resources if item.type_url == ADDRESS},
            {item.name: item for item in resources if item.type_url == AUTHORIZATION},
            self.snapshot,
        )

    def send(self, type_url: str = ADDRESS, **fields: Any) -> None:
        node, error = fields.pop("node", None), fields.pop("error", None)
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields)
        if node:
            request.node.id = "test"
            request.node.metadata["NODE_NAME"] = node
        if error:
            request.error_detail.message = error
        self.client.receive(request, self.snapshot)

    def next(self) -> Response | None:
        data = self.client.next_response(self.snapshot)
        return None if data is None else Response.FromString(data)

    def ack(self, response: Response) -> None:
        self.send(response.type_url, response_nonce=response.nonce)

    def take(self) -> tuple[str, list[str], list[str]] | None:
        """The next response, acknowledged, as (type, names, removed names)."""
        response = self.next()
        if response is None:
            return None
        self.ack(response)
        return short(response)


def short(response: Response) -> tuple[str, list[str], list[str]]:
    names = sorted(resource.name.rpartition("/")[2] for resource in response.resources)
    removed = sorted(name.rpartition("/")[2] for name in response.removed_resources)
    return response.type_url.rpartition(".")[2], names, removed


def test_a_wildcard_gets_everything_once_and_then_what_changes() -> None:
    world = World(pod("1"), pod("2"), service("a"))
    world.send()
    assert world.take() == ("Address", ["1", "2", "a"], [])
    assert world.take() is None
    world.set(pod("1"), pod("2", "new"), pod("3"))
    assert world.take() == ("Address", ["2", "3"], ["a"])
    assert world.take() is None


def test_an_empty_mesh_is_an_answer_too() -> None:
    world = World()
    world.send()
    world.send(AUTHORIZATION)
    assert world.take() == ("Authorization", [], [])
    assert world.take() == ("Address", [], [])
    assert world.take() is None


def test_resources_arrive_with_name_version_aliases_and_type() -> None:
    resource = pod("1")
    world = World(resource)
    world.send()
    response = world.next()
    assert response is not None
    (item,) = response.resources
    assert (item.name, item.version, list(item.aliases)) == (
        "c//Pod/ns/1",
        resource.version,
        ["net/10.0.0.1"],
    )
    assert item.resource.type_url == ADDRESS
    assert workload_pb2.Address.FromString(item.resource.value).workload.name == "1"


def test_waypoints_get_bare_workloads() -> None:
    long_name = pod("7", version="x" * 500)
    world = World(pod("1"), service("a"), long_name)
    world.send(WORKLOAD)
    response = world.next()
    assert response is not None
    workloads = [workload_pb2.Workload.FromString(r.resource.value) for r in response.resources]
    assert sorted(item.uid for item in workloads) == ["c//Pod/ns/1", "c//Pod/ns/7"]
    assert {item.resource.type_url for item in response.resources} == {WORKLOAD}
    assert {item.canonical_revision for item in workloads} == {"", "x" * 500}


def test_a_reconnecting_client_gets_only_what_it_lacks() -> None:
    """Regression seed 30: a reconnect sent everything again."""
    old, same = pod("1"), pod("2")
    world = World(pod("1", "new"), same, pod("3"))
    world.connect()
    versions = {old.name: old.version, same.name: same.version, "c//Pod/ns/gone": "x"}
    world.send(initial_resource_versions=versions)
    assert world.take() == ("Address", ["1", "3"], ["gone"])
    world.connect()
    world.send(initial_resource_versions={name: r.version for name, r in addresses(world).items()})
    assert world.take() == ("Address", [], [])


def addresses(world: World) -> dict[str, Resource]:
    return {name: entry.resource for name, entry in world.snapshot.addresses.items()}


def test_one_response_of_a_type_at_a_time_and_changes_gather_meanwhile() -> None:
    world = World(pod("1"))
    world.send()
    first = world.next()
    assert first is not None
    for number in range(20):
        world.set(pod("1", str(number)), pod("2", str(number)))
        assert world.next() is None
    world.set(pod("1"), pod("2"))
    assert world.next() is None
    world.ack(first)
    # Pod 1 is as it was when it was sent: it is not sent again.
    assert world.take() == ("Address", ["2"], [])


def test_an_acknowledgement_of_another_nonce_is_none() -> None:
    world = World(pod("1"))
    world.send()
    assert world.next() is not None
    world.send(response_nonce="from another life")
    world.set(pod("2"))
    assert world.next() is None


def test_policies_come_before_the_workloads_that_name_them() -> None:
    world = World(pod("1"))
    world.send()
    world.send(AUTHORIZATION)
    world.take(), world.take()
    world.set(pod("1", policies="ns/p"), policy("p"))
    assert world.take() == ("Authorization", ["p"], [])
    assert world.take() == ("Address", ["1"], [])
    assert world.take() is None


def test_workloads_wait_while_their_policies_cannot_be_sent() -> None:
    world = World(pod("1"))
    world.send(AUTHORIZATION)
    in_flight = world.next()
    assert in_flight is not None
    world.send()
    assert world.take() == ("Address", ["1"], [])
    world.set(pod("1", policies="ns/p"), policy("p"))
    assert world.next() is None
    world.ack(in_flight)
    assert world.take() == ("Authorization", ["p"], [])
    assert world.take() == ("Address", ["1"], [])


def test_policies_are_taken_away_after_the_workloads_have_let_go() -> None:
    world = World(pod("1", policies="ns/old"), policy("old"))
    world.send()
    world.send(AUTHORIZATION)
    world.take(), world.take()
    world.set(pod("1", policies="ns/new"), policy("new"))
    assert world.take() == ("Authorization", ["new"], [])
    addresses_response = world.next()
    assert addresses_response is not None
    assert short(addresses_response) == ("Address", ["1"], [])
    world.ack(addresses_response)
    assert world.take() == ("Authorization", [], ["old"])
    assert world.take() is None


def test_a_policy_that_comes_back_before_it_was_taken_away() -> None:
    world = World(pod("1", policies="ns/old"), policy("old"))
    world.send()
    world.send(AUTHORIZATION)
    world.take(), world.take()
    world.set(pod("1", policies="ns/new"), policy("new"))
    assert world.take() == ("Authorization", ["new"], [])
    world.set(pod("1", policies="ns/new ns/old"), policy("new"), policy("old"))
    assert world.take() == ("Authorization", ["old"], [])
    assert world.take() == ("Address", ["1"], [])
    assert world.take() is None
    world.set(pod("1", policies="ns/new"), policy("new"))
    assert world.take() == ("Address", ["1"], [])
    assert world.take() == ("Authorization", [], ["old"])


def test_a_rejection_is_recorded_and_the_resource_not_sent_again_until_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    world = World(pod("1"))
    world.send(node="a")
    response = world.next()
    assert response is not None
    world.send(response_nonce=response.nonce, error="c//Pod/ns/1: address is unreadable")
    assert world.next() is None
    status = world.client.status()["Address"]
    assert (status.acked, status.rejected, world.rejections) == (0, 1, 1)
    assert status.last_rejection == "c//Pod/ns/1: address is unreadable"
    assert "rejects istio.workload.Address: c//Pod/ns/1" in caplog.text
    world.set(pod("1", "better"))
    assert world.take() == ("Address", ["1"], [])
    assert world.client.status()["Address"].acked_generation == 2


def test_up_to_date_means_acknowledged() -> None:
    world = World(pod("1"))
    assert world.client.is_up_to_date(world.snapshot)
    world.send()
    assert not world.client.is_up_to_date(world.snapshot)
    response = world.next()
    assert response is not None
    assert not world.client.is_up_to_date(world.snapshot)
    world.ack(response)
    assert world.client.is_up_to_date(world.snapshot)
    world.set(pod("2"))
    assert not world.client.is_up_to_date(world.snapshot)


def test_types_that_are_not_served_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for _ in range(3):
        world.send("type.googleapis.com/envoy.config.listener.v3.Listener")
    assert world.next() is None
    assert len(caplog.records) == 1


# On demand.


def on_demand(*resources: Resource, node: str = "") -> World:
    world = World(*resources)
    world.send(resource_names_subscribe=["*"], resource_names_unsubscribe=["*"], node=node)
    return world


def ask(world: World, *names: str) -> tuple[str, list[str], list[str]] | None:
    world.send(resource_names_subscribe=names)
    return world.take()


def test_star_subscribed_and_unsubscribed_is_nothing() -> None:
    world = on_demand(pod("1"))
    assert world.take() == ("Address", [], [])


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("c//Pod/ns/1", ["1"]),
        ("net/10.0.0.1", ["1"]),
        ("ns/a", ["1", "2", "a"]),
        ("net/10.96.0.1", ["1", "2", "a"]),
    ],
)
def test_keys_of_all_kinds_find_their_resources(key: str, names: list[str]) -> None:
    mesh = (pod("1", service="ns/a"), pod("2", service="ns/a"), pod("3"))
    world = on_demand(*mesh, service("a", "10.96.0.1"))
    world.take()
    assert ask(world, key) == ("Address", names, [])


def test_a_workload_goes_before_a_service_of_the_same_address() -> None:
    world = on_demand(pod("1"), service("a", "10.0.0.1"))
    world.take()
    assert ask(world, "net/10.0.0.1") == ("Address", ["1"], [])


def test_an_unknown_key_is_answered_as_removed_and_sent_once_it_appears() -> None:
    world = on_demand(pod("1"))
    world.take()
    assert ask(world, "net/10.0.0.9") == ("Address", [], ["10.0.0.9"])
    assert world.take() is None
    world.set(pod("1"), pod("9"))
    assert world.take() == ("Address", ["9"], [])
    world.set(pod("1"))
    assert world.take() == ("Address", [], ["9"])


def test_an_address_that_passes_to_another_pod() -> None:
    world = on_demand(pod("1"))
    world.take()
    ask(world, "net/10.0.0.1")
    other = workload_resource(workload_pb2.Workload(uid="c//Pod/ns/x"), ["net/10.0.0.1"])
    world.set(other)
    assert world.take() == ("Address", ["x"], ["1"])


def test_asking_again_is_answered_again() -> None:
    world = on_demand(pod("1"))
    world.take()
    assert ask(world, "c//Pod/ns/1") == ("Address", ["1"], [])
    assert ask(world, "c//Pod/ns/1") == ("Address", ["1"], [])


def test_new_endpoints_of_a_service_follow() -> None:
    world = on_demand(service("a"), pod("1", service="ns/a"))
    world.take()
    ask(world, "ns/a")
    world.set(service("a"), pod("1", service="ns/a"), pod("2", service="ns/a"), pod("3"))
    assert world.take() == ("Address", ["2"], [])


def test_the_pods_of_its_own_node_come_unasked() -> None:
    world = on_demand(pod("1", node="a"), pod("2", node="b"), node="a")
    assert world.take() == ("Address", ["1"], [])
    world.set(pod("1", node="a"), pod("2", node="b"), pod("3", node="a"))
    assert world.take() == ("Address", ["3"], [])


def test_what_is_unsubscribed_is_no_longer_sent() -> None:
    world = on_demand(pod("1"))
    world.take()
    ask(world, "c//Pod/ns/1")
    world.send(resource_names_unsubscribe=["c//Pod/ns/1"])
    world.take()
    world.set(pod("1", "new"))
    assert world.take() is None


def test_policies_by_name() -> None:
    world = World(policy("p"), policy("q"))
    world.send(AUTHORIZATION, resource_names_subscribe=["ns/p", "ns/none"])
    assert world.take() == ("Authorization", ["p"], ["none"])


# A client that applies what it gets has, in the end, what is there.

meshes = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("12345"), st.sampled_from("ab"), max_size=5),
        st.dictionaries(st.sampled_from("pqr"), st.booleans(), max_size=3),
        st.sampled_from(["ack", "hold", "reconnect"]),
    ),
    max_size=8,
)


@given(meshes=meshes)
def test_a_client_ends_with_what_is_there(
    meshes: list[tuple[dict[str, str], dict[str, bool], str]],
) -> None:
    world = World()
    held: dict[str, dict[str, str]] = {ADDRESS: {}, AUTHORIZATION: {}}

    def connect() -> None:
        world.connect()
        for type_url, versions in held.items():
            world.send(type_url, initial_resource_versions=versions)

    def take(response: Response) -> None:
        versions = held[response.type_url]
        for item in response.resources:
            versions[item.name] = item.version
        for name in response.removed_resources:
            versions.pop(name, None)

    connect()
    waiting: list[Response] = []
    for pods, policies, how in [*meshes, ({"1": "a"}, {"p": True}, "ack")]:
        world.set(
            *(pod(name, version) for name, version in pods.items()),
            *(policy(name, dry) for name, dry in policies.items()),
        )
        if how == "reconnect":
            waiting.clear()
            connect()
        if how == "ack":
            for response in waiting:
                world.ack(response)
            waiting.clear()
        while (response := world.next()) is not None:
            take(response)
            if how == "hold":
                waiting.append(response)
            else:
                world.ack(response)
    wanted = {
        ADDRESS: {name: entry.version for name, entry in world.snapshot.addresses.items()},
        AUTHORIZATION: {
            name: entry.version for name, entry in world.snapshot.authorizations.items()
        },
    }
    assert held == wanted
