"""A translator that follows changes says what a new one says of the same objects.

A translation from nothing is the specification; what is compared is everything that comes out.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemonset.control_plane.objects.objectset import ObjectSet, object_set
from daemonset.control_plane.objects.registry import AnyObject
from daemonset.control_plane.sources.file_reader import read_file
from daemonset.control_plane.translation.service_addresses import SERVICE_IPS
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.state import TranslationState
from daemonset.control_plane.translation.translate import Translation, Translator
from tests.support.control_plane import AMBIENT_SHOP, read_objects

SETTINGS = MeshSettings(service_ips=SERVICE_IPS)
SECURITY = "apiVersion: security.istio.io/v1"
NETWORKING = "apiVersion: networking.istio.io/v1"
GATEWAY_API = "apiVersion: gateway.networking.k8s.io/v1"


def meta(name: str, namespace: str = "", labels: str = "", extra: str = "") -> str:
    where = f", namespace: {namespace}" if namespace else ""
    return f"metadata: {{name: {name}{where}, labels: {{{labels}}}{extra}}}"


def namespace(name: str, labels: str = "", extra: str = "") -> str:
    return f"{{apiVersion: v1, kind: Namespace, {meta(name, '', labels, extra)}}}"


def node(name: str, zone: str) -> str:
    labels = f"topology.kubernetes.io/zone: {zone}"
    return f"{{apiVersion: v1, kind: Node, {meta(name, '', labels)}}}"


def pod(name: str, space: str, labels: str, where: str, status: str, ports: str = "") -> str:
    containers = f"containers: [{{ports: [{ports}]}}]"
    return (
        f"{{apiVersion: v1, kind: Pod, {meta(name, space, labels)}, "
        f"spec: {{{where}, serviceAccountName: {name}, {containers}}}, status: {{{status}}}}}"
    )


def service(name: str, space: str, spec: str, labels: str = "", extra: str = "") -> str:
    return (
        f"{{apiVersion: v1, kind: Service, {meta(name, space, labels, extra)}, spec: {{{spec}}}}}"
    )


def endpoint_slice(name: str, of: str, endpoints: str, port: int) -> str:
    labels = f"kubernetes.io/service-name: {of}"
    return (
        f"{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, {meta(name, 'shop', labels)}, "
        f"addressType: IPv4, endpoints: [{endpoints}], ports: [{{name: http, port: {port}}}]}}"
    )


def policy(name: str, space: str, spec: str, labels: str = "") -> str:
    return (
        f"{{{SECURITY}, kind: AuthorizationPolicy, {meta(name, space, labels)}, spec: {{{spec}}}}}"
    )


def peer(name: str, space: str, spec: str, extra: str = "") -> str:
    where = meta(name, space, "", extra)
    return f"{{{SECURITY}, kind: PeerAuthentication, {where}, spec: {{{spec}}}}}"


def entry(name: str, space: str, spec: str, labels: str = "", extra: str = "") -> str:
    where = meta(name, space, labels, extra)
    return f"{{{NETWORKING}, kind: ServiceEntry, {where}, spec: {{{spec}}}}}"


def guard(space: str, selector: str) -> str:
    return (
        f"{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, {meta('guard', space)}, "
        f"spec: {{podSelector: {selector}}}}}"
    )


def workload(name: str, spec: str) -> str:
    return f"{{{NETWORKING}, kind: WorkloadEntry, {meta(name, 'shop')}, spec: {{{spec}}}}}"


def gateway(name: str, spec: str, address: str, labels: str = "") -> str:
    status = f"status: {{addresses: [{{value: {address}}}]}}" if address else "status: {}"
    where = meta(name, "shop", labels)
    return f"{{{GATEWAY_API}, kind: Gateway, {where}, spec: {{{spec}}}, {status}}}"


HTTP = "ports: [{name: http, port: 80, targetPort: http}]"
LISTENERS = "listeners: [{name: mesh, port: 15008, protocol: HBONE}]"
WAYPOINT = f"gatewayClassName: istio-waypoint, {LISTENERS}"
TO_WEB = "targetRefs: [{kind: Service, group: '', name: web}]"
PORT_RULE = "action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]"
OLD = ", creationTimestamp: '2020-01-01T00:00:00Z'"
NAMED = "{name: http, containerPort: 8080}"
OTHERS = "{name: http, containerPort: 9090}"
USE = "istio.io/use-waypoint: waypoint"
TARGET = "targetRef: {kind: Pod, name: web}"

SLOTS: dict[str, tuple[str, ...]] = {
    "namespace shop": (
        namespace("shop", "istio.io/dataplane-mode: ambient"),
        namespace("shop", f"istio.io/dataplane-mode: ambient, {USE}"),
        namespace("shop", "", ", annotations: {networking.istio.io/traffic-distribution: Any}"),
        namespace("shop", "istio.io/ingress-use-waypoint: 'true'"),
        namespace("shop", "istio.io/dataplane-mode: ambient, ambientd.io/join: enabled"),
        namespace("shop", "ambientd.io/join: perhaps"),
    ),
    "network policy": (
        guard("shop", "{}"),
        guard("shop", "{matchLabels: {app: web}}"),
        guard("street", "{}"),
    ),
    "namespace street": (namespace("street"), namespace("street", "istio.io/dataplane-mode: none")),
    "namespace root": (
        namespace("istio-system"),
        namespace("istio-system", "topology.istio.io/network: west"),
    ),
    "node a": (node("a", "one"), node("a", "two")),
    "node b": (node("b", "one"),),
    "pod web": (
        pod("web", "shop", "app: web", "nodeName: a", "podIP: 10.0.0.1", NAMED),
        pod("web", "shop", "app: web, env: x", "nodeName: b", "podIP: 10.0.0.2", OTHERS),
        pod("web", "shop", "app: web", "nodeName: a", "", NAMED),
        pod("web", "shop", "app: web", "nodeName: a", "podIP: 10.0.0.1, phase: Succeeded"),
        pod("web", "shop", "app: db", "hostNetwork: true, nodeName: a", "podIP: 10.0.0.9"),
    ),
    "pod db": (
        pod("db", "shop", "app: db", "nodeName: b", "podIP: 10.0.0.2"),
        pod("db", "shop", "networking.istio.io/tunnel: http", "nodeName: b", "podIP: 10.0.0.3"),
        pod("db", "shop", "istio.io/dataplane-mode: none, app: db", "hostNetwork: false", ""),
    ),
    "pod busker": (
        pod("busker", "street", "app: web", "nodeName: a", "podIP: 10.0.0.4"),
        pod("busker", "street", f"app: web, {USE}", "nodeName: c", "podIP: 10.0.0.1"),
    ),
    "pod waypoint": (
        pod(
            "wp",
            "shop",
            "gateway.networking.k8s.io/gateway-name: waypoint",
            "nodeName: a",
            "podIP: 10.0.0.8",
        ),
    ),
    "service web": (
        service("web", "shop", f"clusterIP: 10.96.0.1, selector: {{app: web}}, {HTTP}"),
        service("web", "shop", f"clusterIP: 10.96.0.1, selector: {{app: web}}, {HTTP}", USE),
        service("web", "shop", f"clusterIP: 10.96.0.2, selector: {{app: db}}, {HTTP}"),
        service("web", "shop", f"clusterIP: 10.96.0.1, {HTTP}"),
        service("web", "shop", "type: ExternalName, externalName: example.com"),
    ),
    "service db": (
        service("db", "shop", "selector: {app: db}, ports: [{port: 80, targetPort: 81}]"),
        service("db", "shop", "clusterIP: 10.0.0.1, ports: [{name: http, port: 82}]"),
        service("db", "shop", f"selector: {{env: x}}, {HTTP}", "", OLD),
    ),
    "slice one": (
        endpoint_slice("one", "web", f"{{addresses: [10.0.0.1], {TARGET}}}", 8081),
        endpoint_slice("one", "web", "{addresses: [192.0.2.1]}, {addresses: [192.0.2.2]}", 8081),
        endpoint_slice("one", "db", f"{{addresses: [10.0.0.1], {TARGET}}}", 8082),
    ),
    "slice two": (
        endpoint_slice("two", "web", f"{{addresses: [10.0.0.2], {TARGET}}}", 8083),
        endpoint_slice("two", "db", "{addresses: [192.0.2.1]}", 8083),
    ),
    "policy selecting": (
        policy("p", "shop", "selector: {matchLabels: {app: web}}"),
        policy("p", "shop", "selector: {matchLabels: {app: db}}, action: DENY, rules: [{}]"),
        policy("p", "shop", "selector: {matchLabels: {app: web}}, action: AUDIT"),
        policy("p", "shop", ""),
        policy("p", "shop", "selector: {matchLabels: {app: web}}", "istio.io/rev: other"),
    ),
    "policy of all": (
        policy("q", "istio-system", "selector: {matchLabels: {app: web}}"),
        policy("q", "istio-system", "rules: [{from: [{source: {namespaces: [x]}}]}]"),
    ),
    "policy aimed": (
        policy("r", "shop", f"{TO_WEB}, {PORT_RULE}"),
        policy("r", "shop", f"{TO_WEB.replace('web', 'db')}, {PORT_RULE}"),
        policy(
            "r", "shop", "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]"
        ),
        policy("r", "shop", f"selector: {{matchLabels: {{app: db}}}}, {PORT_RULE}"),
    ),
    "peer mesh": (
        peer("default", "istio-system", "mtls: {mode: STRICT}"),
        peer("default", "istio-system", "mtls: {mode: PERMISSIVE}"),
    ),
    "peer shop": (
        peer("default", "shop", "mtls: {mode: STRICT}"),
        peer("default", "shop", "mtls: {mode: UNSET}"),
    ),
    "peer web": (
        peer(
            "web",
            "shop",
            "selector: {matchLabels: {app: web}}, portLevelMtls: {'80': {mode: STRICT}}",
        ),
        peer(
            "web",
            "shop",
            "selector: {matchLabels: {app: web}}, portLevelMtls: {'80': {mode: DISABLE}}",
        ),
    ),
    "peer other": (
        peer("other", "shop", "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}", OLD),
        peer("other", "shop", "selector: {matchLabels: {app: db}}, mtls: {mode: PERMISSIVE}"),
    ),
    "entry one": (
        entry("one", "shop", "hosts: [a.example], resolution: DNS, ports: [{number: 80, name: x}]"),
        entry(
            "one", "shop", "hosts: [a.example, b.example], workloadSelector: {labels: {app: vm}}"
        ),
        entry("one", "shop", "hosts: [web.shop.svc.cluster.local], resolution: STATIC"),
        entry("one", "shop", "hosts: ['*.example'], resolution: DYNAMIC_DNS", USE),
    ),
    "entry two": (
        entry(
            "two",
            "shop",
            "hosts: [b.example], resolution: STATIC, endpoints: "
            "[{address: 198.51.100.1, labels: {app: web}}, {address: 198.51.100.2, network: east}]",
        ),
        entry("two", "shop", "hosts: [a.example], resolution: DNS", "", OLD),
        entry("two", "shop", "hosts: [a.example], resolution: NONE", "istio.io/rev: other"),
    ),
    "entry three": (entry("three", "street", "hosts: [a.example], resolution: DNS"),),
    "workload vm": (
        workload("vm", "address: 198.51.100.9, labels: {app: vm}, serviceAccount: vm"),
        workload("vm", "address: vm.example, labels: {app: web}, network: east, ports: {http: 8}"),
        workload("vm", "address: 198.51.100.9, labels: {networking.istio.io/tunnel: http}"),
    ),
    "gateway waypoint": (
        gateway("waypoint", WAYPOINT, "10.96.1.1"),
        gateway("waypoint", WAYPOINT, ""),
        gateway("waypoint", WAYPOINT, "10.96.1.1", "istio.io/waypoint-for: all"),
    ),
    "gateway east": (
        gateway(
            "east",
            f"gatewayClassName: istio-remote, {LISTENERS}",
            "203.0.113.1",
            "topology.istio.io/network: east",
        ),
    ),
    "class": (
        f"{{{GATEWAY_API}, kind: GatewayClass, {meta('istio-waypoint')}}}",
        f"{{{GATEWAY_API}, kind: GatewayClass, "
        f"{meta('istio-waypoint', '', 'istio.io/waypoint-for: workload')}}}",
    ),
}


@cache
def read(text: str) -> AnyObject:
    """The same object for the same text: as sources have it."""
    content = read_file("mesh.yaml", text.encode())
    assert not content.problems, (text, [str(problem) for problem in content.problems])
    [loaded] = content.objects
    return loaded.object


def objects_of(mesh: dict[str, str]) -> ObjectSet:
    return object_set(read(text) for text in mesh.values())


STEP = st.sampled_from(sorted(SLOTS)).flatmap(
    lambda slot: st.tuples(st.just(slot), st.sampled_from([*SLOTS[slot], None]))
)
SIDES = st.none() | st.sets(
    st.sampled_from([("shop", "web"), ("shop", "db"), ("street", "busker")])
)


@settings(max_examples=120, deadline=None)
@given(
    absent=st.sets(st.sampled_from(sorted(SLOTS))),
    steps=st.lists(st.tuples(st.lists(STEP, min_size=1, max_size=3), SIDES), max_size=8),
    like_istio=st.booleans(),
)
def test_what_follows_changes_says_what_a_new_one_says(
    absent: set[str],
    steps: list[tuple[list[tuple[str, str | None]], set[tuple[str, str]] | None]],
    like_istio: bool,
) -> None:
    mesh = {slot: variants[0] for slot, variants in SLOTS.items() if slot not in absent}
    how = MeshSettings(service_ips=SERVICE_IPS, like_istio=like_istio)
    following = Translator(how)
    following.translate(objects_of(mesh))
    for changes, captured in steps:
        for slot, text in changes:
            if text is None:
                mesh.pop(slot, None)
            else:
                mesh[slot] = text
        now = objects_of(mesh)
        expected = Translator(how).translate(now, captured)
        found = following.translate(now, captured)
        assert found.addresses == expected.addresses
        assert found.authorizations == expected.authorizations
        assert found.findings == expected.findings
        assert found.residents == expected.residents
        assert sorted(found.services, key=str) == sorted(expected.services, key=str)


@pytest.mark.parametrize("slot", sorted(SLOTS))
def test_each_change_alone(slot: str) -> None:
    """From every version of an object to every other, and away and back."""
    mesh = {name: variants[0] for name, variants in SLOTS.items()}
    following = Translator(SETTINGS)
    versions = [*SLOTS[slot], None]
    for text in [version for one in versions for other in versions for version in (one, other)]:
        now = objects_of({**mesh, slot: text} if text is not None else _without(mesh, slot))
        assert following.translate(now) == Translator(SETTINGS).translate(now)


def _without(mesh: dict[str, str], slot: str) -> dict[str, str]:
    return {name: text for name, text in mesh.items() if name != slot}


def large(pods: int, changed: dict[int, str]) -> ObjectSet:
    """Ten pods to a service, each with a policy; all in one namespace."""
    documents = [
        f"{{apiVersion: v1, kind: Pod, {meta(f'p{number}', 'shop', f'app: a{number // 10}')}, "
        f"spec: {{nodeName: n{number % 7}}}, status: {{podIP: 10.1.{number >> 8}.{number & 255}, "
        f"{changed.get(number, '')}}}}}"
        for number in range(pods)
    ]
    for number in range(pods // 10):
        documents.append(
            service(
                f"s{number}",
                "shop",
                f"clusterIP: 10.2.0.{number}, selector: {{app: a{number}}}, ports: [{{port: 80}}]",
            )
        )
        documents.append(
            policy(f"p{number}", "shop", f"selector: {{matchLabels: {{app: a{number}}}}}")
        )
    return read_objects(AMBIENT_SHOP + "\n---\n".join(documents))


def test_a_changed_pod_touches_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = TranslationState._write_workload

    def noted(self: TranslationState, key: object) -> None:
        written.append(str(key))
        write(self, key)  # type: ignore[arg-type]

    monkeypatch.setattr(TranslationState, "_write_workload", noted)
    translator = Translator(MeshSettings())
    before = translator.translate(large(200, {}))
    assert len(written) == 200
    written.clear()
    after = translator.translate(large(200, {7: "conditions: [{type: Ready, status: 'False'}]"}))
    assert written == ["Pod shop/p7"]
    assert _differing(before, after) == ["Kubernetes//Pod/shop/p7"]
    assert after.authorizations is before.authorizations
    assert after.findings is before.findings
    assert after.residents is before.residents


def _differing(before: Translation, after: Translation) -> list[str]:
    return [
        name
        for name in before.addresses.keys() | after.addresses.keys()
        if before.addresses.get(name) is not after.addresses.get(name)
    ]


def test_after_a_mistake_it_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator(MeshSettings())
    translator.translate(large(10, {}))

    def fail(*_: object) -> None:
        raise ValueError("a mistake of ours")

    with monkeypatch.context() as patch:
        patch.setattr(TranslationState, "_write_workload", fail)
        with pytest.raises(ValueError, match="a mistake of ours"):
            translator.translate(large(20, {}))
    now = large(20, {})
    assert translator.translate(now) == Translator(MeshSettings()).translate(now)
