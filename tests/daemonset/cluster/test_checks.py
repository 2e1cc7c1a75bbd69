"""Each thing that is known to be wrong with clusters is found, and only where it is."""

from __future__ import annotations

import dataclasses
import datetime
import json

import pytest

from daemonset.agent.report import Chain, Feature, NodeReport, Trouble
from daemonset.cluster.check import as_json, as_lines, check_survey, exit_code
from daemonset.cluster.command import as_if
from daemonset.cluster.survey import Access
from daemonset.control_plane.ca.issuer import new_root, to_pem
from daemonset.control_plane.translation.finding import Severity
from tests.support.surveys import NOW, finding, node, our_pod, reasons, survey

FINE = NodeReport(
    "0.1.0",
    (Feature("redirection", True, True), Feature("sockmap", False, False, "no rights")),
    Chain("10-k.conflist", ("ptp", "ambient-cni")),
    1,
    True,
)
SHOP = """
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
"""


def pods(*names: str, namespace: str = "shop", **annotations: str) -> str:
    return "".join(
        f"""
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}},
  annotations: {json.dumps(annotations)}}}
spec: {{nodeName: n1, containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}
status: {{phase: Running, podIP: 10.0.0.{number}}}
---
"""
        for number, name in enumerate(names, 1)
    )


CAPTURED = {"ambient.istio.io/redirection": "enabled"}
HEALTHY = (
    node("n1")
    + our_pod("ambient-agent", "n1", FINE)
    + our_pod("ztunnel", "n1")
    + our_pod("ambient-control-plane", "n1")
    + SHOP
    + pods("web", "db", **CAPTURED)
)


def test_a_healthy_cluster_has_only_notes() -> None:
    found = check_survey(survey(HEALTHY, installed=True))
    assert {one.severity for one in found} == {Severity.INFO}, [str(one) for one in found]
    assert exit_code(found) == 0
    lines = as_lines(survey(HEALTHY, installed=True), found, everything=False)
    assert lines[0] == "Kubernetes v1.36.3, 1 node; the mesh is installed in ambient-system"
    assert lines[1:] == [f"{len(found)} notes (--verbose shows them)"]


def test_before_an_installation_missing_definitions_are_notes() -> None:
    found = check_survey(survey(node("n1")))
    assert {one.reason for one in found} == {"NotInstalled"}
    assert {one.severity for one in found} == {Severity.INFO}
    assert any("there are no waypoints" in one.message for one in found)


@pytest.mark.parametrize(
    ("version", "reason"),
    [({"major": "1", "minor": "29+", "gitVersion": "v1.29.1-gke.1"}, "TooOld"),
     ({}, "UnknownVersion")],
)  # fmt: skip
def test_versions(version: dict[str, str], reason: str) -> None:
    assert reason in reasons(survey(version=version))


def test_what_may_not_be_seen_or_done_is_said() -> None:
    denied = Access("create", "apps", "daemonsets")
    theirs = Access("patch", "", "pods/status", who="system:serviceaccount:a:b")
    found = survey(unseen={"pods": "403 Forbidden"}, access=(denied, theirs))
    assert finding(found, "NotSeen").object.name == "pods"
    assert "may not create daemonsets.apps" in finding(found, "MayNotInstall").message
    assert finding(found, "NotAllowed").severity is Severity.ERROR


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (node("n2"), "NoAgent"),
        (node("n2", architecture="s390x"), "Architecture"),
        (node("n2", operatingSystem="windows"), "NotLinux"),
        (node("n2", kernelVersion="4.18.0-553.el8"), "KernelTooOld"),
        (node("n2", kubeletVersion="v1.36.1+k3s1"), "OtherFolders"),
    ],
)
def test_nodes(change: str, reason: str) -> None:
    assert reason in reasons(survey(HEALTHY + change, installed=True))


