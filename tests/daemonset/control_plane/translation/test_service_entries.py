"""ServiceEntries and WorkloadEntries."""

from __future__ import annotations

import ipaddress

import pytest

from tests.support.control_plane import Translated, translate
from ztunnel.proto.workload_pb2 import LoadBalancing, Service, Workload

ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: ext, namespace: shop, labels: {labels}}}
spec: {spec}
"""
PORTS = "ports: [{number: 443, name: tls, protocol: TLS}]"


def entry(spec: str, labels: str = "{}", more: str = "") -> Translated:
    return translate(ENTRY.format(spec=f"{{{spec}}}", labels=labels) + more)


def hosts(workload: Workload) -> dict[str, list[tuple[int, int]]]:
    return {
        name: [(port.service_port, port.target_port) for port in ports.ports]
        for name, ports in workload.services.items()
    }


def test_one_service_for_each_host_and_the_addresses_as_given() -> None:
    result = entry(
        f"hosts: [a.example, b.example], addresses: [192.0.2.1, 198.51.100.0/24], {PORTS}, "
        "resolution: STATIC, subjectAltNames: [spiffe://x/ns/y/sa/z], "
        "endpoints: [{address: 203.0.113.1, ports: {tls: 8443}, labels: {version: v1}, "
        "locality: r/z/s, weight: 7, serviceAccount: ext}]"
    )
    for host in ("a.example", "b.example"):
        service = result.service(f"shop/{host}")
        assert service.name == "ext"
        assert [a.length if a.HasField("length") else None for a in service.addresses] == [None, 24]
        assert list(service.subject_alt_names) == ["spiffe://x/ns/y/sa/z"]
        assert result.raw.addresses[f"shop/{host}"].aliases == ("/192.0.2.1",)
    workload = result.workload("Kubernetes/networking.istio.io/ServiceEntry/shop/ext/203.0.113.1")
    assert hosts(workload) == {
        "shop/a.example": [(443, 8443)],
        "shop/b.example": [(443, 8443)],
    }
    assert workload.capacity.value == 7
    assert workload.service_account == "ext"
    assert workload.canonical_revision == "latest"  # by the labels of the entry, as in Istio
    assert (workload.locality.region, workload.locality.zone, workload.locality.subzone) == (
        "r",
        "z",
        "s",
    )


def test_hosts_to_be_looked_up_stand_for_themselves() -> None:
    for resolution in ("DNS", "DNS_ROUND_ROBIN"):
        result = entry(f"hosts: [a.example], {PORTS}, resolution: {resolution}")
        uid = "Kubernetes/networking.istio.io/ServiceEntry/shop/ext/a.example"
        workload = result.workload(uid)
        assert (workload.hostname, list(workload.addresses)) == ("a.example", [])
        assert hosts(workload) == {"shop/a.example": [(443, 443)]}


def test_given_addresses_come_from_the_pools_and_stay() -> None:
    text = f"hosts: [a.example], {PORTS}, resolution: DNS"
    addresses = [a.address for a in entry(text).service("shop/a.example").addresses]
    assert ipaddress.ip_address(addresses[0]) in ipaddress.ip_network("240.240.0.0/16")
    assert ipaddress.ip_address(addresses[1]) in ipaddress.ip_network("2001:2::/48")
    assert addresses == [a.address for a in entry(text).service("shop/a.example").addresses]


def test_addresses_of_the_status_are_kept() -> None:
    result = entry(
        f"hosts: [a.example], {PORTS}, resolution: DNS",
        more="status: {addresses: [{value: 240.240.9.9, host: a.example}]}",
    )
    assert result.raw.addresses["shop/a.example"].aliases == ("/240.240.9.9",)


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("hosts: [a.example], resolution: NONE", "{}"),
        ("hosts: ['*.example'], resolution: DNS", "{}"),
        (
            "hosts: [a.example], resolution: DNS",
            "{networking.istio.io/enable-autoallocate-ip: 'false'}",
        ),
    ],
)
def test_who_is_given_no_address(spec: str, labels: str) -> None:
    for host in ("a.example", "*.example"):
        if host in spec:
            assert not entry(f"{spec}, {PORTS}", labels).service(f"shop/{host}").addresses


def test_wildcards_with_dynamic_dns_are_given_an_address() -> None:
    result = entry(f"hosts: ['*.example'], {PORTS}, resolution: DYNAMIC_DNS")
    assert len(result.service("shop/*.example").addresses) == 2
    workload = result.workload("Kubernetes/networking.istio.io/ServiceEntry/shop/ext/*.example")
    assert workload.hostname == "*.example"  # for a waypoint to fill in
    assert result.reasons == ["NoWaypointForWildcardService"]


def test_resolution_none_passes_through_and_has_neither_address_nor_endpoint() -> None:
    """Regression seed 14: it had a VIP and no endpoint."""
    result = entry(f"hosts: [a.example], {PORTS}, resolution: NONE")
    service = result.service("shop/a.example")
    assert service.load_balancing.mode == LoadBalancing.PASSTHROUGH
    assert service.load_balancing.health_policy == LoadBalancing.ALLOW_ALL
    assert list(result.raw.addresses) == ["shop/a.example"]


WORKLOAD_ENTRY = """
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec:
  address: 192.0.2.9
  labels: {app: vm}
  ports: {tls: 9443}
  serviceAccount: vm
  weight: 3
