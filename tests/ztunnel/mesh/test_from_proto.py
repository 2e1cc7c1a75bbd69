"""Resources of the workload API: what is read, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from google.protobuf.wrappers_pb2 import UInt32Value
from hypothesis import given
from hypothesis import strategies as st

from tests.support.to_proto import (
    address_to_proto,
    authorization_to_proto,
    service_to_proto,
    workload_to_proto,
)
from tests.ztunnel.mesh import strategies
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.from_proto import (
    address_from_proto,
    authorization_from_proto,
    service_from_proto,
    workload_from_proto,
)
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy import Authorization
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import NamespacedHostname, NetworkAddress, Workload
from ztunnel.proto import workload_pb2 as pb

IP = b"\x0a\x00\x00\x01"


# -- round trips ---


@strategies.unhurried
@given(strategies.workloads | strategies.services)
def test_addresses_survive_the_wire(resource: Workload | Service) -> None:
    raw = address_to_proto(resource).SerializeToString()
    assert address_from_proto(raw) == resource


@strategies.unhurried
@given(strategies.workloads, strategies.services)
def test_the_single_types_survive_the_wire_too(workload: Workload, service: Service) -> None:
    assert workload_from_proto(workload_to_proto(workload).SerializeToString()) == workload
    assert service_from_proto(service_to_proto(service).SerializeToString()) == service


@strategies.unhurried
@given(strategies.policies)
def test_policies_survive_the_wire(policy: Authorization) -> None:
    raw = authorization_to_proto(policy).SerializeToString()
    assert authorization_from_proto(raw) == policy


# -- what arrives ---


def test_defaults_of_a_workload() -> None:
    workload = workload_from_proto(pb.Workload(uid="u", namespace="shop"))
    assert workload.identity == Identity("cluster.local", "shop", "default")
    assert workload.cluster_id == "Kubernetes"
    assert workload.capacity == 1
    assert workload.locality == ("", "", "")
    unused = workload_from_proto(pb.Workload(uid="u", capacity=UInt32Value(value=0)))
    assert unused.capacity == 0


def test_addresses_become_canonical() -> None:
    mapped = bytes(10) + b"\xff\xff" + IP
    workload = workload_from_proto(pb.Workload(uid="u", addresses=[mapped, IP]))
    assert workload.addresses == ("10.0.0.1",)


def test_virtual_addresses_are_single_or_blocks() -> None:
    service = service_from_proto(
        pb.Service(
            hostname="h",
            addresses=[
                pb.NetworkAddress(network="n", address=IP),
                pb.NetworkAddress(address=b"\x0a\x00\x00\x02", length=32),
                pb.NetworkAddress(address=b"\xf0\xf0\x01\x02", length=16),
                pb.NetworkAddress(address=bytes(4), length=0),
            ],
        )
    )
    assert service.vips == (NetworkAddress("n", "10.0.0.1"), NetworkAddress("", "10.0.0.2"))
    assert [str(block.cidr) for block in service.cidr_vips] == ["240.240.0.0/16", "0.0.0.0/0"]


def test_a_gateways_port_defaults_to_hbone() -> None:
    hostname = pb.NamespacedHostname(namespace="n", hostname="h")
    service = service_from_proto(
        pb.Service(hostname="s", waypoint=pb.GatewayAddress(hostname=hostname))
    )
    assert service.waypoint is not None
    assert service.waypoint.destination == NamespacedHostname("n", "h")
    assert service.waypoint.hbone_mtls_port == 15008


def test_names_that_are_no_identities_are_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ["spiffe://td/ns/a/sa/b", "db.example", "spiffe://td/ns/a/sa/b"]
    with caplog.at_level(logging.WARNING, "ztunnel.mesh"):
        service = service_from_proto(
            pb.Service(namespace="shop", hostname="h", subject_alt_names=names)
        )
    assert service.subject_alt_names == (Identity("td", "a", "b"),)
    assert "service shop/h: subject alternative name left out: 'db.example'" in caplog.text


# -- what is refused ---

HOSTNAME = pb.NamespacedHostname(namespace="n", hostname="h")
BLOCK = pb.NetworkAddress(address=IP, length=8)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.Workload(), "uid"),
        (pb.Workload(uid="u", addresses=[b"123"]), "addresses: an address of 3 bytes"),
        (pb.Workload(uid="u", addresses=[b""]), "addresses: an address of 0 bytes"),
        (pb.Workload(uid="u", tunnel_protocol=2), "tunnel_protocol: value 2 "),  # type: ignore[arg-type]
        (pb.Workload(uid="u", tunnel_protocol=9), "tunnel_protocol: value 9 "),  # type: ignore[arg-type]
        (pb.Workload(uid="u", workload_type=9), "workload_type"),  # type: ignore[arg-type]
        (pb.Workload(uid="u", status=9), "status"),  # type: ignore[arg-type]
        (pb.Workload(uid="u", network_mode=9), "network_mode"),  # type: ignore[arg-type]
        (
            pb.Workload(uid="u", application_tunnel=pb.ApplicationTunnel(protocol=9)),  # type: ignore[arg-type]
            "application_tunnel.protocol",
        ),
        (
            pb.Workload(uid="u", application_tunnel=pb.ApplicationTunnel(port=70000)),
            "application_tunnel.port: 70000 is not a port",
        ),
        (pb.Workload(uid="u", waypoint=pb.GatewayAddress()), "waypoint: neither"),
        (pb.Workload(uid="u", network_gateway=pb.GatewayAddress()), "network_gateway: neither"),
        (
            pb.Workload(
                uid="u", waypoint=pb.GatewayAddress(hostname=HOSTNAME, hbone_mtls_port=65536)
            ),
            "waypoint.hbone_mtls_port: 65536",
        ),
        (
            pb.Workload(uid="u", waypoint=pb.GatewayAddress(hostname=pb.NamespacedHostname())),
            "waypoint.hostname",
        ),
        (
            pb.Workload(uid="u", waypoint=pb.GatewayAddress(address=pb.NetworkAddress())),
            "waypoint.address",
        ),
        (pb.Workload(uid="u", waypoint=pb.GatewayAddress(address=BLOCK)), "a block of addresses"),
        (pb.Workload(uid="u", namespace="a/sa/b"), "namespace: 'a/sa/b' cannot be part"),
        (pb.Workload(uid="u", trust_domain="a b"), "trust_domain"),
        (pb.Workload(uid="u", service_account=".."), "service_account"),
        (
            pb.Workload(
                uid="u", services={"n/h": pb.PortList(ports=[pb.Port(service_port=65536)])}
            ),
            "services[n/h].service_port: 65536",
        ),
    ],
)
def test_workloads_that_cannot_be_understood(message: pb.Workload, reason: str) -> None:
    with pytest.raises(ResourceError) as caught:
        workload_from_proto(message)
    assert reason in caught.value.reason
    assert caught.value.name == (message.uid or "?")
    assert caught.value.name in str(caught.value)
    with pytest.raises(ResourceError):
        address_from_proto(pb.Address(workload=message).SerializeToString())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.Service(namespace="n"), "hostname"),
        (pb.Service(hostname="h", addresses=[pb.NetworkAddress(address=b"12")]), "addresses"),
        (
            pb.Service(hostname="h", addresses=[pb.NetworkAddress(address=IP, length=33)]),
            "a prefix of 33 bits",
        ),
        (pb.Service(hostname="h", ports=[pb.Port(service_port=0)]), "ports.service_port: 0"),
        (
            pb.Service(hostname="h", ports=[pb.Port(service_port=1, target_port=65616)]),
            "ports.target_port: 65616",
        ),
        (pb.Service(hostname="h", ip_families=9), "ip_families"),  # type: ignore[arg-type]
        (pb.Service(hostname="h", visibility=2), "visibility: value 2"),  # type: ignore[arg-type]
        (
            pb.Service(hostname="h", load_balancing=pb.LoadBalancing(mode=9)),  # type: ignore[arg-type]
            "load_balancing.mode",
        ),
        (
            pb.Service(hostname="h", load_balancing=pb.LoadBalancing(health_policy=9)),  # type: ignore[arg-type]
            "load_balancing.health_policy",
        ),
        (
            pb.Service(hostname="h", load_balancing=pb.LoadBalancing(routing_preference=[0])),  # type: ignore[list-item]
            "load_balancing.routing_preference: value 0",
        ),
        (pb.Service(hostname="h", waypoint=pb.GatewayAddress()), "waypoint"),
        (
            pb.Service(hostname="h", weighted_waypoints=[pb.WeightedWaypoint(weight=1)]),
            "weighted_waypoints",
        ),
    ],
)
def test_services_that_cannot_be_understood(message: pb.Service, reason: str) -> None:
    with pytest.raises(ResourceError) as caught:
        service_from_proto(message)
    assert reason in caught.value.reason
    assert caught.value.name == f"{message.namespace}/{message.hostname or '?'}"


def test_an_address_must_be_something() -> None:
    with pytest.raises(ResourceError, match="neither a workload nor a service"):
        address_from_proto(b"")


# -- bytes from anywhere ---

_READERS: list[Callable[[bytes], object]] = [
    address_from_proto,
    workload_from_proto,
    service_from_proto,
    authorization_from_proto,
]


@strategies.unhurried
@given(st.sampled_from(_READERS), st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(read: Callable[[bytes], object], raw: bytes) -> None:
    try:
        read(raw)
    except ResourceError as error:
        refused = error
    else:
        return
    assert refused.reason


@strategies.unhurried
@given(
    st.one_of(
        strategies.workloads.map(lambda w: (workload_from_proto, workload_to_proto(w))),
        strategies.services.map(lambda s: (service_from_proto, service_to_proto(s))),
        strategies.policies.map(lambda p: (authorization_from_proto, authorization_to_proto(p))),
    ),
    st.data(),
)
def test_damaged_messages_are_read_or_refused(
    case: tuple[Callable[[bytes], object], pb.Workload], data: st.DataObject
) -> None:
    read, message = case
    raw = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for variant in (bytes(raw), bytes(raw[:cut])):
        try:
            read(variant)
        except ResourceError as error:
            refused = error
        else:
            continue
        assert refused.reason