@pytest.mark.parametrize(
    ("report", "reason", "words"),
    [
        ({"features": (Feature("redirection", False, True, "EPERM"),)}, "KernelFeature", "EPERM"),
        ({"host_rules": "gone"}, "NodeRules", "gone"),
        ({"chain": None}, "NoPlugin", "before they are captured"),
        ({"chain": Chain("", (), "there is no network configuration")}, "NotChained", "no network"),
        ({"chain": Chain("05-c.conflist", ("cilium-cni",))}, "NotChained", "not among them"),
        (
            {"chain": Chain("f", ("ptp", "istio-cni", "ambient-cni"))},
            "AnotherMesh",
            "plugin istio-cni",
        ),
        ({"ztunnels": 0}, "NotConnected", "not connected"),
        ({"troubles": (Trouble("shop/web", "failed", "no process"),)}, "PodInTrouble", "no proc"),
    ],
)
def test_what_agents_report(report: dict[str, object], reason: str, words: str) -> None:
    wrong = NodeReport(**{**{f: getattr(FINE, f) for f in FINE.__slots__}, **report})
    text = HEALTHY + node("n2") + our_pod("ambient-agent", "n2", wrong) + our_pod("ztunnel", "n2")
    others = check_survey(survey(HEALTHY, installed=True))
    found = [
        one
        for one in check_survey(survey(text, installed=True))
        if one.reason == reason and one not in others
    ]
    assert [words in one.message for one in found] == [True]
    assert "n2" in f"{found[0].object} {found[0].message}"


def test_an_agent_that_does_not_start_is_quoted() -> None:
    ended = {"terminated": {"message": "ambient node-agent: somebody else serves pods"}}
    text = HEALTHY + node("n2") + our_pod("ztunnel", "n2") + our_pod(
        "ambient-agent", "n2", phase="Running", conditions=[],
        containerStatuses=[{"ready": False, "state": {}, "lastState": ended}],
    )  # fmt: skip
    found = finding(survey(text, installed=True), "AgentNotReady")
    assert "somebody else serves pods" in found.message
    assert "NoReport" in reasons(survey(text, installed=True))


ISTIO = """
kind: DaemonSet
metadata: {name: istio-cni-node, namespace: istio-system}
spec: {template: {spec: {volumes: [
  {hostPath: {path: /var/run/ztunnel}}, {hostPath: {path: /etc/cni/net.d}}]}}}
---
kind: Deployment
metadata: {name: istiod, namespace: istio-system}
spec: {template: {metadata: {labels: {app: istiod}}}}
---
kind: MutatingWebhookConfiguration
metadata: {name: istio-sidecar-injector}
---
kind: Namespace
metadata: {name: both, labels: {istio.io/dataplane-mode: ambient, istio-injection: enabled}}
---
"""


def test_other_owners_of_the_mesh() -> None:
    found = survey(HEALTHY + ISTIO, installed=True)
    assert finding(found, "AnotherAgent").object.name == "istio-cni-node"
    assert finding(found, "AnotherControlPlane").severity is Severity.ERROR
    assert finding(found, "SidecarsToo").object.name == "both"
    other = ISTIO.replace("{app: istiod}", '{app: istiod, istio.io/rev: "1-30"}')
    found = survey(HEALTHY + other, installed=True)
    assert finding(found, "AnotherControlPlane").severity is Severity.WARNING
    assert not reasons(survey(HEALTHY, installed=True)) & {"AnotherAgent", "AnotherControlPlane"}


def test_annotations_without_an_agent_are_found() -> None:
    text = node("n1") + SHOP + pods("web", "db", **CAPTURED)
    found = finding(survey(text), "LeftBehind")
    assert "2 pods: shop/db, shop/web" in found.message
    assert "LeftBehind" not in reasons(survey(HEALTHY, installed=True))


