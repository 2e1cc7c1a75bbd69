"""Why a connection is allowed, for every way that it can go."""

from __future__ import annotations

import pytest

from daemonset.control_plane.explanation import (
    UnknownNameError,
    Way,
    explain,
    find_targets,
    find_workload,
)
from tests.support.control_plane import translate
from ztunnel.mesh.changes import Batch, Resource
from ztunnel.mesh.from_proto import address_from_proto
from ztunnel.mesh.policy_from_proto import authorization_from_proto
from ztunnel.mesh.state import MeshState

MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {serviceAccountName: web}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, namespace: shop, labels: {app: db, n: "1"}}
spec: {serviceAccountName: db}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: db-2, namespace: shop, labels: {app: db, n: "2"}}
spec: {serviceAccountName: db}
status: {podIP: 10.0.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: out, namespace: street}
status: {podIP: 10.0.0.4}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: nobody}, ports: [{port: 80}]}
---
"""
ONE_IS_CLOSED = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  selector: {matchLabels: {n: "2"}}
  action: DENY
  rules: [{from: [{source: {namespaces: [x]}}]}, {to: [{operation: {ports: ["8080"]}}]}]
---
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
"""
ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-web, namespace: shop}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}
---
"""
WAYPOINT = """
apiVersion: v1
kind: Service
metadata: {name: far, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.3, selector: {app: db}, ports: [{port: 80, targetPort: 8080}]}
---
"""


def mesh(*more: str) -> MeshState:
    translation = translate(MESH + "".join(more)).raw
    resources: list[Resource] = [
        address_from_proto(one.payload) for one in translation.addresses.values()
    ]
    resources += [
        authorization_from_proto(one.payload) for one in translation.authorizations.values()
    ]
    state = MeshState()
    state.apply(Batch(resources))
    return state


def ways(state: MeshState, source: str, destination: str, port: int | None = None) -> list[Way]:
    client = find_workload(state, source)
    (target,) = find_targets(state, client, destination, port)
    return explain(state, client, target)


def test_every_endpoint_is_asked_about() -> None:
    found = ways(mesh(ONE_IS_CLOSED), "web", "db")
    assert sorted((way.allowed, way.policies, way.rule) for way in found) == [
        (False, ("shop/closed",), 2),
        (True, (), 0),
    ]
    assert all("mutual TLS to 10.0.0." in way.steps[2] for way in found)


def test_without_the_mesh_nobody_vouches_for_the_client() -> None:
    assert [way.allowed for way in ways(mesh(), "out", "db.shop.svc.cluster.local")] == [True] * 2
    (way, _) = ways(mesh(STRICT), "out", "shop/db")
    assert not way.allowed
    assert way.policies == ("istio-system/istio_converted_static_strict",)
    assert "not in the mesh" in way.steps[0]
    assert [way.allowed for way in ways(mesh(STRICT), "web", "db")] == [True] * 2


def test_a_pod_outside_the_mesh_is_checked_by_nobody() -> None:
    (way,) = ways(mesh(ALLOW), "web", "out", 80)
    assert way.allowed
    assert "nobody checks it" in way.steps[-1]


def test_policies_that_would_have_had_to_allow_it_are_named() -> None:
    (way,) = ways(mesh(ALLOW), "db-1", "pod/db-2")
    assert (way.allowed, way.policies, way.rule) == (False, ("shop/only-web",), 0)
    (way,) = ways(mesh(ALLOW), "web", "pod/db-2")
    assert (way.allowed, way.policies, way.rule) == (True, ("shop/only-web",), 1)


def test_nobody_there_is_a_refusal() -> None:
    for source in ("web", "out"):
        (way,) = ways(mesh(), source, "shop/nobody")
        assert not way.allowed


def test_a_waypoint_that_is_missing_refuses() -> None:
    (way,) = ways(mesh(WAYPOINT), "web", "far")
    assert not way.allowed
    assert "wp.shop.svc.cluster.local" in way.steps[-1]


def test_an_address_that_nobody_knows_is_passed_through() -> None:
    for source in ("web", "out"):
        (way,) = ways(mesh(), source, "192.0.2.7", 443)
        assert way.allowed
        assert "nobody checks it" in way.steps[-1]


@pytest.mark.parametrize(
    ("source", "destination", "port", "message"),
    [
        ("nobody", "db", None, "there is no workload nobody"),
        ("web", "nobody-either", None, "there is no workload nobody-either"),
        ("web", "service/db-1", None, "there is no service db-1"),
        ("web", "db", 81, "has no port 81; it has: 80"),
        ("web", "bare", None, "has no address of its own"),
        ("web", "192.0.2.7", None, "which port of 192.0.2.7"),
        ("web", "out", None, "which port of out"),
    ],
)
def test_questions_without_an_answer(
    source: str, destination: str, port: int | None, message: str
) -> None:
    state = mesh()
    with pytest.raises(UnknownNameError, match=message):
        find_targets(state, find_workload(state, source), destination, port)


def test_a_name_of_several_is_not_guessed() -> None:
    other = MESH.split("---")[1].replace("namespace: shop", "namespace: street")
    with pytest.raises(UnknownNameError, match="shop/web, street/web"):
        find_workload(mesh(other.replace("10.0.0.1", "10.0.0.9")), "web")
