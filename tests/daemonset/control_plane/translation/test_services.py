"""Services and EndpointSlices."""

from __future__ import annotations

import ipaddress

import pytest

from tests.support.control_plane import Translated, translate
from ztunnel.proto.workload_pb2 import AppProtocol, LoadBalancing, PortList

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, annotations: {annotations}, labels: {labels}}}
spec: {spec}
"""
NAME = "shop/web.shop.svc.cluster.local"


def service(spec: str, annotations: str = "{}", labels: str = "{}") -> str:
    return SERVICE.format(spec=spec, annotations=annotations, labels=labels)


def pairs(ports: PortList) -> list[tuple[int, int]]:
    return [(port.service_port, port.target_port) for port in ports.ports]


def test_ports_and_addresses() -> None:
    result = translate(
        service(
            "{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], "
            "ipFamilies: [IPv4, IPv6], selector: {app: web}, ports: ["
            "{name: http, port: 80, targetPort: 8080}, "
            "{name: grpc-api, port: 81, targetPort: api}, "
            "{name: x, port: 82, appProtocol: https}, "
            "{name: dns, port: 53, protocol: UDP}]}"
        )
    )
    message = result.service(NAME)
    assert [(a.address, a.HasField("length")) for a in message.addresses] == [
        (ipaddress.ip_address("10.96.0.1").packed, False),
        (ipaddress.ip_address("fd00::1").packed, False),
    ]
    assert [(p.service_port, p.target_port, p.app_protocol) for p in message.ports] == [
        (80, 8080, AppProtocol.HTTP11),
        (81, 0, AppProtocol.GRPC),
        (82, 82, AppProtocol.TLS),
    ]
    assert message.ip_families == 3
    assert message.canonical
    assert not message.HasField("load_balancing")
    assert result.raw.addresses[NAME].aliases == ("/10.96.0.1", "/fd00::1")


def test_headless_services_have_no_address() -> None:
    result = translate(service("{clusterIP: None, selector: {app: web}}"), service_ips=BLOCK)
    assert not result.service(NAME).addresses
    assert result.raw.addresses[NAME].aliases == ()


def test_external_names_are_no_services_of_the_mesh() -> None:
    assert not translate(service("{type: ExternalName, externalName: a.example}")).raw.addresses


BLOCK = ipaddress.IPv4Network("10.96.0.0/16")


def test_services_without_an_address_are_given_one_that_stays() -> None:
    text = service("{selector: {app: web}, ports: [{port: 80}]}")
    first = translate(text, service_ips=BLOCK).service(NAME).addresses[0].address
    second = translate(text, service_ips=BLOCK).service(NAME).addresses[0].address
    assert first == second
    assert ipaddress.ip_address(first) in BLOCK
    assert not translate(text).service(NAME).addresses


SAME_ZONE = [LoadBalancing.NETWORK, LoadBalancing.REGION, LoadBalancing.ZONE]
SAME_NODE = [*SAME_ZONE, LoadBalancing.SUBZONE, LoadBalancing.NODE]


@pytest.mark.parametrize(
    ("spec", "annotation", "mode", "preference"),
    [
        ("{trafficDistribution: PreferClose}", "", LoadBalancing.FAILOVER, SAME_ZONE),
        ("{trafficDistribution: PreferSameZone}", "", LoadBalancing.FAILOVER, SAME_ZONE),
        ("{trafficDistribution: PreferSameNode}", "", LoadBalancing.FAILOVER, SAME_NODE),
        ("{}", "PreferClose", LoadBalancing.FAILOVER, SAME_ZONE),
        ("{trafficDistribution: PreferSameNode}", "PreferClose", LoadBalancing.FAILOVER, SAME_NODE),
        (
            "{internalTrafficPolicy: Local}",
            "PreferClose",
            LoadBalancing.STRICT,
            [LoadBalancing.NODE],
        ),
        ("{}", "Any", LoadBalancing.UNSPECIFIED_MODE, []),
        ("{}", "", LoadBalancing.UNSPECIFIED_MODE, []),
    ],
)
def test_traffic_distribution(spec: str, annotation: str, mode: int, preference: list[int]) -> None:
    annotations = f"{{networking.istio.io/traffic-distribution: {annotation}}}"
    message = translate(service(spec, annotations if annotation else "{}")).service(NAME)
    assert message.load_balancing.mode == mode
    assert list(message.load_balancing.routing_preference) == preference


def test_the_namespace_gives_a_traffic_distribution_to_its_services() -> None:
    namespace = """
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  annotations: {networking.istio.io/traffic-distribution: PreferClose}
---
"""
    assert translate(namespace + service("{}").lstrip()).service(NAME).load_balancing.mode == 2


def test_an_unknown_traffic_distribution_is_a_finding() -> None:
    result = translate(service("{trafficDistribution: PreferNearby}"))
    assert result.reasons == ["UnknownTrafficDistribution"]
    assert result.findings[0].field == "spec.trafficDistribution"


def test_publishing_unready_addresses_does_not_leak_into_other_services() -> None:
    """Regression seed 5: a shared preset was changed for one and held for all."""
    one = service("{trafficDistribution: PreferClose, publishNotReadyAddresses: true}")
    other = service("{trafficDistribution: PreferClose}").replace("name: web", "name: other")
    result = translate(one + "---" + other)
    assert result.service(NAME).load_balancing.health_policy == LoadBalancing.ALLOW_ALL
    assert (
        result.service("shop/other.shop.svc.cluster.local").load_balancing.health_policy
        == LoadBalancing.ONLY_HEALTHY
    )


POD = """
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, labels: {app: web}}
status: {podIP: 10.0.0.1}
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: {kind}
ports: [{{name: http, port: 9090}}, {{name: other, port: 9091}}]
endpoints: {endpoints}
"""


def sliced(endpoints: str, spec: str, kind: str = "IPv4") -> Translated:
    documents = [service(spec), POD, SLICE.format(endpoints=endpoints, kind=kind)]
    return translate("---".join(documents))


WITHOUT_SELECTOR = "{clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}"


def test_a_service_without_selector_finds_pods_through_its_slices() -> None:
    endpoints = "[{addresses: [10.0.0.1], targetRef: {kind: Pod, name: p}}]"
    result = sliced(endpoints, WITHOUT_SELECTOR)
    assert pairs(result.workload("p").services[NAME]) == [(80, 9090)]


def test_a_selector_comes_before_slices_and_both_count() -> None:
    """Kubernetes sends to whatever a slice lists, whoever wrote it."""
    endpoints = (
        "[{addresses: [10.9.9.9]}, "
        "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: p}}, "
        "{addresses: [10.0.0.2], targetRef: {kind: Pod, name: q}}]"
    )
    spec = WITHOUT_SELECTOR.replace("{cluster", "{selector: {app: web}, cluster")
    other = POD.replace("name: p, ", "name: q, ").replace("app: web", "app: other")
    documents = [
        service(spec),
        POD,
        other.replace("10.0.0.1", "10.0.0.2"),
        SLICE.format(endpoints=endpoints, kind="IPv4"),
    ]
    result = translate("---".join(documents))
    assert pairs(result.workload("p").services[NAME]) == [(80, 8080)]
    assert pairs(result.workload("q").services[NAME]) == [(80, 9090)]
    uid = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/10.9.9.9"
    assert pairs(result.workload(uid).services[NAME]) == [(80, 9090)]


@pytest.mark.parametrize(
    ("port", "protocol"),
    [
        ("name: grpc-web-x, port: 80", AppProtocol.UNKNOWN),
        ("name: HTTP-x, port: 80", AppProtocol.HTTP11),
        ("name: x, port: 80, appProtocol: http2-x", AppProtocol.HTTP2),
        ("name: x, port: 80, appProtocol: kubernetes.io/wss", AppProtocol.TLS),
        ("name: kubernetes-x, port: 80", AppProtocol.UNKNOWN),
        ("name: x, port: 3306", AppProtocol.TCP),
        ("name: mysql, port: 3306", AppProtocol.UNKNOWN),
        ("name: http, port: 53", AppProtocol.HTTP11),
        ("port: 25", AppProtocol.TCP),
    ],
)
def test_protocols_as_istio_reads_them(port: str, protocol: AppProtocol) -> None:
    message = translate(service(f"{{clusterIP: 10.96.0.1, ports: [{{{port}}}]}}")).service(NAME)
    assert [item.app_protocol for item in message.ports] == [protocol]


def test_other_addresses_of_slices_are_workloads_that_hide_nothing() -> None:
    endpoints = "[{addresses: [192.0.2.1]}, {addresses: [192.0.2.2], conditions: {ready: false}}]"
    result = sliced(endpoints, WITHOUT_SELECTOR)
    first = result.workload("Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/192.0.2.1")
    assert first.network_mode == 1
    assert (first.status, first.service_account, first.tunnel_protocol) == (0, "", 0)
    assert pairs(first.services[NAME]) == [(80, 9090)]
    assert result.raw.addresses[first.uid].aliases == ()
    second = result.workload("Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/192.0.2.2")
    assert second.status == 1


def test_slices_of_names_and_of_pods_that_are_gone_give_nothing() -> None:
    assert len(sliced("[{addresses: [a.example]}]", WITHOUT_SELECTOR, "FQDN").raw.addresses) == 2
    gone = "[{addresses: [10.0.0.7], targetRef: {kind: Pod, name: gone}}]"
    assert len(sliced(gone, WITHOUT_SELECTOR).raw.addresses) == 2


def test_a_selector_chooses_in_its_own_namespace_only() -> None:
    result = translate(
        service("{selector: {app: web}, ports: [{port: 80}]}")
        + "---"
        + POD.replace("namespace: shop", "namespace: other")
    )
    assert not result.workload("p").services
