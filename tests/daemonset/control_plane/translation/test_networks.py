"""Networks, their gateways, and what lives in them."""

from __future__ import annotations

import random

from tests.support.control_plane import Translated, translate
from ztunnel.mesh.decision import Hbone, Refuse, Via
from ztunnel.mesh.from_proto import service_from_proto, workload_from_proto
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.state import MeshState
from ztunnel.proto.workload_pb2 import Address

MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: here}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {serviceAccountName: web}
status: {podIP: 10.0.0.1}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: shop}
spec:
  hosts: [far.example]
  addresses: [198.51.100.1]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  subjectAltNames: [spiffe://cluster.local/ns/shop/sa/far]
  workloadSelector: {labels: {app: far}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: far, namespace: shop}
spec: {address: 10.0.0.1, network: there, serviceAccount: far, labels: {app: far}}
---
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: to-there
  namespace: istio-system
  labels: {topology.istio.io/network: there}
  ANNOTATIONS
spec:
  gatewayClassName: istio-remote
  addresses: [{type: TYPE, value: VALUE}]
  listeners: [{name: cross-network, port: 15009, protocol: HBONE}]
"""


def mesh(kind: str = "IPAddress", value: str = "203.0.113.9", annotations: str = "") -> Translated:
    text = GATEWAY.replace("TYPE", kind).replace("VALUE", value)
    return translate(MESH + text.replace("ANNOTATIONS", annotations))


def test_everything_is_in_the_network_of_the_root_namespace() -> None:
    result = mesh()
    assert result.workload("Pod/shop/web").network == "here"
    assert result.service("shop/far.example").addresses[0].network == "here"
    assert not result.workload("Pod/shop/web").HasField("network_gateway")


def test_a_gateway_of_another_network_is_a_workload_and_what_lives_there_points_to_it() -> None:
    result = mesh()
    gateway = result.workload("NetworkGateway/there/203.0.113.9/15009")
    assert (gateway.namespace, gateway.service_account) == (
        "istio-system",
        "to-there-istio-remote",
    )
    assert (gateway.network, list(gateway.addresses)) == ("there", [bytes([203, 0, 113, 9])])
    entry = result.workload("WorkloadEntry/shop/far")
    assert entry.network == "there"
    assert entry.network_gateway.hbone_mtls_port == 15009
    assert entry.network_gateway.address.network == "there"
    assert entry.network_gateway.address.address == bytes([203, 0, 113, 9])
    assert result.raw.addresses["NetworkGateway/there/203.0.113.9/15009"].aliases == (
        "there/203.0.113.9",
    )
    assert result.reasons == []


def test_a_gateway_may_have_a_host_name_and_an_account_of_its_own() -> None:
    result = mesh(
        "Hostname", "gw.example", "annotations: {gateway.istio.io/service-account: east-west}"
    )
    gateway = result.workload("NetworkGateway/there/gw.example/15009")
    assert (gateway.hostname, list(gateway.addresses)) == ("gw.example", [])
    assert gateway.service_account == "east-west"
    pointer = result.workload("WorkloadEntry/shop/far").network_gateway
    assert pointer.hostname.namespace == "istio-system"
    assert pointer.hostname.hostname == "gw.example"


def test_a_network_without_a_gateway_is_a_finding() -> None:
    result = translate(MESH)
    (finding,) = result.findings
    assert (finding.reason, finding.field) == ("NoNetworkGateway", "spec.network")
    assert not result.workload("WorkloadEntry/shop/far").HasField("network_gateway")


def test_the_node_proxy_goes_through_the_gateway() -> None:
    for result, expected in ((mesh(), Hbone), (translate(MESH), Refuse)):
        state = MeshState()
        for resource in result.raw.addresses.values():
            address = Address.FromString(resource.payload)
            if address.HasField("workload"):
                state.upsert_workload(workload_from_proto(address.workload))
            else:
                state.upsert_service(service_from_proto(address.service))
        web = state.workload("Kubernetes//Pod/shop/web")
        assert web is not None
        decision = decide(state, web, ("198.51.100.1", 80), rng=random.Random(1))
        assert isinstance(decision, expected), decision
        if isinstance(decision, Hbone):
            assert decision.next_hop == ("203.0.113.9", 15009)
            assert decision.via is Via.GATEWAY
            assert [one.uri for one in decision.expected_identities] == [
                "spiffe://cluster.local/ns/istio-system/sa/to-there-istio-remote"
            ]
