"""What `ambient status` says of a cluster."""

from __future__ import annotations

import datetime
import json

from daemonset.agent.report import Chain, NodeReport, Trouble
from daemonset.cluster.status import as_data, as_tables, overview
from daemonset.control_plane.ca.issuer import new_root, to_pem
from tests.support.surveys import NOW, node, our_pod, survey

REPORT = NodeReport(
    "0.1.0",
    (),
    Chain("10-k.conflist", ("ptp", "ambient-cni")),
    1,
    True,
    troubles=(Trouble("shop/lost", "failed", "no process of it"),),
)


def pod(name: str, namespace: str, annotations: str = "{}", more: str = "") -> str:
    return f"""
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}
spec: {{nodeName: n1{more}}}
status: {{phase: Running}}
---
"""


def root(namespace: str) -> str:
    pem = to_pem(new_root("cluster.local", NOW - datetime.timedelta(days=3600))[1])
    labels = {"app.kubernetes.io/managed-by": "ambientd"}
    meta = {"name": "istio-ca-root-cert", "namespace": namespace, "labels": labels}
    data = {"root-cert.pem": pem}
    return json.dumps({"kind": "ConfigMap", "metadata": meta, "data": data}) + "\n---\n"


CLUSTER = (
    node("n1")
    + node("n2")
    + our_pod("ambient-agent", "n1", REPORT)
    + our_pod("ztunnel", "n1")
    + our_pod("ambient-control-plane", "n1")
    + our_pod("ztunnel", "n2", conditions=[])
    + """
kind: Lease
metadata: {name: ambient-control-plane, namespace: ambient-system}
spec: {holderIdentity: ambient-control-plane-n1}
---
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
"""
    + pod("web", "shop", "{ambient.istio.io/redirection: enabled}")
    + pod("slow", "shop", "{ambient.istio.io/redirection: pending}")
    + pod("late", "shop")
    + pod("lost", "shop")
    + pod("host", "shop", more=", hostNetwork: true")
    + pod("other", "elsewhere")
    + root("shop")
)


def test_everything_in_one_look() -> None:
    found = overview(survey(CLUSTER, installed=True))
    first, second = found.nodes
    assert (first.agent, first.ztunnel, first.cni, first.pods) == (
        "ready", "ready", "10-k.conflist", 1
    )  # fmt: skip
    assert (first.agent_version, second.agent, second.ztunnel) == ("0.1.0", "none", "not ready")
    [replica] = found.control_plane
    assert (replica.state, replica.leads) == ("ready", True)
    [certificate] = found.roots
    assert (certificate.days > 0, certificate.namespaces) == (True, 1)
    states = {one.name: (one.state, one.reason) for one in found.pods if one.namespace == "shop"}
    assert states["web"] == ("in", "")
    assert states["slow"][0] == "pending"
    assert states["late"][0] == "not captured"
    assert states["lost"] == ("failed", "no process of it")
    assert states["host"][0] == "out"
    assert "hostNetwork" in states["host"][1]
    assert (found.elsewhere, "elsewhere" in {one.namespace for one in found.pods}) == (1 + 4, False)
    assert json.loads(json.dumps(as_data(found)))["nodes"][0]["name"] == "n1"
    assert all(len(row) == len(header) for header, rows in as_tables(found) for row in rows)


def test_pods_can_be_chosen() -> None:
    one = survey(CLUSTER, installed=True)
    assert {line.namespace for line in overview(one, "elsewhere").pods} == {"elsewhere"}
    assert overview(one, everybody=True).elsewhere == 0


def test_a_cluster_without_us() -> None:
    found = overview(survey(node("n1"), unseen={"leases": "403"}))
    assert [(one.agent, one.ztunnel, one.cni) for one in found.nodes] == [("none", "none", "-")]
    assert found.unseen == ("leases: 403",)


def test_what_a_ztunnel_lacks_is_said() -> None:
    for ztunnels, words in ((0, "not connected to the agent"), (1, "is being told its pods")):
        report = NodeReport("1", ztunnels=ztunnels)
        text = node("n1") + our_pod("ambient-agent", "n1", report) + our_pod("ztunnel", "n1")
        [found] = overview(survey(text, installed=True)).nodes
        assert (found.ztunnel, found.cni) == (words, "no plugin")