def test_roots() -> None:
    def root(namespace: str, days: float, owner: str = "ambientd") -> str:
        made = NOW - datetime.timedelta(days=3650 - days)
        pem = to_pem(new_root("cluster.local", made)[1])
        item = {
            "kind": "ConfigMap",
            "metadata": {
                "name": "istio-ca-root-cert",
                "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": owner},
            },
            "data": {"root-cert.pem": pem},
        }
        return json.dumps(item) + "\n---\n"

    assert "OtherRoots" in reasons(
        survey(HEALTHY + root("a", 3000) + root("b", 3000, "x"), installed=True)
    )
    soon = finding(survey(HEALTHY + root("a", 10), installed=True), "RootExpires")
    assert (soon.severity, "expires on 2026-" in soon.message) == (Severity.WARNING, True)
    over = finding(survey(HEALTHY + root("a", -1), installed=True), "RootExpires")
    assert over.severity is Severity.ERROR
    assert "RootExpires" not in reasons(survey(HEALTHY + root("a", 300), installed=True))


@pytest.mark.parametrize(
    ("namespace", "reason"),
    [
        ("{name: a, labels: {istio.io/dataplane-mode: Ambient}}", "UnknownMode"),
        ("{name: a, labels: {istio.io/dataplane_mode: ambient}}", "UnknownMode"),
        (
            "{name: ambient-system, labels: {pod-security.kubernetes.io/enforce: baseline}}",
            "PodSecurity",
        ),
        ("{name: ambient-system}", "PodSecurity"),
    ],
)
def test_namespaces(namespace: str, reason: str) -> None:
    assert reason in reasons(survey(f"kind: Namespace\nmetadata: {namespace}\n"))


def test_who_is_not_in_the_mesh_is_said() -> None:
    text = HEALTHY + pods("late") + pods("side", **{"sidecar.istio.io/status": "{}"})
    found = survey(text, installed=True)
    assert finding(found, "NotCaptured").object.name == "late"
    many = finding(survey(text + pods("later", "last"), installed=True), "NotCaptured")
    assert (many.object.name, "(like 2 more: late, later)" in many.message) == ("last", True)
    assert "it has a sidecar" in finding(found, "LeftOut").message


def test_a_control_plane_that_does_not_serve() -> None:
    text = node("n1") + our_pod("ambient-agent", "n1", FINE) + our_pod("ztunnel", "n1")
    assert "NoControlPlane" in reasons(survey(text, installed=True))


def test_an_uninstallation_that_was_stopped_is_told_of() -> None:
    one = survey(HEALTHY, installed=True)
    [system] = [item for item in one.all("namespaces")
                if item["metadata"]["name"] == "ambient-system"]  # fmt: skip
    assert "Withdrawn" not in reasons(one)
    system["metadata"]["labels"]["ambientd.io/withdraw"] = "now"
    assert "--cancel" in finding(one, "Withdrawn").advice


def test_agents_and_control_plane_must_be_of_one_revision() -> None:
    one = survey(HEALTHY, installed=True)
    assert "TwoRevisions" not in reasons(one)
    settings = dataclasses.replace(one.installation.settings, revision="canary")
    installation = dataclasses.replace(one.installation, settings=settings)
    assert "TwoRevisions" in reasons(dataclasses.replace(one, installation=installation))


def test_gke_wants_a_quota() -> None:
    gke = {"major": "1", "minor": "36", "gitVersion": "v1.36.3-gke.100"}
    assert "NoQuota" in reasons(survey(version=gke))
    quota = """
kind: ResourceQuota
metadata: {name: q, namespace: ambient-system}
spec: {scopeSelector: {matchExpressions: [{operator: In, scopeName: PriorityClass,
  values: [system-node-critical]}]}}
"""
    assert "NoQuota" not in reasons(survey(quota, version=gke))


ONLY_8080 = """
kind: NetworkPolicy
metadata: {name: only-8080, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: web}]}]}
---
"""


def test_a_network_policy_that_blocks_tunnels() -> None:
    found = finding(survey(HEALTHY + ONLY_8080, installed=True), "TunnelBlocked")
    assert str(found.object) == "NetworkPolicy shop/only-8080"
    assert found.field == "spec.ingress[0].ports"
    assert "shop/db to shop/db on port 8080 (and 1 other" in found.message
    assert "{port: 15008, protocol: TCP}" in found.advice
    # Before anybody is in the mesh nothing is blocked, unless one asks what would be.
    plain = SHOP.replace("ambient", "none") + pods("web", "db") + ONLY_8080
    assert "TunnelBlocked" not in reasons(survey(plain))
    assert "TunnelBlocked" in reasons(as_if(survey(plain), ["shop"]))


