"""What the status of an object is to say, worked out from YAML."""

from __future__ import annotations

import textwrap

import pytest

from daemonset.control_plane.conditions import (
    TYPES,
    Condition,
    Judgement,
    conditions_of,
    same_inputs,
    standing,
)
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import object_set
from daemonset.control_plane.sources.file_reader import read_file
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translator

AROUND = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n, containers: [{name: a}]}
status: {podIP: 10.0.0.1, phase: Running}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: guarded, namespace: shop, labels: {istio.io/use-waypoint: ready}}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: nameless, namespace: shop, labels: {istio.io/use-waypoint: ready}}
spec: {clusterIP: 10.96.0.3, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: waiting, namespace: shop, labels: {istio.io/use-waypoint: missing}}
spec: {clusterIP: 10.96.0.4, selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ready, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{value: 10.0.0.9}]}
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: shop}
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: shop}
"""


def conditions(text: str, spec: str, problems: tuple[Problem, ...] = ()) -> list[Condition]:
    """Those of one object among the others."""
    whole = f"{AROUND}---{text}spec:\n{textwrap.indent(textwrap.dedent(spec), '  ')}"
    content = read_file("f.yaml", whole.encode())
    assert not content.problems
    objects = object_set(loaded.object for loaded in content.objects)
    translation = Translator(MeshSettings()).translate(objects)
    key = content.objects[-1].key
    judgement = Judgement(objects, translation.services, translation.findings, problems)
    found = conditions_of([key], judgement, MeshSettings())[key]
    assert {condition.type for condition in found} <= set(TYPES[key.kind])
    return list(found)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("rules: [{}]", [("ZtunnelAccepted", "True", "Accepted", "all workloads of this namesp")]),
        (
            "selector: {matchLabels: {app: web}}",
            [("ZtunnelAccepted", "True", "Accepted", "workloads that it selects in")],
        ),
        (
            "selector: {matchLabels: {app: nobody}}",
            [("ZtunnelAccepted", "False", "SelectsNothing", "enforced nowhere")],
        ),
        (
            "action: DENY\nrules: [{to: [{operation: {methods: [GET]}}]}]",
            [("ZtunnelAccepted", "False", "UnsupportedValue", "methods: cannot be checked at L4")],
        ),
        ("action: DENY", [("ZtunnelAccepted", "False", "NoRules", "refuses nothing")]),
        (
            "targetRefs: [{kind: Service, name: bare}]\nrules: [{}]",
            [
                ("ZtunnelAccepted", "True", "Accepted", "without a waypoint"),
                ("WaypointAccepted", "False", "AncestorNotBound", "has no waypoint"),
            ],
        ),
        (
            "targetRefs: [{kind: Service, name: bare}]\n"
            "rules: [{to: [{operation: {methods: [GET]}}]}]",
            [
                ("ZtunnelAccepted", "False", "UnsupportedValue", "allows nobody"),
                ("WaypointAccepted", "False", "AncestorNotBound", "has no waypoint"),
            ],
        ),
        (
            "targetRefs: [{kind: Service, name: gone}]",
            [("WaypointAccepted", "False", "TargetNotFound", "is not there")],
        ),
        (
            "targetRefs: [{kind: Service, name: guarded}]",
            [("WaypointAccepted", "Unknown", "EnforcedAtWaypoint", "not known here")],
        ),
        (
            "targetRefs: [{kind: Service, name: waiting}]",
            [("WaypointAccepted", "False", "WaypointIsNotReady", "missing or not ready")],
        ),
        (
            "targetRefs: [{kind: Service, name: nameless}]\n"
            "rules: [{to: [{operation: {paths: [/a]}}]}]",
            [("WaypointAccepted", "Unknown", "PortWithoutName", "port 80 of shop/nameless")],
        ),
        (
            "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: entry}]",
            [("WaypointAccepted", "Unknown", "EnforcedAtGateway", "belongs to Gateway entry")],
        ),
    ],
)
def test_policies(spec: str, expected: list[tuple[str, str, str, str]]) -> None:
    found = conditions(POLICY, spec)
    heads = [(condition.type, condition.status, condition.reason) for condition in found]
    assert heads == [line[:3] for line in expected]
    for condition, line in zip(found, expected, strict=True):
        assert line[3] in condition.message


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hosts: [a.example]\n", [("Accepted", "True", "Accepted")]),
        (
            "hosts: [bare.shop.svc.cluster.local]\n",
            [("Accepted", "False", "HostTaken")],
        ),
        (
            "hosts: [a.example]\nresolution: STATIC\n"
            "endpoints: [{address: '::1', network: other}]\n",
            [("Accepted", "True", "NoNetworkGateway")],
        ),
    ],
)
def test_service_entries(spec: str, expected: list[tuple[str, str, str]]) -> None:
    found = conditions(ENTRY, spec)
    assert [(one.type, one.status, one.reason) for one in found] == expected


@pytest.mark.parametrize(
    ("waypoint", "status", "reason"),
    [("ready", "True", "WaypointAccepted"), ("missing", "False", "WaypointIsNotReady")],
)
def test_the_waypoint_of_a_service_entry(waypoint: str, status: str, reason: str) -> None:
    labelled = ENTRY.replace("shop}", f"shop, labels: {{istio.io/use-waypoint: {waypoint}}}}}")
    accepted, bound = conditions(labelled, "hosts: [a.example]\n")
    assert (accepted.status, accepted.reason) == ("True", "Accepted")
    assert (bound.type, bound.status, bound.reason) == ("istio.io/WaypointBound", status, reason)


def test_gateways() -> None:
    waypoint = "gatewayClassName: c\nlisteners: [{name: m, port: 15008, protocol: HBONE}]\n"
    [found] = conditions(GATEWAY, waypoint)
    assert (found.status, found.reason) == ("False", "WaypointIsNotReady")
    [found] = conditions(GATEWAY, waypoint + "addresses: [{value: 10.1.1.1}]\n")
    assert found.status == "True"
    other = "gatewayClassName: c\nlisteners: [{name: m, port: 80, protocol: HTTP}]\n"
    assert conditions(GATEWAY, other) == []


def test_an_object_that_cannot_be_read() -> None:
    problem = Problem("", 0, "AuthorizationPolicy shop/p", "spec.rulez", "is not a field")
    [found] = conditions(POLICY, "rules: []\n", (problem,))
    assert found == Condition("ZtunnelAccepted", "False", "Invalid", "spec.rulez: is not a field")


def test_long_messages_are_cut() -> None:
    rules = ", ".join(["{to: [{operation: {methods: [GET]}}]}"] * 60)
    [found] = conditions(POLICY, f"rules: [{rules}]\n")
    assert len(found.message) == 2048
    assert found.message.endswith("…")


def test_what_stands_in_an_object_is_read_as_far_as_it_can_be() -> None:
    ours = {
        "type": "ZtunnelAccepted",
        "status": "True",
        "reason": "R",
        "message": "m",
        "observedGeneration": 3,
        "lastTransitionTime": "t",
    }
    meta = {"uid": "u", "generation": 3, "labels": {"istio.io/rev": "r"}}
    item = {
        "metadata": meta,
        "status": {"conditions": [ours, {"type": "Other"}, "nonsense", None]},
    }
    found = standing(item, "AuthorizationPolicy")
    assert found.conditions == (Condition("ZtunnelAccepted", "True", "R", "m"),)
    assert (found.uid, found.generation, found.revision) == ("u", 3, "r")
    assert found.times == {"ZtunnelAccepted": "t"}
    assert found.observed == {3}
    nonsense: list[dict[str, object]]
    nonsense = [{}, {"metadata": 1, "status": []}, {"status": {"conditions": {}}}]
    for broken in nonsense:
        assert standing(broken, "ServiceEntry").conditions == ()


def test_what_leads_to_other_conditions_is_seen() -> None:
    objects = object_set([])
    before = Judgement(objects, (), (), ())
    assert same_inputs(before, Judgement(objects, before.services, before.findings, ()))
    problem = Problem("", 0, "AuthorizationPolicy a/b", "", "c")
    assert not same_inputs(before, Judgement(objects, (), (), (problem,)))
    assert not same_inputs(before, Judgement(object_set([]), (), (), ()))


def test_every_kind_has_conditions_of_its_own() -> None:
    key = ObjectKey("Gateway", "shop", "gone")
    judgement = Judgement(object_set([]), (), (), ())
    assert conditions_of([key], judgement, MeshSettings()) == {key: ()}
