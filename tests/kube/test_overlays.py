"""All that users may apply: built by kubectl itself, taken by the API servers of two versions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset.agent.command import read_config
from daemonset.cli import parser
from daemonset.cluster.names import PART_OF, US
from daemonset.cluster.removal import KINDS_OF_OURS, NAMESPACES, WORKLOADS
from tests.support.admission_cases import CASES
from tests.support.cache import Unavailable
from tests.support.kube.admission import ask, put_in_force
from tests.support.kube.binaries import KUBERNETES, OLDER, OLDER_API, find
from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.manifests import MANIFESTS, kustomize, read_base
from ztunnel.config.load import load_with
from ztunnel.mesh.workload import HBONE_PORT

FOLDERS = sorted(path.parent for path in MANIFESTS.rglob("kustomization.yaml"))
OVERLAYS = [str(path.relative_to(MANIFESTS)) for path in FOLDERS]
POLICY = "ValidatingAdmissionPolicy"
OURS = "ambientd:0.1.0"
ISTIOD = "https://istiod.istio-system.svc:15012"
CONTROL_PLANE = "https://ambient-control-plane.ambient-system.svc:15012"
VERSIONS = {KUBERNETES: "kube-apiserver", OLDER: OLDER_API}


@functools.cache
def _built(overlay: str) -> tuple[Json, ...]:
    return tuple(kustomize(MANIFESTS / overlay))


@pytest.fixture(scope="module", autouse=True)
def kubectl() -> None:
    try:
        find("kubectl")
    except Unavailable as error:
        pytest.skip(f"no Kubernetes: {error}")


@pytest.fixture(scope="module", params=list(VERSIONS))
def api(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """An API server of each version, with all that is to be there before."""
    version: str = request.param
    try:
        find(VERSIONS[version])
    except Unavailable as error:
        pytest.skip(f"no Kubernetes: {error}")
    with Cluster(tmp_path_factory.mktemp("api"), VERSIONS[version]) as cluster:
        assert cluster.call("GET", "/version")["gitVersion"] == version
        cluster.namespace("istio-system")
        cluster.apply(only(_built("base"), "Namespace", "ambient-system"))
        cluster.namespace("strict", **{"pod-security.kubernetes.io/enforce": "restricted"})
        yield cluster


def pods(items: tuple[Json, ...]) -> Iterator[tuple[str, Json]]:
    """Name and pod template of whatever makes pods."""
    for item in items:
        if item["kind"] in ("Deployment", "DaemonSet"):
            yield item["metadata"]["name"], item["spec"]["template"]


def only(items: tuple[Json, ...], kind: str, name: str) -> Json:
    [found] = [item for item in items if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def container(items: tuple[Json, ...], kind: str, name: str) -> Json:
    [found] = only(items, kind, name)["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(items: tuple[Json, ...], name: str) -> dict[str, str]:
    """The variables of a DaemonSet's container, as its pod would have them."""
    namespace = only(items, "DaemonSet", name)["metadata"]["namespace"]
    fields = {
        "spec.nodeName": "node-a",
        "metadata.namespace": namespace,
        "status.podIP": "10.0.0.1",
    }
    result = {}
    for variable in container(items, "DaemonSet", name)["env"]:
        if "value" in variable:
            result[variable["name"]] = variable["value"]
        else:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            result[variable["name"]] = fields.get(path, "any")
    return result


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_version_takes_all_of_it(api: Cluster, overlay: str) -> None:
    items = _built(overlay)
    assert items
    for item in items:
        # No misspelt field, nothing deprecated into silence.
        api.call(
            "PATCH",
            f"{api.path(item)}?fieldManager=test&force=true&dryRun=All&fieldValidation=Strict",
            item,
            content_type="application/apply-patch+yaml",
        )


def test_definitions_and_policies_do_what_they_are_for(api: Cluster) -> None:
    """Without effect they are looked at less closely than when they come into force."""
    put_in_force(api)
    for case in CASES:
        answer = ask(api, case.object)
        assert answer.verdict is case.verdict, (case.name, answer.words)


