"""Which waypoint stands before what."""

from __future__ import annotations

import pytest

from tests.support.control_plane import Translated, translate
from ztunnel.proto.workload_pb2 import GatewayAddress

NAME = "shop/web.shop.svc.cluster.local"
MESH = """
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {namespace}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, labels: {service}, annotations: {annotations}}}
spec: {{clusterIP: 10.96.0.1}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: shop, labels: {pod}}}
status: {{podIP: 10.0.0.1}}
---
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - {{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {allowed}}}}}
status: {{addresses: {addresses}}}
---
"""


def gateway(
    name: str = "wp",
    namespace: str = "shop",
    labels: str = "{}",
    allowed: str = "{from: Same}",
    addresses: str = "[{type: Hostname, value: wp.shop.svc.cluster.local}]",
) -> str:
    return GATEWAY.format(
        name=name, namespace=namespace, labels=labels, allowed=allowed, addresses=addresses
    )


def mesh(
    *gateways: str,
    namespace: str = "{}",
    service: str = "{}",
    pod: str = "{}",
    annotations: str = "{}",
    like_istio: bool = False,
) -> Translated:
    text = MESH.format(namespace=namespace, service=service, pod=pod, annotations=annotations)
    return translate(text + "".join(gateways), like_istio=like_istio)


def place(address: GatewayAddress) -> str:
    if address.HasField("hostname"):
        return f"{address.hostname.namespace}/{address.hostname.hostname}:{address.hbone_mtls_port}"
    if address.HasField("address"):
        return f"{list(address.address.address)}:{address.hbone_mtls_port}"
    return ""


def waypoints(result: Translated) -> tuple[str, str]:
    return place(result.service(NAME).waypoint), place(result.workload("web").waypoint)


USE = "{istio.io/use-waypoint: wp}"
WP = "shop/wp.shop.svc.cluster.local:15008"


def test_the_namespace_gives_services_a_waypoint_and_pods_none() -> None:
    result = mesh(gateway(), namespace=USE)
    assert waypoints(result) == (WP, "")
    assert result.reasons == []


@pytest.mark.parametrize(
    ("traffic", "expected"),
    [
        ("service", (WP, "")),
        ("workload", ("", WP)),
        ("all", (WP, WP)),
        ("none", ("", "")),
    ],
)
def test_the_kinds_of_traffic_a_gateway_serves(traffic: str, expected: tuple[str, str]) -> None:
    labels = f"{{istio.io/waypoint-for: {traffic}}}"
    assert waypoints(mesh(gateway(labels=labels), namespace=USE)) == expected


def test_the_class_sets_the_default_kind_of_traffic() -> None:
    gateway_class = """
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio-waypoint, labels: {istio.io/waypoint-for: all}}
spec: {controllerName: istio.io/mesh-controller}
---
"""
    assert waypoints(mesh(gateway(), gateway_class, namespace=USE)) == (WP, WP)


def test_an_object_opts_out_with_the_reserved_word() -> None:
    result = mesh(gateway(), namespace=USE, service="{istio.io/use-waypoint: none}")
    assert waypoints(result) == ("", "")


def test_an_object_points_elsewhere() -> None:
    elsewhere = gateway(
        namespace="infra",
        allowed="{from: All}",
        addresses="[{value: 10.0.9.9}]",
    )
    service = "{istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra}"
    result = mesh(gateway(), elsewhere, namespace=USE, service=service)
    assert waypoints(result) == ("[10, 0, 9, 9]:15008", "")


@pytest.mark.parametrize(
    ("allowed", "admitted"),
    [
        ("{from: Same}", False),
        ("{from: All}", True),
        ("{from: Selector, selector: {matchLabels: {team: x}}}", True),
        ("{from: Selector, selector: {matchLabels: {team: y}}}", False),
        (
            "{from: Selector, selector: {matchExpressions: "
            "[{key: kubernetes.io/metadata.name, operator: In, values: [shop]}]}}",
            True,
        ),
    ],
)
def test_gateways_admit_namespaces(allowed: str, admitted: bool) -> None:
    namespace = "{istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra, team: x}"
    result = mesh(gateway(namespace="infra", allowed=allowed), namespace=namespace)
    # A waypoint that does not admit refuses; it is not skipped.
    assert waypoints(result)[0] != ""
    assert result.reasons == ([] if admitted else ["AttachmentDenied"])


