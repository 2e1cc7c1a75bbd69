"""The manifests: accepted by the API server, enough for what runs, and no more than that."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import trio

from daemonset.cli import parser
from daemonset.control_plane import farewell
from daemonset.control_plane.kubernetes_command import SERVICE, serving_config
from daemonset.control_plane.translation.settings import MeshSettings
from tests.support.kube.cluster import ApiFailure, Cluster, Json
from tests.support.kube.manifests import MANIFESTS, install, read_base
from tests.support.kube.objects import account, node, pod, policy, run
from tests.support.kube.plane import PATIENCE, control_plane

ACCOUNT = "ambient-control-plane"
SYSTEM = "ambient-system"
BASE = read_base(MANIFESTS / "base")
LASTING = read_base(MANIFESTS / "lasting")
HIGH_AVAILABILITY = [
    item for item in read_base(MANIFESTS / "high-availability") if item not in BASE
]
in_thread = trio.to_thread.run_sync


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Cluster:
    """As the first lines of the kustomizations tell a user, in that order."""
    for item in LASTING:
        if item["kind"] != "CustomResourceDefinition":
            cluster.apply(item)
    install(cluster, [item for item in LASTING if item["kind"] == "CustomResourceDefinition"])
    # The rest is validated as a whole before anything of it is there; a namespace must be.
    [namespace] = [item for item in BASE if item["kind"] == "Namespace"]
    cluster.apply(namespace)
    for item in BASE:
        cluster.apply(item, dry_run=True)
    for item in BASE:
        cluster.apply(item)
    return cluster


@pytest.mark.parametrize(
    "item",
    [*LASTING, *BASE, *HIGH_AVAILABILITY],
    ids=lambda item: f"{item['kind']}-{item['metadata']['name']}",
)
def test_the_api_server_takes_all_of_its_fields(installed: Cluster, item: Json) -> None:
    path = installed.path(item)
    query = "fieldManager=test&force=true&dryRun=All&fieldValidation=Strict"
    kept = installed.call(
        "PATCH", f"{path}?{query}", item, content_type="application/apply-patch+yaml"
    )
    assert kept["metadata"]["name"] == item["metadata"]["name"]


def test_high_availability_is_the_base_with_more_replicas_and_a_budget() -> None:
    assert {item["kind"] for item in HIGH_AVAILABILITY} == {"Deployment", "PodDisruptionBudget"}
    [deployment] = [item for item in HIGH_AVAILABILITY if item["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 2
    [base] = [item for item in BASE if item["kind"] == "Deployment"]
    assert {**deployment["spec"], "replicas": 1} == base["spec"]


def test_no_base_has_definitions_beside_their_objects() -> None:
    assert "CustomResourceDefinition" not in {item["kind"] for item in BASE}
    groups = {item["spec"]["group"] for item in LASTING if "group" in item.get("spec", {})}
    assert groups == {"security.istio.io", "networking.istio.io"}
    assert not [item for item in LASTING if item["apiVersion"].split("/")[0] in groups]


def test_unknown_fields_of_policies_are_kept(installed: Cluster) -> None:
    item = policy("default", "kept", {"action": "DENY", "rules": [{"from": [{"sauce": {"x": 1}}]}]})
    item["spec"]["newField"] = {"deep": ["value"]}
    item["elsewhere"] = "misplaced"
    # Nobody of this mesh minds what another control plane's policies look like.
    item["metadata"]["labels"] = {"istio.io/rev": "another"}
    installed.apply(item)
    found = installed.call("GET", installed.path(item))
    assert found["spec"] == item["spec"]
    assert found["elsewhere"] == "misplaced"
    older = "/apis/security.istio.io/v1beta1/namespaces/default/authorizationpolicies/kept"
    assert installed.call("GET", older)["spec"] == item["spec"]
    installed.delete(item)


@pytest.mark.parametrize(
    "spec", [{"action": "PERMIT"}, {"rules": [{}] * 513}, {"targetRefs": [{}] * 17}]
)
def test_what_can_be_no_policy_is_refused_at_once(installed: Cluster, spec: Json) -> None:
    with pytest.raises(ApiFailure) as failure:
        installed.apply(policy("default", "refused", spec))
    assert failure.value.status == 422


def test_definitions_of_another_owner_are_not_written_over(installed: Cluster) -> None:
    [ours] = [item for item in LASTING if item["metadata"]["name"].startswith("workloadentries")]
    theirs = json.loads(json.dumps(ours))
    theirs["metadata"]["labels"] = {"app.kubernetes.io/part-of": "istio"}
    theirs["spec"]["names"]["shortNames"] = ["we", "other"]
    path, kind = installed.path(ours), "application/apply-patch+yaml"
    installed.call("PATCH", f"{path}?fieldManager=istio&force=true", theirs, content_type=kind)
    with pytest.raises(ApiFailure) as failure:
        installed.call("PATCH", f"{path}?fieldManager=kubectl", ours, content_type=kind)
    assert failure.value.status == 409
    assert installed.call("GET", path)["spec"]["names"]["shortNames"] == ["we", "other"]


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        data: bytes = answer.read()
        return data


async def test_its_rights_are_enough(installed: Cluster) -> None:
    """The control plane with no other rights than its service account's."""

    def before() -> Path:
        installed.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
        node(installed, "node-a")
        run(installed, pod("shop", "web"), "10.0.0.1")
        account(installed, "shop", "default")
        return installed.account_folder(SYSTEM, ACCOUNT)

    folder = await in_thread(before)
    async with control_plane(installed, account=folder) as running:
        assert all(not item.trouble for item in running.backend.source.reflectors.values())
        assert ("shop", "web") in running.plane.objects.pods
        assert "authorizationpolicies" not in "".join(running.backend.source.off)
        path = "/api/v1/namespaces/shop/configmaps/istio-ca-root-cert"
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    found = await in_thread(installed.call, "GET", path)
                    break
                except ApiFailure:
                    await trio.sleep(0.05)
        assert found["data"]["root-cert.pem"] == running.plane.roots_pem
        assert running.backend.election.is_leader
        url = f"http://127.0.0.1:{running.ports.status}/debug/findings"
        off = json.loads(await in_thread(read, url))["off"]
        assert [text.partition(".")[0] for text in off] == ["gateways", "gatewayclasses"]
        # Tokens can be reviewed, which no other test of rights would show.
        token = await in_thread(installed.token, "shop", "default")
        with pytest.raises(Exception, match="not a good token"):
            await in_thread(running.backend.verifier.verify, token, 0.0)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/namespaces/istio-system/secrets"),
        ("GET", "/api/v1/namespaces/istio-system/secrets/other"),
        ("GET", "/api/v1/namespaces/kube-system/secrets/cacerts"),
        ("DELETE", "/api/v1/namespaces/istio-system/secrets/istio-ca-secret"),
        ("PATCH", "/api/v1/namespaces/istio-system/secrets/istio-ca-secret"),
        ("POST", "/api/v1/namespaces/kube-system/secrets"),
        ("GET", "/api/v1/configmaps"),
        ("PATCH", "/api/v1/namespaces/kube-system/configmaps/coredns"),
        ("DELETE", "/api/v1/namespaces/shop/configmaps/istio-ca-root-cert"),
        ("POST", "/api/v1/namespaces/shop/pods"),
        ("PATCH", "/api/v1/nodes/node-a"),
        ("GET", "/api/v1/nodes/node-a/proxy/metrics"),
        ("POST", "/api/v1/namespaces/shop/serviceaccounts/default/token"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/ambient-control-plane"),
        ("DELETE", "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/any"),
    ],
)
def test_its_rights_are_no_more_than_enough(installed: Cluster, method: str, path: str) -> None:
    token = installed.token(SYSTEM, ACCOUNT)
    with pytest.raises(ApiFailure) as failure:
        installed.call(
            method,
            path,
            {} if method in ("POST", "PUT", "PATCH") else None,
            token=token,
            content_type="application/merge-patch+json"
            if method == "PATCH"
            else "application/json",
        )
    assert failure.value.status == 403


def test_the_deployment_runs_the_command_as_the_command_is() -> None:
    [deployment] = [item for item in BASE if item["kind"] == "Deployment"]
    [service] = [item for item in BASE if item["kind"] == "Service"]
    container: Json = deployment["spec"]["template"]["spec"]["containers"][0]
    command: list[str] = container["command"] + container["args"]
    program, words = command[0], command[1:]
    assert program == "ambient"
    arguments = parser(words[0]).parse_args(words)
    config = serving_config(arguments, MeshSettings(), SYSTEM)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        "xds-and-ca": config.tls_port,
        "monitoring": config.status_port,
        "farewell": farewell.PORT,
    }
    assert config.xds_port is None  # plaintext is off
    assert service["metadata"]["name"] == SERVICE
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports.keys()
    assert f"{SERVICE}.{SYSTEM}.svc" in config.server_names
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"]
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"]