def test_a_network_policy_that_keeps_ztunnel_from_the_control_plane() -> None:
    policy = """
kind: NetworkPolicy
metadata: {name: deny-all, namespace: ambient-system}
spec: {podSelector: {}, policyTypes: [Egress]}
---
"""
    found = finding(survey(HEALTHY + policy, installed=True), "ControlPlaneBlocked")
    assert (found.object.name, found.field) == ("deny-all", "spec.egress")
    assert "ControlPlaneBlocked" not in reasons(survey(HEALTHY, installed=True))


GOOD_CILIUM = {"cni-exclusive": "false", "bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"cni-exclusive": "true"}, "CiliumExclusive"),
        ({"bpf-lb-sock-hostns-only": "false"}, "CiliumSocketBalancing"),
        ({"enable-bpf-masquerade": "true"}, "CiliumMasquerade"),
        ({"enable-host-legacy-routing": "false"}, "CiliumHostRouting"),
        ({"enable-policy": "always"}, "CiliumProbes"),
        ({"enable-ztunnel": "true"}, "AnotherMesh"),
    ],
)
def test_cilium(changes: dict[str, str], reason: str) -> None:
    data = json.dumps({**GOOD_CILIUM, **changes})
    text = "kind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\n"
    text += f"data: {data}\n---\n"
    before = reasons(survey(HEALTHY, installed=True))
    assert reasons(survey(HEALTHY + text, installed=True)) - before == ({reason} - {""})
    if reason == "CiliumProbes":
        text += """
kind: CiliumClusterwideNetworkPolicy
metadata: {name: probes}
spec: {endpointSelector: {}, ingress: [{fromCIDR: [169.254.7.127/32]}]}
"""
        assert reason not in reasons(survey(HEALTHY + text, installed=True))


@pytest.mark.parametrize(
    ("spec", "image", "found"),
    [
        ("{}", "calico/node:v3.28.1", set()),
        ("{bpfEnabled: true}", "calico/node:v3.28.1", {"CalicoEbpf", "CalicoSocketBalancing"}),
        ("{bpfEnabled: true}", "quay.io/calico/node:v3.30.0", {"CalicoSocketBalancing"}),
        ("{bpfEnabled: true, bpfConnectTimeLoadBalancing: Disabled}", "x/node:v3.29.0", set()),
    ],
)
def test_calico(spec: str, image: str, found: set[str]) -> None:
    text = f"""
kind: FelixConfiguration
metadata: {{name: default}}
spec: {spec}
---
kind: DaemonSet
metadata: {{name: calico-node, namespace: calico-system}}
spec: {{template: {{spec: {{containers: [{{name: c, image: "{image}"}}]}}}}}}
"""
    before = reasons(survey(HEALTHY, installed=True))
    assert reasons(survey(HEALTHY + text, installed=True)) - before == found


@pytest.mark.parametrize(("mode", "bad"), [("strict", True), ("standard", False)])
def test_aws_security_groups(mode: str, bad: bool) -> None:
    text = f"""
kind: DaemonSet
metadata: {{name: aws-node, namespace: kube-system}}
spec: {{template: {{spec: {{containers: [{{name: c, image: i, env: [
  {{name: ENABLE_POD_ENI, value: "true"}},
  {{name: POD_SECURITY_GROUP_ENFORCING_MODE, value: {mode}}}]}}]}}}}}}
"""
    assert ("AwsSecurityGroups" in reasons(survey(text))) is bad


def test_the_answer_for_programs() -> None:
    one = survey(HEALTHY + ONLY_8080, installed=True)
    found = check_survey(one)
    data = json.loads(as_json(one, found))
    assert data["installed"] is True
    first = data["findings"][0]
    assert first.keys() == {
        "severity", "kind", "namespace", "name", "field", "reason", "message", "advice"
    }  # fmt: skip
    assert (first["severity"], first["reason"]) == ("error", "TunnelBlocked")
    assert exit_code(found) == 1
