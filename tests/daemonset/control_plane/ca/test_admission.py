"""Who may ask for which identity."""

from __future__ import annotations

import pytest

from daemonset.control_plane.ca.admission import Admission, RefusedError
from daemonset.control_plane.ca.authenticator import Caller
from tests.support.control_plane import directory_of

PODS = """
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop},
 spec: {nodeName: node-a, serviceAccountName: web}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop},
 spec: {nodeName: node-b, serviceAccountName: db}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: starting, namespace: shop},
 spec: {nodeName: node-a, serviceAccountName: starting}}
---
{apiVersion: v1, kind: Pod, metadata: {name: job, namespace: shop},
 spec: {nodeName: node-a, serviceAccountName: job}, status: {podIP: 10.0.0.3, phase: Succeeded}}
---
{apiVersion: v1, kind: Pod, metadata: {name: crash, namespace: shop},
 spec: {nodeName: node-a, serviceAccountName: crash}, status: {podIP: 10.0.0.4, phase: Failed}}
---
{apiVersion: v1, kind: Pod, metadata: {name: plain, namespace: shop, labels: {mesh: "no"}},
 spec: {nodeName: node-a, serviceAccountName: plain}, status: {podIP: 10.0.0.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: nowhere, namespace: shop},
 spec: {serviceAccountName: nowhere}}
---
{apiVersion: v1, kind: Pod, metadata: {name: zt-a, namespace: istio-system, uid: u-1},
 spec: {nodeName: node-a, serviceAccountName: ztunnel}, status: {podIP: 10.0.0.6}}
---
{apiVersion: v1, kind: Pod, metadata: {name: gone, namespace: istio-system, uid: u-2},
 spec: {nodeName: node-a, serviceAccountName: ztunnel}, status: {podIP: 10.0.0.7, phase: Failed}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: istio-system, uid: u-3},
 spec: {nodeName: node-a, serviceAccountName: other}, status: {podIP: 10.0.0.8}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: istio-system, uid: u-4},
 spec: {serviceAccountName: ztunnel}}
"""
DIRECTORY = directory_of(PODS, lambda pod: pod.meta.labels.get("mesh") != "no")
ADMISSION = Admission("cluster.local", frozenset({"istio-system/ztunnel"}))
IN_POD = Caller("istio-system", "ztunnel", pod="zt-a", pod_uid="u-1", node="node-a")
ON_NODE = Caller("istio-system", "ztunnel", node="node-a")


def uri(account: str, trust_domain: str = "cluster.local", namespace: str = "shop") -> str:
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}"


@pytest.mark.parametrize("caller", [IN_POD, ON_NODE])
@pytest.mark.parametrize("account", ["web", "starting"])
def test_a_node_proxy_may_speak_for_what_lives_on_its_node(caller: Caller, account: str) -> None:
    assert ADMISSION.identity(caller, uri(account), DIRECTORY).uri == uri(account)


def test_everybody_may_have_their_own() -> None:
    caller = Caller("shop", "web")
    assert ADMISSION.identity(caller, "", DIRECTORY).uri == uri("web")


@pytest.mark.parametrize("caller", [IN_POD, ON_NODE])
def test_a_node_proxy_may_have_its_own_by_name(caller: Caller) -> None:
    """Though its pod need not be in the mesh."""
    own = uri("ztunnel", namespace="istio-system")
    outside = directory_of(PODS, lambda pod: False)
    assert ADMISSION.identity(caller, own, outside).uri == own


@pytest.mark.parametrize(
    ("caller", "identity", "reason"),
    [
        (ON_NODE, uri("db"), "live on other nodes, none on node-a"),
        (ON_NODE, uri("nowhere"), "live on other nodes, none on node-a"),
        (ON_NODE, uri("ghost"), "no pod of shop/ghost lives on node-a"),
        (ON_NODE, uri("web", namespace="other"), "no pod of other/web lives on node-a"),
        (ON_NODE, uri("job"), "no pod of shop/job lives on node-a"),
        (ON_NODE, uri("crash"), "no pod of shop/crash lives on node-a"),
        (ON_NODE, uri("plain"), "are not in the mesh"),
        (ON_NODE, uri("web", "evil.example"), "trust domain 'evil.example' is not the mesh's"),
        (ON_NODE, "spiffe://cluster.local/ns/shop", "not a SPIFFE identity"),
        (ON_NODE, "spiffe://cluster.local/ns/shop/sa/web/x", "not a SPIFFE identity"),
        (ON_NODE, "https://cluster.local/ns/shop/sa/web", "not a SPIFFE identity"),
        (ON_NODE, "spiffe://cluster.local/ns/shop/sa/", "not a SPIFFE identity"),
        (Caller("shop", "web", node="node-a"), uri("db"), "is not a node proxy"),
        (Caller("shop", "ztunnel", node="node-a"), uri("web"), "is not a node proxy"),
        (Caller("istio-system", "ztunnel"), uri("web"), "bound neither to a pod nor to a node"),
        (
            Caller("istio-system", "ztunnel", pod="zt-a", pod_uid="u-9"),
            uri("web"),
            "is another one by now",
        ),
        (
            Caller("istio-system", "ztunnel", pod="zt-a"),
            uri("web"),
            "is another one by now",
        ),
        (
            Caller("istio-system", "ztunnel", pod="zt-z", pod_uid="u-1"),
            uri("web"),
            "pod istio-system/zt-z is not there",
        ),
        (
            Caller("istio-system", "ztunnel", pod="gone", pod_uid="u-2"),
            uri("web"),
            "pod istio-system/gone is not there",
        ),
        (
            Caller("istio-system", "ztunnel", pod="other", pod_uid="u-3"),
            uri("web"),
            "runs as other",
        ),
        (
            Caller("istio-system", "ztunnel", pod="new", pod_uid="u-4"),
            uri("web"),
            "is on no node yet",
        ),
        (
            Caller("istio-system", "ztunnel", pod="zt-a", pod_uid="u-1", node="node-b"),
            uri("db"),
            "is not on node-b",
        ),
        # A pod that is gone has no identity of its own any more.
        (
            Caller("istio-system", "ztunnel", pod="gone", pod_uid="u-2"),
            "",
            "pod istio-system/gone is not there",
        ),
    ],
)
def test_who_is_refused_and_why(caller: Caller, identity: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        ADMISSION.identity(caller, identity, DIRECTORY)


def test_nobody_speaks_for_others_where_no_node_proxy_is_named() -> None:
    with pytest.raises(RefusedError, match="is not a node proxy"):
        Admission("cluster.local", frozenset()).identity(ON_NODE, uri("web"), DIRECTORY)
