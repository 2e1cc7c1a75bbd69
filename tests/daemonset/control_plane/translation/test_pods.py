"""Pods -> workloads."""

from __future__ import annotations

import textwrap

import pytest
from google.protobuf import text_format

from tests.support.control_plane import AMBIENT_SHOP, translate


def text_of(message: object) -> str:
    return text_format.MessageToString(message, as_utf8=True)  # type: ignore[arg-type]


def test_a_pod_with_everything() -> None:
    result = translate(
        AMBIENT_SHOP
        + """
        apiVersion: v1
        kind: Node
        metadata:
          name: node-a
          labels:
            topology.kubernetes.io/region: north
            topology.kubernetes.io/zone: north-1
            topology.istio.io/subzone: rack-7
        ---
        apiVersion: v1
        kind: Namespace
        metadata: {name: istio-system, labels: {topology.istio.io/network: net-1}}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: web, namespace: shop}
        spec:
          clusterIP: 10.96.0.1
          selector: {app: web}
          ports:
          - {name: http, port: 80, targetPort: web}
          - {name: admin, port: 81, targetPort: 8081}
          - {name: ghost, port: 82, targetPort: not-there}
        ---
        apiVersion: v1
        kind: Pod
        metadata:
          name: web-5d8c-x
          generateName: web-5d8c-
          namespace: shop
          labels: {app: web, version: v2, pod-template-hash: 5d8c}
          ownerReferences:
          - {apiVersion: apps/v1, kind: ReplicaSet, name: web-5d8c, controller: true}
        spec:
          nodeName: node-a
          serviceAccountName: web
          containers:
          - name: c
            ports:
            - {name: web, containerPort: 8080}
            - {name: not-there, containerPort: 9, protocol: UDP}
        status:
          phase: Running
          podIP: 10.0.0.1
          podIPs: [{ip: 10.0.0.1}, {ip: "FD00:0::1"}]
          conditions: [{type: Ready, status: "True"}]
        """.replace("\n        ", "\n")
    )
    expected = textwrap.dedent(
        r"""
        name: "web-5d8c-x"
        namespace: "shop"
        addresses: "\n\000\000\001"
        addresses: "\375\000\000\000\000\000\000\000\000\000\000\000\000\000\000\001"
        network: "net-1"
        tunnel_protocol: HBONE
        service_account: "web"
        node: "node-a"
        canonical_name: "web"
        canonical_revision: "v2"
        workload_type: POD
        workload_name: "web"
        cluster_id: "Kubernetes"
        uid: "Kubernetes//Pod/shop/web-5d8c-x"
        services {
          key: "shop/web.shop.svc.cluster.local"
          value {
            ports {
              service_port: 80
              target_port: 8080
            }
            ports {
              service_port: 81
              target_port: 8081
            }
          }
        }
        locality {
          region: "north"
          zone: "north-1"
          subzone: "rack-7"
        }
        """
    ).lstrip()
    assert text_of(result.workload("web-5d8c-x")) == expected
    assert result.raw.addresses["Kubernetes//Pod/shop/web-5d8c-x"].aliases == (
        "net-1/10.0.0.1",
        "net-1/fd00::1",
    )


POD = """
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: shop, labels: {labels}, annotations: {annotations}}}
spec: {spec}
status: {status}
"""


def pod(
    labels: str = "{}", annotations: str = "{}", spec: str = "{}", status: str = "{podIP: 10.0.0.1}"
) -> str:
    return AMBIENT_SHOP + POD.format(
        labels=labels, annotations=annotations, spec=spec, status=status
    )


@pytest.mark.parametrize(
    "status",
    [
        "{podIP: 10.0.0.1, phase: Succeeded}",
        "{podIP: 10.0.0.1, phase: Failed}",
        "{phase: Running}",
        "{}",
    ],
)
def test_finished_pods_and_pods_without_address_are_left_out(status: str) -> None:
    assert not translate(pod(status=status)).raw.addresses


def test_pending_pods_with_an_address_are_there() -> None:
    assert translate(pod(status="{podIP: 10.0.0.1, phase: Pending}")).workload("web")


@pytest.mark.parametrize(
    ("status", "meta", "healthy"),
    [
        ("{podIP: 10.0.0.1}", "", True),
        ('{podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}', "", True),
        ('{podIP: 10.0.0.1, conditions: [{type: Ready, status: "False"}]}', "", False),
        ('{podIP: 10.0.0.1, conditions: [{type: Ready, status: "Unknown"}]}', "", False),
        ("{podIP: 10.0.0.1}", ", deletionTimestamp: x", False),
        ("{podIP: 10.0.0.1, phase: Pending}", "", False),
    ],
)
def test_health_is_the_ready_condition_without_deletion(
    status: str, meta: str, healthy: bool
) -> None:
    text = pod(status=status).replace("name: web,", f"name: web{meta},")
    assert translate(text).workload("web").status == (0 if healthy else 1)


def test_host_network_pods_are_published_but_not_found_by_address() -> None:
    result = translate(pod(spec="{hostNetwork: true}"))
    assert result.workload("web").network_mode == 1
    assert result.workload("web").tunnel_protocol == 0
    assert result.raw.addresses["Kubernetes//Pod/shop/web"].aliases == ()


