"""Which pods may be joined: labels of pod and namespace, and NetworkPolicies, which win."""

from __future__ import annotations

import pytest

from tests.support.control_plane import Translated, translate
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.from_proto import JOIN, workload_from_proto


def mesh(*, namespace: str = "", pod: str = "", policy: str = "") -> Translated:
    on_namespace = f", {JOIN}: {namespace}" if namespace else ""
    on_pod = f", {JOIN}: {pod}" if pod else ""
    text = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient{on_namespace}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: shop, labels: {{app: web{on_pod}}}}}
spec: {{containers: []}}
status: {{podIP: 10.0.0.1, phase: Running}}
"""
    if policy:
        text += f"""---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: guard, namespace: {policy.partition(" ")[0]}}}
spec: {{podSelector: {policy.partition(" ")[2]}, ingress: [{{}}]}}
"""
    return translate(text)


def joined(result: Translated) -> bool | None:
    return workload_from_proto(result.workload("web")).join


@pytest.mark.parametrize(
    ("namespace", "pod", "expected"),
    [
        ("", "", None),
        ("enabled", "", True),
        ("disabled", "", False),
        ("enabled", "disabled", False),
        ("disabled", "enabled", True),
        ("", "enabled", True),
    ],
)
def test_a_pods_label_counts_for_more_than_its_namespaces(
    namespace: str, pod: str, expected: bool | None
) -> None:
    assert joined(mesh(namespace=namespace, pod=pod)) is expected


def test_without_a_word_nothing_is_sent_that_others_would_not_know() -> None:
    assert not mesh().workload("web").extensions


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("shop {}", False),
        ("shop {matchLabels: {app: web}}", False),
        ("shop {matchExpressions: [{key: app, operator: Exists}]}", False),
        ("shop {matchLabels: {app: other}}", True),
        ("elsewhere {}", True),
    ],
)
def test_a_pod_that_a_network_policy_selects_is_not_joined(policy: str, expected: bool) -> None:
    assert joined(mesh(namespace="enabled", pod="enabled", policy=policy)) is expected


@pytest.mark.parametrize("where", ["namespace", "pod"])
def test_a_word_that_nobody_knows_is_told_and_means_no(where: str) -> None:
    result = mesh(**{where: "maybe"})
    assert joined(result) is False
    assert "UnknownJoin" in result.reasons


def test_an_extension_that_cannot_be_read_is_an_error() -> None:
    message = mesh(pod="enabled").workload("web")
    message.extensions[0].config.type_url = "type.googleapis.com/google.protobuf.StringValue"
    with pytest.raises(ResourceError, match="BoolValue"):
        workload_from_proto(message)
    message.extensions[0].name = "somebody.else/does"
    assert workload_from_proto(message).join is None
