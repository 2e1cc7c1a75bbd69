from __future__ import annotations

import base64
import ipaddress
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.mesh.service import (
    CidrVip,
    LoadBalancing,
    LoadBalancingMode,
    Scope,
    Service,
    WeightedWaypoint,
)
from ztunnel.mesh.workload import (
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    TunnelProtocol,
    Workload,
)
from ztunnel.telemetry import config_dump
from ztunnel.telemetry.certificate_dump import certificates

WAYPOINT = GatewayAddress(NamespacedHostname("shop", "waypoint.shop.svc.cluster.local"))
WEB = Workload(
    "k//Pod/shop/web-1",
    "web-1",
    "shop",
    ("10.0.0.1",),
    tunnel_protocol=TunnelProtocol.HBONE,
    waypoint=WAYPOINT,
    network_gateway=GatewayAddress(NetworkAddress("east", "1.2.3.4"), 15443),
    application_tunnel=ApplicationTunnel(ApplicationTunnelProtocol.PROXY, 15088),
    services={"shop/web.shop.svc.cluster.local": {80: 8080}},
    locality=Locality("r", "z", "s"),
    authorization_policies=("shop/p",),
)


def test_a_workload_has_the_keys_that_istioctl_reads() -> None:
    dump = config_dump.workload(WEB)
    assert dump["waypoint"] == {
        "destination": "shop/waypoint.shop.svc.cluster.local",
        "hboneMtlsPort": 15008,
    }
    assert dump["networkGateway"] == {"destination": "east/1.2.3.4", "hboneMtlsPort": 15443}
    assert dump["applicationTunnel"] == {"protocol": "PROXY", "port": 15088}
    assert dump["services"] == {"shop/web.shop.svc.cluster.local": {"80": 8080}}
    assert dump["locality"] == {"region": "r", "zone": "z", "subzone": "s"}
    assert (dump["protocol"], dump["status"], dump["networkMode"], dump["workloadType"]) == (
        "HBONE",
        "Healthy",
        "Standard",
        "deployment",
    )
    assert {
        "uid", "workloadIps", "name", "namespace", "serviceAccount", "workloadName",
        "canonicalName", "canonicalRevision", "clusterId", "trustDomain", "node", "network",
        "capacity", "authorizationPolicies",
    } <= dump.keys()  # fmt: skip
    assert "waypoint" not in config_dump.workload(Workload("u"))


def test_a_mesh_is_sorted_and_services_find_their_endpoints() -> None:
    service = Service(
        "web",
        "shop",
        "web.shop.svc.cluster.local",
        (NetworkAddress("", "10.96.0.1"),),
        (CidrVip("n", ipaddress.ip_network("10.1.0.0/16")),),
        {80: 8080},
        (Identity("td", "a", "b"),),
        WAYPOINT,
        (WeightedWaypoint(WAYPOINT, 3),),
        LoadBalancing((Scope.REGION, Scope.ZONE), LoadBalancingMode.FAILOVER),
    )
    other = Workload("a", "a", "a")
    dump = config_dump.mesh([WEB, other], [service, Service("a", "a", "a")], [])
    assert [one["name"] for one in dump["workloads"]] == ["a", "web-1"]
    assert [one["name"] for one in dump["services"]] == ["a", "web"]
    web = dump["services"][1]
    assert web["vips"] == ["/10.96.0.1"]
    assert web["cidrVips"] == [{"network": "n", "cidr": "10.1.0.0/16"}]
    assert web["endpoints"] == {
        WEB.uid: {"workloadUid": WEB.uid, "port": {"80": 8080}, "status": "Healthy"}
    }
    assert web["subjectAltNames"] == ["spiffe://td/ns/a/sa/b"]
    assert web["loadBalancer"]["routingPreferences"] == ["Region", "Zone"]
    assert web["weightedWaypoints"][0]["weight"] == 3
    assert dump["stagedServices"] == {}
    json.dumps(dump)


def test_endpoints_of_a_service_that_is_not_known_are_told_apart() -> None:
    dump = config_dump.mesh([WEB], [Service("a", "a", "a")], [])
    assert [one["endpoints"] for one in dump["services"]] == [{}]
    assert dump["stagedServices"] == {
        "shop/web.shop.svc.cluster.local": {
            WEB.uid: {"workloadUid": WEB.uid, "port": {"80": 8080}, "status": "Healthy"}
        }
    }


def test_a_policy_shows_every_condition() -> None:
    match = Match(
        principals=(StringMatch(StringMatchKind.EXACT, "td/ns/a/sa/b"),),
        not_namespaces=(StringMatch(StringMatchKind.PRESENCE),),
        service_accounts=(ServiceAccountMatch("a", "b"),),
        source_ips=(ipaddress.ip_network("10.0.0.0/8"),),
        not_destination_ports=(80,),
    )
    policy = Authorization(
        "p",
        "shop",
        PolicyScope.WORKLOAD_SELECTOR,
        PolicyAction.DENY,
        (((match,), ()),),
        True,
        "why",
    )
    assert config_dump.policy(policy) == {
        "name": "p",
        "namespace": "shop",
        "scope": "WorkloadSelector",
        "action": "Deny",
        "rules": [
            [
                [
                    {
                        "notNamespaces": ["Presence"],
                        "principals": [{"Exact": "td/ns/a/sa/b"}],
                        "serviceAccounts": [{"namespace": "a", "serviceAccount": "b"}],
                        "sourceIps": ["10.0.0.0/8"],
                        "notDestinationPorts": [80],
                    }
                ],
                [],
            ]
        ],
        "dryRun": True,
        "unreadable": "why",
    }


def test_certificates_without_keys() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 2**80, start, start + timedelta(1))
    ).sign(key, SHA256())
    pem = certificate.public_bytes(Encoding.PEM)
    dump = certificates("spiffe://a", "Available", pem + pem, b"")
    assert dump["rootCerts"] == []
    assert dump["certChain"][1] == {
        "pem": base64.b64encode(pem).decode(),
        "serialNumber": str(2**80),
        "validFrom": "2026-01-02T03:04:05Z",
        "expirationTime": "2026-01-03T03:04:05Z",
    }
    with pytest.raises(ValueError):
        certificates("spiffe://a", "Available", b"nonsense", b"")