@pytest.mark.parametrize("gateways", [(), (gateway(addresses="[]"),)])
def test_a_waypoint_that_is_not_there_refuses_rather_than_being_skipped(
    gateways: tuple[str, ...],
) -> None:
    result = mesh(*gateways, namespace=USE)
    assert waypoints(result) == (WP, "")
    assert result.reasons == ["WaypointIsNotReady"]
    assert result.findings[0].severity.name == "ERROR"
    assert str(result.findings[0].object) == "Namespace shop"


def test_like_istio_a_waypoint_that_is_not_there_is_skipped() -> None:
    result = mesh(namespace=USE, service=USE, like_istio=True)
    assert waypoints(result) == ("", "")
    assert result.reasons == ["WaypointIsNotReady"]


def test_an_objects_own_pointer_does_not_fall_back_to_the_namespace() -> None:
    service = "{istio.io/use-waypoint: missing}"
    assert waypoints(mesh(gateway(), namespace=USE, service=service, like_istio=True)) == ("", "")
    closed = mesh(gateway(), namespace=USE, service=service)
    assert waypoints(closed)[0] == "shop/missing.shop.svc.cluster.local:15008"


def test_a_mismatch_is_reported_on_the_object_only() -> None:
    assert mesh(gateway(), pod=USE).reasons == ["UnsupportedTrafficType"]
    assert waypoints(mesh(gateway(), pod=USE))[1] == ""


def test_waypoints_themselves_get_none() -> None:
    managed = "{gateway.istio.io/managed: istio.io-mesh-controller}"
    everything = gateway(labels="{istio.io/waypoint-for: all}")
    result = mesh(everything, namespace=USE, service=managed, pod=managed)
    assert waypoints(result) == ("", "")


CANARY = (
    "{istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: wp2}",
    "{istio.io/use-waypoint-canary-weight: '%s'}",
)
WP2 = "[{type: Hostname, value: wp2.shop.svc.cluster.local}]"


def test_a_canary_takes_its_share() -> None:
    result = mesh(
        gateway(),
        gateway(name="wp2", addresses=WP2),
        service=CANARY[0],
        annotations=CANARY[1] % "30",
    )
    message = result.service(NAME)
    assert place(message.waypoint) == WP
    assert [(place(item.destination), item.weight) for item in message.weighted_waypoints] == [
        (WP, 70),
        ("shop/wp2.shop.svc.cluster.local:15008", 30),
    ]


@pytest.mark.parametrize(
    ("weight", "canary", "gateways", "reason"),
    [
        ("101", "wp2", [gateway(name="wp2", addresses=WP2)], "CanaryInvalidWeight"),
        ("half", "wp2", [gateway(name="wp2", addresses=WP2)], "CanaryInvalidWeight"),
        ("", "wp2", [gateway(name="wp2", addresses=WP2)], "CanaryInvalidWeight"),
        ("10", "wp", [], "CanarySameAsPrimary"),
        ("10", "wp2", [], "WaypointIsNotReady"),
        ("10", "wp2", [gateway(name="wp2", allowed="{from: None}")], "AttachmentDenied"),
        (
            "10",
            "wp2",
            [gateway(name="wp2", labels="{istio.io/waypoint-for: workload}")],
            "UnsupportedTrafficType",
        ),
    ],
)
def test_any_mistake_of_a_canary_leaves_the_primary(
    weight: str, canary: str, gateways: list[str], reason: str
) -> None:
    result = mesh(
        gateway(),
        *gateways,
        service=CANARY[0].replace("wp2", canary),
        annotations=CANARY[1] % weight,
    )
    message = result.service(NAME)
    assert place(message.waypoint) == WP
    assert not message.weighted_waypoints
    assert result.reasons == [reason]


def test_ingress_goes_through_by_label_of_object_or_namespace() -> None:
    label = "{istio.io/ingress-use-waypoint: 'true'}"
    behind = "{istio.io/ingress-use-waypoint: 'true', istio.io/use-waypoint: wp}"
    assert mesh(gateway(), namespace=behind).service(NAME).ingress_use_waypoint
    off = "{istio.io/ingress-use-waypoint: 'false'}"
    assert not mesh(gateway(), namespace=behind, service=off).service(NAME).ingress_use_waypoint
    # Without a waypoint there is nothing to go through.
    assert not mesh(namespace=label).service(NAME).ingress_use_waypoint