"""


def test_the_ports_of_a_workload_entry_override_by_name() -> None:
    """Regression seed 16: its port map was ignored."""
    result = entry(
        "hosts: [a.example], ports: [{number: 443, name: tls, targetPort: 8443}, "
        "{number: 80, name: http}], resolution: STATIC, "
        "workloadSelector: {labels: {app: vm}}",
        more=WORKLOAD_ENTRY,
    )
    workload = result.workload("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm")
    assert hosts(workload) == {"shop/a.example": [(443, 9443), (80, 80)]}
    assert (workload.status, workload.capacity.value, workload.service_account) == (0, 3, "vm")


def test_a_selector_of_a_service_entry_finds_pods_by_port_name() -> None:
    pod = """
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, labels: {app: vm}}
spec: {containers: [{name: c, ports: [{name: tls, containerPort: 10443}]}]}
status: {podIP: 10.0.0.1}
"""
    result = entry(
        "hosts: [a.example], ports: [{number: 443, name: tls}, {number: 80, name: http}, "
        "{number: 81, name: given, targetPort: 8081}], "
        "resolution: STATIC, workloadSelector: {labels: {app: vm}}",
        more=pod,
    )
    assert hosts(result.workload("p")) == {"shop/a.example": [(443, 10443), (80, 80), (81, 8081)]}


def test_addresses_that_are_names_become_hostnames() -> None:
    more = WORKLOAD_ENTRY.replace("192.0.2.9", "vm.example")
    workload = entry("hosts: [a.example], resolution: STATIC", more=more).workload("vm")
    assert (workload.hostname, list(workload.addresses)) == ("vm.example", [])


def test_a_kubernetes_service_wins_over_an_entry_of_the_same_host() -> None:
    """Regression seed 15: overlapping hosts in one namespace were unstable."""
    more = """
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1}
"""
    result = entry("hosts: [web.shop.svc.cluster.local], resolution: DNS", more=more)
    name = "shop/web.shop.svc.cluster.local"
    assert result.raw.addresses[name].aliases == ("/10.96.0.1",)
    assert list(result.raw.addresses) == [name]  # and the entry's own endpoint is nobody
    assert result.reasons == ["HostTaken"]


def test_the_oldest_entry_of_a_host_wins() -> None:
    texts = [
        ENTRY.format(
            spec=f"{{hosts: [a.example], addresses: [192.0.2.{number}], resolution: STATIC}}",
            labels="{}",
        ).replace("name: ext,", f"name: {name}, creationTimestamp: '{time}',")
        for number, name, time in [
            (1, "ext-a", "2026-02-01T00:00:00Z"),
            (2, "ext-b", "2026-01-01T00:00:00Z"),
        ]
    ]
    for order in (texts, texts[::-1]):
        result = translate("---".join(order))
        assert result.raw.addresses["shop/a.example"].aliases == ("/192.0.2.2",)


def test_one_service_of_a_host_is_canonical() -> None:
    one = ENTRY.format(spec="{hosts: [a.example], resolution: DNS}", labels="{}")
    other = one.replace("namespace: shop", "namespace: other")
    result = translate(one + "---" + other)
    canonical = [result.service(f"{ns}/a.example").canonical for ns in ("other", "shop")]
    assert canonical == [True, False]


@pytest.mark.parametrize(
    ("export_to", "like_istio", "visibility", "reasons"),
    [
        ("['*']", False, Service.PUBLIC, []),
        ("['.']", False, Service.NAMESPACE, []),
        ("[other]", False, Service.NAMESPACE, ["UnsupportedValue"]),
        ("['.']", True, Service.PUBLIC, []),
    ],
)
def test_export_to_keeps_a_host_to_its_namespace(
    export_to: str, like_istio: bool, visibility: int, reasons: list[str]
) -> None:
    spec = f"{{hosts: [a.example], resolution: DNS, exportTo: {export_to}}}"
    result = translate(ENTRY.format(spec=spec, labels="{}"), like_istio=like_istio)
    assert result.service("shop/a.example").visibility == visibility
    assert result.reasons == reasons