@pytest.mark.parametrize(
    ("labels", "annotations", "hbone", "native"),
    [
        ("{}", "{}", True, False),
        ("{istio.io/dataplane-mode: none}", "{}", False, False),
        ("{istio.io/dataplane-mode: anything}", "{}", True, False),
        ("{}", "{sidecar.istio.io/status: injected}", False, False),
        (
            "{istio.io/dataplane-mode: none}",
            "{ambient.istio.io/redirection: enabled}",
            True,
            False,
        ),
        (
            "{istio.io/dataplane-mode: none}",
            "{ambient.istio.io/redirection: pending}",
            False,
            False,
        ),
        (
            "{istio.io/dataplane-mode: none, networking.istio.io/tunnel: http}",
            "{}",
            True,
            True,
        ),
    ],
)
def test_who_is_reached_through_hbone(
    labels: str, annotations: str, hbone: bool, native: bool
) -> None:
    workload = translate(pod(labels=labels, annotations=annotations)).workload("web")
    assert (workload.tunnel_protocol == 1, workload.native_tunnel) == (hbone, native)


def test_where_agents_report_labels_alone_do_not_make_hbone() -> None:
    waiting = translate(pod(), captured=set())
    assert waiting.workload("web").tunnel_protocol == 0
    assert waiting.reasons == ["NotCaptured"]
    captured = translate(pod(), captured={("shop", "web")})
    assert captured.workload("web").tunnel_protocol == 1
    assert captured.reasons == []


def test_excluded_namespaces_are_never_in_the_mesh() -> None:
    text = pod().replace("shop", "kube-system")
    assert translate(text).workload("web").tunnel_protocol == 0


def test_the_trust_domain_is_left_out_only_where_it_is_the_default() -> None:
    assert translate(pod()).workload("web").trust_domain == ""
    other = translate(pod(), trust_domain="corp.example")
    assert other.workload("web").trust_domain == "corp.example"


@pytest.mark.parametrize(
    ("labels", "owner", "generated", "name"),
    [
        ("{service.istio.io/workload-name: given}", "", True, "given"),
        ("{pod-template-hash: abc}", "ReplicaSet shop-abc", True, "shop"),
        ("{}", "ReplicaSet shop-abc", True, "shop-abc"),
        ("{rollouts-pod-template-hash: abc}", "ReplicaSet shop-abc", True, "shop"),
        ("{}", "Job backup-28391234", True, "backup"),
        ("{}", "Job backup-7", True, "backup-7"),
        ("{}", "StatefulSet db", True, "db"),
        ("{deploymentconfig: shop}", "ReplicationController shop-3", True, "shop"),
        ("{}", "StatefulSet db", False, "web"),
        ("{}", "", True, "web"),
    ],
)
def test_workload_names(labels: str, owner: str, generated: bool, name: str) -> None:
    text = pod(labels=labels)
    if owner:
        kind, owner_name = owner.split()
        reference = f"[{{apiVersion: x/v1, kind: {kind}, name: {owner_name}, controller: true}}]"
        text = text.replace("name: web,", f"name: web, ownerReferences: {reference},")
    if generated:
        text = text.replace("name: web,", "name: web, generateName: web-,")
    assert translate(text).workload("web").workload_name == name


@pytest.mark.parametrize(
    ("labels", "name", "revision"),
    [
        ("{}", "web", "latest"),
        ("{app: a, version: v1}", "a", "v1"),
        ("{app: a, app.kubernetes.io/name: b, app.kubernetes.io/version: v2}", "b", "v2"),
        (
            "{app: a, app.kubernetes.io/name: b, service.istio.io/canonical-name: c, "
            "service.istio.io/canonical-revision: v3}",
            "c",
            "v3",
        ),
    ],
)
def test_canonical_names(labels: str, name: str, revision: str) -> None:
    workload = translate(pod(labels=labels)).workload("web")
    assert (workload.canonical_name, workload.canonical_revision) == (name, revision)


def test_named_ports_of_native_sidecars_count_and_of_init_containers_do_not() -> None:
    service = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: side, name: a}, {port: 81, targetPort: once, name: b}]
---
"""
    spec = (
        "{initContainers: [{name: s, restartPolicy: Always, ports: "
        "[{name: side, containerPort: 9000}]}, "
        "{name: i, ports: [{name: once, containerPort: 9001}]}]}"
    )
    result = translate(service + pod(labels="{app: web}", spec=spec).lstrip())
    ports = result.workload("web").services["shop/web.shop.svc.cluster.local"].ports
    assert [(port.service_port, port.target_port) for port in ports] == [(80, 9000)]


def test_two_pods_of_one_address_are_an_error() -> None:
    text = (
        pod()
        + "---"
        + POD.format(labels="{}", annotations="{}", spec="{}", status="{podIP: 10.0.0.1}").replace(
            "name: web", "name: other"
        )
    )
    (finding,) = translate(text).findings
    # The older one has it, and of two that do not say the first by name.
    assert (str(finding.object), finding.reason) == ("Pod shop/web", "AddressTaken")
    finished = text.replace("{podIP: 10.0.0.1}", "{podIP: 10.0.0.1, phase: Succeeded}", 1)
    assert translate(finished).reasons == []


def test_a_pod_on_a_node_that_is_not_there_is_a_finding() -> None:
    text = """
    {apiVersion: v1, kind: Node, metadata: {name: one}}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: a}
    spec: {nodeName: NODE}
    status: {podIP: 10.0.0.1}
    """
    assert translate(text.replace("NODE", "one")).reasons == []
    assert translate(text.replace("NODE", "two")).reasons == ["UnknownNode"]