def test_an_ingress_gateway_may_stand_behind_a_waypoint() -> None:
    """What else is managed as a gateway may not: its traffic would go in circles."""
    for manager, found in (
        ("istio.io-gateway-controller", True),
        ("istio.io-mesh-controller", False),
        ("istio.io-eastwest-controller", False),
    ):
        labels = f"{{gateway.istio.io/managed: {manager}}}"
        message = mesh(gateway(), namespace=USE, service=labels).service(NAME)
        assert message.HasField("waypoint") is found


SANDWICH = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: wp, namespace: shop, annotations: {annotations}}}
spec:
  gatewayClassName: sandwich
  listeners: [{{name: proxy, port: 15088, protocol: istio.io/PROXY, {allowed}}}]
status: {{addresses: [{{type: Hostname, value: wp.shop.svc.cluster.local}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: sandwich, annotations: {by_class}}}
spec: {{controllerName: example.com/gateway}}
---
"""
INSTANCE = "{gateway.networking.k8s.io/gateway-name: wp}"
BINDING = "ambient.istio.io/waypoint-inbound-binding"


@pytest.mark.parametrize(
    ("annotations", "by_class", "expected", "reasons"),
    [
        ("{}", "{}", None, []),
        ("{}", f"{{{BINDING}: PROXY/15088}}", (1, 15088), []),
        (f"{{{BINDING}: PROXY}}", f"{{{BINDING}: PROXY/15088}}", (1, 0), []),
        (f"{{{BINDING}: NONE}}", "{}", (0, 0), []),
        (f"{{{BINDING}: HTTP/80}}", "{}", None, ["UnsupportedValue"]),
        (f"{{{BINDING}: PROXY/70000}}", "{}", None, ["UnsupportedValue"]),
    ],
)
def test_a_captured_waypoint_says_how_it_wants_its_connections(
    annotations: str, by_class: str, expected: tuple[int, int] | None, reasons: list[str]
) -> None:
    gateway = SANDWICH.format(
        annotations=annotations,
        by_class=by_class,
        allowed="allowedRoutes: {namespaces: {from: Same}}",
    )
    result = mesh(gateway, pod=INSTANCE)
    workload = result.workload("web")
    tunnel = workload.application_tunnel
    found = (tunnel.protocol, tunnel.port) if workload.HasField("application_tunnel") else None
    assert found == expected
    assert result.reasons == reasons
    assert not mesh(gateway).workload("web").HasField("application_tunnel")


def test_the_listener_of_the_binding_says_whom_a_waypoint_admits() -> None:
    elsewhere = "{istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}"
    other = """
apiVersion: v1
kind: Service
metadata: {name: other, namespace: street, labels: LABELS}
---
""".replace("LABELS", elsewhere)
    for allowed, reasons in (("All", []), ("Same", ["AttachmentDenied"])):
        gateway = SANDWICH.format(
            annotations=f"{{{BINDING}: PROXY}}",
            by_class="{}",
            allowed=f"allowedRoutes: {{namespaces: {{from: {allowed}}}}}",
        )
        result = mesh(gateway + other)
        assert result.reasons == reasons
        waypoint = result.service("street/other.street.svc.cluster.local").waypoint
        assert place(waypoint) == WP


def test_a_gateway_whose_addresses_are_given_needs_no_status() -> None:
    given = gateway(addresses="[]").replace(
        "gatewayClassName: istio-waypoint",
        "gatewayClassName: istio-waypoint\n  addresses: [{value: 10.9.9.9}]",
    )
    assert waypoints(mesh(given, namespace=USE))[0] == "[10, 9, 9, 9]:15008"


def test_a_canary_without_a_weight_gets_nothing_yet() -> None:
    labels = "{istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: next}"
    new = gateway(name="next", addresses="[{type: Hostname, value: next.shop}]")
    weighted = mesh(gateway(), new, service=labels).service(NAME).weighted_waypoints
    assert [one.weight for one in weighted] == [100, 0]
