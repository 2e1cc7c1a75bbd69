import ipaddress
import socket
import struct

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.file_reader import read_file
from daemonset.control_plane.sources.folder_state import FolderState
from daemonset.control_plane.translation.service_addresses import ServiceAddresses
from daemonset.local.cluster_dns import answer
from daemonset.local.cluster_ips import service_table
from daemonset.local.kube_services import ClusterServices, ServiceReader, ServingPod
from ztunnel.linux.netns import NetworkNamespace, create
from ztunnel.linux.nft_tables import differences
from ztunnel.linux.nftables import Nftables

SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec:
  clusterIP: 10.96.1.1
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: all, namespace: shop}
spec: {clusterIP: None, selector: {app: echo}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: given, namespace: shop}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: listed, namespace: shop}
spec: {clusterIP: 10.96.1.2, ports: [{name: x, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: listed-1, namespace: shop, labels: {kubernetes.io/service-name: listed}}
addressType: IPv4
endpoints:
  - {addresses: [192.0.2.1]}
  - {addresses: [192.0.2.2], conditions: {ready: false}}
ports: [{name: x, port: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: echo.shop.svc.cluster.local}
"""

PODS = [
    ServingPod("shop", "echo-1", {"app": "echo", "v": "1"}, ("10.244.1.2",), {"web": 8080}),
    ServingPod("shop", "echo-2", {"app": "echo"}, ("10.244.2.2", "fd00::2"), {"web": 8081}),
    ServingPod("street", "echo-3", {"app": "echo"}, ("10.244.2.3",), {"web": 8080}),
]


def objects_of(text: str) -> ObjectSet:
    state = FolderState()
    state.apply({"services.yaml": read_file("services.yaml", text.encode())})
    assert not state.problems
    return state.objects


@pytest.fixture(scope="module")
def services() -> ClusterServices:
    reader = ServiceReader(ServiceAddresses(), "cluster.local")
    names = {("shop", "alias"): "echo.shop.svc.cluster.local"}
    return reader.read(objects_of(SERVICES), PODS, names)


def test_selectors_choose_pods_of_their_namespace_and_named_ports(
    services: ClusterServices,
) -> None:
    found = {(one.address, one.port): one for one in services.virtual_addresses}
    assert found["10.96.1.1", 80].endpoints == (("10.244.1.2", 8080), ("10.244.2.2", 8081))
    assert found["10.96.1.1", 53].protocol == "UDP"
    assert found["10.96.1.2", 80].endpoints == (("192.0.2.1", 9000),)


def test_a_service_without_an_address_is_given_one(services: ClusterServices) -> None:
    (address,) = services.addresses["given.shop.svc.cluster.local"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network("10.96.0.0/16")


def ask(services: ClusterServices, name: str, kind: str) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    reply = answer(query.to_wire(), services, "cluster.local")
    assert reply is not None
    parsed = dns.message.from_wire(reply)
    assert parsed.id == query.id
    return parsed


def texts(message: dns.message.Message) -> list[str]:
    return [item.to_text() for one in message.answer for item in one]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("echo.shop.svc.cluster.local", "A", ["10.96.1.1"]),
        ("ECHO.Shop.svc.cluster.local", "A", ["10.96.1.1"]),
        ("echo.shop.svc.cluster.local", "AAAA", []),
        ("all.shop.svc.cluster.local", "A", ["10.244.1.2", "10.244.2.2"]),
        ("all.shop.svc.cluster.local", "AAAA", ["fd00::2"]),
        ("alias.shop.svc.cluster.local", "A", ["echo.shop.svc.cluster.local.", "10.96.1.1"]),
        (
            "_http._tcp.echo.shop.svc.cluster.local",
            "SRV",
            ["0 100 80 echo.shop.svc.cluster.local."],
        ),
        ("shop.svc.cluster.local", "A", []),
    ],
)
def test_names_are_answered(
    services: ClusterServices, name: str, kind: str, expected: list[str]
) -> None:
    reply = ask(services, name, kind)
    assert reply.rcode() == dns.rcode.NOERROR
    assert sorted(texts(reply)) == sorted(expected)
    assert reply.flags & dns.flags.AA


@pytest.mark.parametrize("name", ["nope.shop.svc.cluster.local", "example.org"])
def test_what_is_not_there_does_not_exist(services: ClusterServices, name: str) -> None:
    assert ask(services, name, "A").rcode() == dns.rcode.NXDOMAIN


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer_or_none(data: bytes) -> None:
    reply = answer(data, ClusterServices(), "cluster.local")
    assert reply is None or reply[:2] == data[:2]


@given(st.binary(max_size=100), st.integers(0, 65_535), st.integers(0, 3))
def test_any_question_gets_an_answer_or_none(tail: bytes, flags: int, count: int) -> None:
    data = struct.pack("!HHHHHH", 7, flags, count, 0, 0, 0) + tail
    reply = answer(data, ClusterServices(), "cluster.local")
    assert reply is None or reply[:2] == data[:2]


@pytest.fixture
def namespace() -> NetworkNamespace:
    return create()


@pytest.mark.root
def test_the_table_of_services_is_what_the_kernel_has(
    services: ClusterServices, namespace: NetworkNamespace
) -> None:
    table = service_table(services.virtual_addresses)
    with namespace, Nftables(namespace) as nftables:
        nftables.replace(table)
        assert differences(table, nftables.read(table.name)) == []


def test_pods_that_are_not_ready_serve_only_where_a_service_says_so() -> None:
    text = """
apiVersion: v1
kind: Service
metadata: {name: early, namespace: shop}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: db}, ports: [{port: 1}]}
---
apiVersion: v1
kind: Service
metadata: {name: late, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 1}]}
"""
    pod = ServingPod("shop", "db", {"app": "db"}, ("10.244.1.9",), {}, ready=False)
    read = ServiceReader(ServiceAddresses(), "cluster.local").read(objects_of(text), [pod], {})
    assert read.addresses["early.shop.svc.cluster.local"] == ("10.244.1.9",)
    assert read.addresses["late.shop.svc.cluster.local"] == ()


def test_an_address_without_endpoints_has_no_rule() -> None:
    reader = ServiceReader(ServiceAddresses(), "cluster.local")
    nobody = reader.read(objects_of(SERVICES), [], {})
    (prerouting,) = (
        chain
        for chain in service_table(nobody.virtual_addresses).chains
        if chain.name == "prerouting"
    )
    assert [rule.comment for rule in prerouting.rules] == ["shop/listed:80"]
    assert socket.inet_aton("10.96.1.2") in b"".join(
        expression.packed() for expression in prerouting.rules[0].expressions
    )