def test_pods_are_admitted_where_they_are_to_run(api: Cluster) -> None:
    items = _built("base")
    for name, template in pods(items):
        spec = {**template["spec"]}
        meta = {"name": name, "labels": template["metadata"]["labels"]}
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        api.call("POST", "/api/v1/namespaces/ambient-system/pods?dryRun=All", item)
        if name == "ambient-control-plane":
            # It has no need of anything: the strictest namespace would do.
            api.call("POST", "/api/v1/namespaces/strict/pods?dryRun=All", item)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_overlay_has_definitions_beside_their_objects(overlay: str) -> None:
    items = _built(overlay)
    groups = {item["spec"]["group"] for item in items if item["kind"] == "CustomResourceDefinition"}
    assert not [item for item in items if item["apiVersion"].partition("/")[0] in groups]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_say_what_they_need_and_no_more(overlay: str) -> None:
    for name, template in pods(_built(overlay)):
        spec = template["spec"]
        assert spec["priorityClassName"].startswith("system-"), name
        assert not spec.get("hostNetwork"), name
        assert not spec.get("hostPID"), name
        assert template["metadata"]["labels"]["istio.io/dataplane-mode"] == "none"
        around = spec.get("securityContext", {})
        for each in spec["containers"]:
            security = {**around, **each["securityContext"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            # A named profile keeps a pod off nodes without AppArmor; none is the runtime's default
            # where there is AppArmor, and nothing where there is not.
            assert security.get("appArmorProfile", {"type": "Unconfined"}) == {"type": "Unconfined"}
            assert security["capabilities"]["drop"] == ["ALL"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert not security.get("privileged")
            assert each["resources"]["requests"].keys() == {"cpu", "memory"}
            assert each["imagePullPolicy"] == "IfNotPresent"
            istios = overlay == "with-istio-ztunnel" and name == "ztunnel"
            assert (each["image"] == OURS) is not istios


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_accounts_and_their_rights_are_in_one_place(overlay: str) -> None:
    items = _built(overlay)
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"])
        for item in items
        if item["kind"] == "ServiceAccount"
    }
    for item in items:
        for subject in item.get("subjects", ()):
            assert (subject["namespace"], subject["name"]) in accounts
        if item["kind"] in ("Deployment", "DaemonSet"):
            account = item["spec"]["template"]["spec"]["serviceAccountName"]
            assert (item["metadata"]["namespace"], account) in accounts
        if (item["kind"], item["metadata"]["name"]) == (POLICY, "ambient-agent-own-node"):
            [condition] = item["spec"]["matchConditions"]
            [namespace] = {place for place, account in accounts if account == "ambient-agent"}
            assert f'"system:serviceaccount:{namespace}:ambient-agent"' in condition["expression"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_policies_let_in_what_a_component_serves_and_no_more(overlay: str) -> None:
    items = _built(overlay)
    policies = {item["metadata"]["name"]: item for item in items if item["kind"] == "NetworkPolicy"}
    for name, template in pods(items):
        policy = policies[name]
        selected = policy["spec"]["podSelector"]["matchLabels"]
        assert selected.items() <= template["metadata"]["labels"].items()
        [rule] = policy["spec"]["ingress"]
        [found] = template["spec"]["containers"]
        served = {port["name"] for port in found["ports"]}
        # Metrics are to be had through a tunnel as well (ztunnel's own listener).
        tunnels = {HBONE_PORT} if name == "ztunnel" else set()
        assert {port["port"] for port in rule["ports"]} == served | tunnels
        assert policy["spec"]["policyTypes"] == ["Ingress"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_understand_what_they_are_told(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = _built(overlay)
    names = {name for name, _ in pods(items)}
    if "ambient-agent" in names:
        for variable, value in environment(items, "ambient-agent").items():
            monkeypatch.setenv(variable, value)
        words = container(items, "DaemonSet", "ambient-agent")["args"]
        config = read_config(parser(words[1]).parse_args(words[1:]))
        namespace = only(items, "DaemonSet", "ambient-agent")["metadata"]["namespace"]
        if "ztunnel" in names:
            # Where the agent runs as well: there it knows ztunnel's pods, and captures none.
            assert only(items, "DaemonSet", "ztunnel")["metadata"]["namespace"] == namespace
        assert config.agent_ns == config.pods.system_namespace == namespace
        assert config.node == "node-a"
        assert config.agent.istio_mark is (overlay == "with-istio-ztunnel")
        assert (config.cni is None) is (overlay == "platforms/openshift")
    if "ztunnel" in names and overlay != "with-istio-ztunnel":
        reader, ztunnel = load_with(environment(items, "ztunnel"), None, 4)
        # Only the file with the mark is not here.
        assert [text for text in reader.problems if "PACKET_MARK" not in text] == []
        istios = overlay.startswith("below-istio")
        assert ztunnel.xds.address == ztunnel.ca.address == (ISTIOD if istios else CONTROL_PLANE)


@pytest.mark.parametrize("overlay", ["below-istiod", "below-istio-cni"])
def test_below_istio_ztunnel_is_what_istio_takes_it_for(overlay: str) -> None:
    items = _built(overlay)
    daemon_set = only(items, "DaemonSet", "ztunnel")
    template = daemon_set["spec"]["template"]
    assert daemon_set["metadata"]["namespace"] == "istio-system"
    assert template["metadata"]["labels"]["app"] == "ztunnel"
    assert template["spec"]["serviceAccountName"] == "ztunnel"
    [token] = [volume for volume in template["spec"]["volumes"] if volume["name"] == "token"]
    [source] = token["projected"]["sources"]
    assert source["serviceAccountToken"] == {
        "path": "istio-token",
        "audience": "istio-ca",
        "expirationSeconds": 43200,
    }
    assert {item["metadata"].get("namespace") for item in items} <= {None, "istio-system"}
    assert not [item for item in items if item["kind"] in ("Namespace", "Deployment")]
    # With istio-cni the mark is Istio's; with our own agent it is nobody's guess.
    assert ("PACKET_MARK" in environment(items, "ztunnel")) is (overlay == "below-istiod")


def test_with_istios_ztunnel_only_the_node_proxy_is_another() -> None:
    ours, theirs = _built("base"), _built("with-istio-ztunnel")
    others = ("ztunnel", "ambient-agent")
    assert [item for item in ours if item["metadata"]["name"] not in others] == [
        item for item in theirs if item["metadata"]["name"] not in others
    ]
    found = container(theirs, "DaemonSet", "ztunnel")
    assert found["args"] == ["proxy", "ztunnel"]
    assert "PACKET_MARK" not in environment(theirs, "ztunnel")


@pytest.mark.parametrize(
    ("platform", "binaries", "configuration"),
    [
        ("k3s", "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d"),
        (
            "microk8s",
            "/var/snap/microk8s/current/opt/cni/bin",
            "/var/snap/microk8s/current/args/cni-network",
        ),
        ("gke", "/home/kubernetes/bin", "/etc/cni/net.d"),
    ],
)
def test_platforms_keep_their_plugins_elsewhere(
    platform: str, binaries: str, configuration: str
) -> None:
    items = _built(f"platforms/{platform}")
    spec = only(items, "DaemonSet", "ambient-agent")["spec"]["template"]["spec"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    assert (paths["cni-bin"], paths["cni-conf"]) == (binaries, configuration)
    [found] = spec["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in found["volumeMounts"]}
    assert (mounted["cni-bin"], mounted["cni-conf"]) == ("/host/opt/cni/bin", "/host/etc/cni/net.d")


def test_the_quota_has_room_for_what_is_critical() -> None:
    items = _built("platforms/gke")
    quota = only(items, "ResourceQuota", "ambient-critical-pods")
    [match] = quota["spec"]["scopeSelector"]["matchExpressions"]
    assert {spec["spec"]["priorityClassName"] for _, spec in pods(items)} == set(match["values"])
    assert quota["metadata"]["namespace"] == "ambient-system"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_uninstallation_finds_all_of_it(overlay: str) -> None:
    """It goes by kinds and by a label; definitions and the root namespace stay."""
    known = {resource.plural for resource in (*KINDS_OF_OURS, NAMESPACES)}
    known |= {plural for plural, _ in WORKLOADS}
    for item in _built(overlay):
        kind, meta = item["kind"], item["metadata"]
        if kind == "CustomResourceDefinition" or meta["name"] == "istio-system":
            continue
        plural = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
        assert plural in known, kind
        assert meta["labels"][PART_OF] == US, meta["name"]


def test_untried_platforms_are_said_to_be() -> None:
    for folder in (MANIFESTS / "platforms").iterdir():
        assert "ntried" in (folder / "kustomization.yaml").read_text().partition("apiVersion")[0]


def test_the_data_plane_is_replaced_without_a_gap() -> None:
    items = _built("base")
    ztunnel = only(items, "DaemonSet", "ztunnel")["spec"]
    assert ztunnel["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    spec = ztunnel["template"]["spec"]
    grace = environment(items, "ztunnel")["TERMINATION_GRACE_PERIOD_SECONDS"]
    assert spec["terminationGracePeriodSeconds"] == int(grace)
    # The supervisor restarts what dies; a probe that fails must not cut a node's connections.
    assert "livenessProbe" not in spec["containers"][0]
    # That pods cannot start, or that nothing can be installed, is not the agent's fault.
    agent = container(items, "DaemonSet", "ambient-agent")
    assert agent["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert agent["livenessProbe"]["httpGet"]["path"] == "/healthz"
    control_plane = only(items, "Deployment", "ambient-control-plane")["spec"]
    assert control_plane["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_folders_of_the_tests_are_those_of_kubectl() -> None:
    """``read_base`` stands for kubectl in tests that can do without it."""

    def key(item: Json) -> tuple[str, str, str]:
        meta = item["metadata"]
        return item["kind"], meta.get("namespace", ""), meta["name"]

    for overlay in ("base", "lasting", "kind", "high-availability", "validation"):
        ours = sorted(read_base(MANIFESTS / overlay), key=key)
        assert ours == sorted(_built(overlay), key=key), overlay


def test_every_folder_is_known_to_be_meant_for_users() -> None:
    assert {Path(overlay).parts[0] for overlay in OVERLAYS} == {
        "base",
        "below-istio-cni",
        "below-istiod",
        "control-plane",
        "crds",
        "high-availability",
        "kind",
        "lasting",
        "node-agent",
        "platforms",
        "validation",
        "with-istio-ztunnel",
        "ztunnel",
    }
