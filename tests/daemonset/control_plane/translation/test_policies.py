"""Which workload carries which policy, and policies with targetRefs."""

from __future__ import annotations

from tests.support.control_plane import AMBIENT_SHOP, translate
from ztunnel.proto.authorization_pb2 import Scope

MESH = (
    AMBIENT_SHOP
    + """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: api, containerPort: 8443}]}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: other, labels: {app: web, istio.io/dataplane-mode: ambient}}
status: {podIP: 10.0.0.3}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {LABELS}}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, name: a}, {port: 443, targetPort: api, name: b}]
---
"""
)
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: NAMESPACE}
spec:
"""
PLAIN = MESH.replace("{LABELS}", "{}")


def policy(spec: str, namespace: str = "shop") -> str:
    return POLICY.replace("NAMESPACE", namespace) + spec


def attached(text: str, **settings: bool) -> dict[str, list[str]]:
    result = translate(text, **settings)  # type: ignore[arg-type]
    return {
        name: list(result.workload(name).authorization_policies)
        for name in ("shop/web", "shop/db", "other/web")
    }


def test_a_selector_reaches_its_own_namespace_only() -> None:
    """Regression seed 3."""
    text = PLAIN + policy("  {selector: {matchLabels: {app: web}}, rules: [{}]}")
    assert attached(text) == {"shop/web": ["shop/p"], "shop/db": [], "other/web": []}


def test_a_selector_of_the_root_namespace_reaches_all() -> None:
    text = PLAIN + policy("  {selector: {matchLabels: {app: web}}, rules: [{}]}", "istio-system")
    assert attached(text) == {
        "shop/web": ["istio-system/p"],
        "shop/db": [],
        "other/web": ["istio-system/p"],
    }


def test_policies_without_selector_are_not_listed() -> None:
    for namespace in ("shop", "istio-system"):
        assert not any(attached(PLAIN + policy("  rules: [{}]", namespace)).values())


def test_a_selector_that_selects_nothing_is_a_finding() -> None:
    result = translate(PLAIN + policy("  {selector: {matchLabels: {app: x}}, rules: [{}]}"))
    assert result.reasons == ["SelectsNothing"]


def test_a_policy_on_a_pod_outside_the_mesh_is_enforced_nowhere_and_says_so() -> None:
    text = PLAIN.replace("app: db}", "app: db, istio.io/dataplane-mode: none}")
    result = translate(text + policy("  {selector: {matchLabels: {app: db}}, rules: [{}]}"))
    assert [(str(f.object), f.reason) for f in result.findings] == [("Pod shop/db", "NotInMesh")]
    assert "shop/p" in result.findings[0].message


TARGET = """  targetRefs: [{group: "", kind: Service, name: web}]
  action: ACTION
  rules: [{to: [{operation: {ports: ["PORT"]}}]}]
"""


def target(action: str = "DENY", port: str = "80") -> str:
    return policy(TARGET.replace("ACTION", action).replace("PORT", port))


def test_a_policy_for_a_waypoint_is_enforced_at_the_workloads_while_there_is_none() -> None:
    result = translate(PLAIN + target())
    assert attached(PLAIN + target())["shop/web"] == ["shop/p"]
    assert attached(PLAIN + target())["shop/db"] == []
    converted = result.policy("shop/p")
    assert converted.scope == Scope.WORKLOAD_SELECTOR
    # The service's port 80 is the workload's 8080.
    assert list(converted.groups[0].rules[0].matches[0].destination_ports) == [8080]
    assert result.reasons == ["EnforcedAtWorkloads"]


def test_named_ports_of_a_target_are_looked_up() -> None:
    converted = translate(PLAIN + target(port="443")).policy("shop/p")
    assert list(converted.groups[0].rules[0].matches[0].destination_ports) == [8443]


def test_a_port_that_the_target_does_not_have_fails_closed() -> None:
    deny = translate(PLAIN + target(port="99"))
    assert [list(group.rules) for group in deny.policy("shop/p").groups] == [[]]
    allow = translate(PLAIN + target(action="ALLOW", port="99"))
    assert not allow.policy("shop/p").groups
    assert "UnsupportedValue" in deny.reasons
    assert "UnsupportedValue" in allow.reasons


def test_a_policy_for_a_waypoint_that_is_there_is_left_to_it() -> None:
    gateway = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: m, port: 15008, protocol: HBONE}]}
status: {addresses: [{value: 10.0.9.9}]}
"""
    text = MESH.replace("{LABELS}", "{istio.io/use-waypoint: wp}") + target() + gateway
    result = translate(text)
    assert "shop/p" not in result.raw.authorizations
    assert result.reasons == []


def test_like_istio_a_policy_without_its_waypoint_is_enforced_nowhere() -> None:
    result = translate(PLAIN + target(), like_istio=True)
    assert "shop/p" not in result.raw.authorizations
    assert result.reasons == ["AncestorNotBound"]


def test_targets_that_are_not_there_are_errors() -> None:
    result = translate(PLAIN + target().replace("name: web}", "name: wbe}"))
    assert result.reasons == ["TargetNotFound"]
    assert result.findings[0].field == "spec.targetRefs[0]"
    odd = translate(PLAIN + target().replace("kind: Service", "kind: Pod"))
    assert odd.reasons == ["TargetNotFound"]


def test_policies_of_gateways_are_findings() -> None:
    text = target().replace(
        'group: "", kind: Service', "group: gateway.networking.k8s.io, kind: Gateway"
    )
    result = translate(PLAIN + text)
    assert result.reasons == ["EnforcedAtGateway"]
    assert "shop/p" not in result.raw.authorizations
