"""Whether a tunnel's target is the pod that received it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.mesh.builders import behind, by_address, by_name, identity, mesh, pod, service
from tests.ztunnel.mesh.strategies import services, unhurried, workloads
from ztunnel.mesh.address import parse_network
from ztunnel.mesh.decision import NeedsLookup
from ztunnel.mesh.inbound import (
    InboundRefusal,
    InboundTarget,
    find_source,
    guess_service,
    validate,
    validate_plaintext,
)
from ztunnel.mesh.service import CidrVip, Service, Visibility, WeightedWaypoint
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import (
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    NetworkAddress,
    Workload,
)

WEB = service("web", "10.96.0.1")
WEB_1 = pod("web-1", "10.0.0.11", services=behind(WEB))
WAYPOINT = service("waypoint", "10.96.0.9", ports={15008: 15008})
WAYPOINT_1 = pod("waypoint-1", "10.0.0.9", services=behind(WAYPOINT))
CANARY = service("canary", ports={15008: 15008})
CANARY_1 = pod("canary-1", "10.0.0.10", services=behind(CANARY))
PROXY = ApplicationTunnel(ApplicationTunnelProtocol.PROXY, 15088)


def target(answer: object) -> InboundTarget:
    assert isinstance(answer, InboundTarget), answer
    return answer


def refusal(answer: object, status: int) -> str:
    assert isinstance(answer, InboundRefusal), answer
    assert answer.status == status
    return answer.reason


# -- addresses ---


def test_the_pods_own_address_is_for_it() -> None:
    answer = target(validate(mesh(WEB, WEB_1), WEB_1, "10.0.0.11", "10.0.0.11:8080"))
    assert answer.destination == answer.connect == ("10.0.0.11", 8080)
    assert answer.service == WEB
    assert not answer.proxy_protocol
    assert not answer.from_loopback


def test_another_address_is_a_mismatch() -> None:
    reason = refusal(validate(mesh(WEB, WEB_1), WEB_1, "10.0.0.11", "10.0.0.12:8080"), 400)
    assert "ip mismatch: 10.0.0.11 != 10.0.0.12" in reason
    refusal(validate(mesh(WEB, WEB_1), WEB_1, "10.0.0.11", "10.96.0.1:80"), 400)


def test_ipv6() -> None:
    six = pod("six", "fd00::6")
    answer = target(validate(mesh(six), six, "fd00::6", "[FD00:0::6]:80"))
    assert answer.connect == ("fd00::6", 80)


@pytest.mark.parametrize("authority", ["", "10.0.0.11", "10.0.0.11:0", "10.0.0.11:99999", "a b:1"])
def test_unreadable_authorities_are_bad_requests(authority: str) -> None:
    assert "authority" in refusal(validate(mesh(WEB_1), WEB_1, "10.0.0.11", authority), 400)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_the_proxys_own_ports_are_refused(port: int) -> None:
    answer = validate(mesh(WEB_1), WEB_1, "10.0.0.11", f"10.0.0.11:{port}")
    assert "attempted recursive call to ourselves" in refusal(answer, 503)
    plain = validate_plaintext(WEB_1, ("10.0.0.11", port))
    assert "attempted recursive call to ourselves" in refusal(plain, 503)
    assert validate_plaintext(WEB_1, ("10.0.0.11", 8080)) is None


def test_more_ports_can_be_declared_illegal() -> None:
    answer = validate(mesh(WEB_1), WEB_1, "10.0.0.11", "10.0.0.11:15080", illegal_ports={15080})
    refusal(answer, 503)
    assert validate_plaintext(WEB_1, ("10.0.0.11", 15080), illegal_ports={15080}) is not None


# -- hostnames ---


def test_a_hostname_becomes_the_target_port_of_the_endpoint_then_of_the_service() -> None:
    authority = f"{WEB.hostname.upper()}:80"
    assert target(validate(mesh(WEB, WEB_1), WEB_1, "10.0.0.11", authority)).connect == (
        "10.0.0.11",
        8080,
    )
    own = replace(WEB_1, services={WEB.key: {80: 9000}})
    answer = target(validate(mesh(WEB, own), own, "10.0.0.11", authority))
    assert answer.destination == ("10.0.0.11", 9000)
    assert answer.service == WEB


def test_an_unknown_hostname_or_port_is_unavailable() -> None:
    state = mesh(WEB, WEB_1)
    reason = refusal(validate(state, WEB_1, "10.0.0.11", "nobody.example:80"), 503)
    assert "no service nobody.example is known" in reason
    reason = refusal(validate(state, WEB_1, "10.0.0.11", f"{WEB.hostname}:81"), 503)
    assert "service shop/web has no port 81" in reason
    named = mesh(replace(WEB, ports={80: 0}), replace(WEB_1, services={}))
    refusal(validate(named, WEB_1, "10.0.0.11", f"{WEB.hostname}:81"), 503)


def test_visibility_applies_to_hostnames() -> None:
    hidden = replace(service("web", namespace="else"), visibility=Visibility.NAMESPACE)
    refusal(validate(mesh(hidden, WEB_1), WEB_1, "10.0.0.11", f"{hidden.hostname}:80"), 503)


# -- in front of a waypoint ---


def before(waypoint: Service, **fields: object) -> Service:
    return replace(WEB, waypoint=by_name(waypoint), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "guarded",
    [
        before(WAYPOINT),
        before(WAYPOINT, visibility=Visibility.NAMESPACE, namespace="else"),
        before(WAYPOINT, cidr_vips=(CidrVip("", parse_network("10.96.0.0/24")),), vips=()),
        replace(WEB, waypoint=by_address("10.96.0.9")),
        replace(WEB, waypoint=by_address("10.0.0.9")),
        before(CANARY, weighted_waypoints=(WeightedWaypoint(by_name(WAYPOINT), 5),)),
    ],
)
def test_a_waypoint_receives_for_the_services_that_it_guards(guarded: Service) -> None:
    state = mesh(guarded, WAYPOINT, WAYPOINT_1, CANARY, CANARY_1)
    answer = target(validate(state, WAYPOINT_1, "10.0.0.9", "10.96.0.1:80"))
    assert answer.connect == ("10.0.0.9", 80)


def test_a_canary_waypoint_receives_by_its_weight_only() -> None:
    weights = (WeightedWaypoint(by_name(WAYPOINT), 90), WeightedWaypoint(by_name(CANARY), 10))
    state = mesh(before(WAYPOINT, weighted_waypoints=weights), WAYPOINT, CANARY, CANARY_1)
    target(validate(state, CANARY_1, "10.0.0.10", "10.96.0.1:80"))
    state.upsert_service(before(WAYPOINT))
    refusal(validate(state, CANARY_1, "10.0.0.10", "10.96.0.1:80"), 400)


def test_a_waypoint_receives_for_the_workloads_that_it_guards() -> None:
    guarded = replace(WEB_1, waypoint=by_name(WAYPOINT))
    state = mesh(guarded, WAYPOINT, WAYPOINT_1)
    target(validate(state, WAYPOINT_1, "10.0.0.9", "10.0.0.11:8080"))
    impostor = pod("impostor", "10.0.0.66", service_account=WAYPOINT_1.service_account)
    state.upsert_workload(impostor)
    refusal(validate(state, impostor, "10.0.0.66", "10.0.0.11:8080"), 400)


def test_on_demand_asks_who_owns_the_address_and_who_guards_it() -> None:
    state = mesh(WAYPOINT_1, on_demand=True)
    answer = validate(state, WAYPOINT_1, "10.0.0.9", "10.96.0.1:80")
    assert isinstance(answer, NeedsLookup)
    assert answer.key == "/10.96.0.1"
    state.upsert_service(before(WAYPOINT))
    state.lookup_finished("/10.96.0.1")
    answer = validate(state, WAYPOINT_1, "10.0.0.9", "10.96.0.1:80")
    assert isinstance(answer, NeedsLookup)
    assert answer.key == WAYPOINT.key
    state.lookup_finished(WAYPOINT.key)
    refusal(validate(state, WAYPOINT_1, "10.0.0.9", "10.96.0.1:80"), 400)


# -- application tunnels ---


def test_an_application_tunnel_takes_anything_at_its_own_port() -> None:
    tunnelled = replace(WAYPOINT_1, application_tunnel=PROXY)
    state = mesh(WEB, tunnelled)
    answer = target(validate(state, tunnelled, "10.0.0.9", "10.96.0.1:80"))
    assert answer.destination == ("10.0.0.9", 15088)
    assert answer.connect == ("127.0.0.1", 15088)
    assert answer.from_loopback
    assert answer.proxy_protocol
    assert answer.proxy_destination == ("10.96.0.1", 80)
    direct = validate(state, tunnelled, "10.0.0.9", "10.96.0.1:80", localhost_app_tunnel=False)
    assert target(direct).connect == ("10.0.0.9", 15088)
    assert not target(direct).from_loopback


def test_an_application_tunnel_without_port_keeps_the_one_asked_for() -> None:
    tunnelled = replace(WAYPOINT_1, application_tunnel=replace(PROXY, port=0))
    answer = target(validate(mesh(tunnelled), tunnelled, "fd00::9", "[fd00::1]:80"))
    assert answer.connect == ("::1", 80)
    plain = replace(PROXY, protocol=ApplicationTunnelProtocol.NONE, port=9)
    tunnelled = replace(WAYPOINT_1, application_tunnel=plain)
    answer = target(validate(mesh(tunnelled), tunnelled, "10.0.0.9", "10.9.9.9:80"))
    assert answer.connect == ("10.0.0.9", 9)
    assert not answer.proxy_protocol


def test_an_application_tunnel_to_the_proxys_own_port_is_refused() -> None:
    tunnelled = replace(WAYPOINT_1, application_tunnel=replace(PROXY, port=15008))
    refusal(validate(mesh(tunnelled), tunnelled, "10.0.0.9", "10.0.0.1:80"), 503)


def test_a_hostname_through_an_application_tunnel_names_an_address_of_the_service() -> None:
    vips = (
        NetworkAddress("east", "10.1.1.1"),
        NetworkAddress("", "fd00::1"),
        NetworkAddress("", "10.2.2.2"),
    )
    tunnelled = replace(WAYPOINT_1, application_tunnel=PROXY)
    web = replace(WEB, vips=vips)
    answer = target(validate(mesh(web, tunnelled), tunnelled, "10.0.0.9", f"{WEB.hostname}:7"))
    assert answer.proxy_destination == ("10.2.2.2", 7)
    web = replace(WEB, vips=())
    answer = target(validate(mesh(web, tunnelled), tunnelled, "10.0.0.9", f"{WEB.hostname}:7"))
    assert answer.proxy_destination == ("10.0.0.9", 7)


# -- what is reported ---


def test_the_service_is_the_one_the_client_says_among_the_pods_own() -> None:
    other = service("other", ports={81: 8080})
    foreign = service("foreign")
    both = pod("web-1", "10.0.0.11", services={**behind(WEB), **behind(other)})
    state = mesh(WEB, other, foreign, both)
    assert guess_service(state, both, 8080) == other
    assert guess_service(state, both, 8080, WEB.hostname.upper()) == WEB
    assert guess_service(state, both, 8080, foreign.hostname) == other
    assert guess_service(state, both, 9999) is None
    assert guess_service(state, replace(both, services={}), 8080) is None
    assert guess_service(MeshState(), both, 8080) is None


def test_the_source_is_found_by_address_unless_a_gateway_stands_between() -> None:
    client = pod("client", "10.0.0.1")
    state = mesh(client)
    assert find_source(state, "", "10.0.0.1", identity("client")) == client
    assert find_source(state, "", "10.0.0.1", None) == client
    assert find_source(state, "", "10.0.0.9", identity("client")) is None
    assert find_source(state, "", "10.0.0.1", identity("other")) is None
    assert find_source(state, "", "10.0.0.1", identity("client"), "east") is None
    east = replace(client, network="East")
    assert find_source(mesh(east), "East", "10.0.0.1", None, "eAST") == east


@unhurried
@given(
    st.lists(services | workloads, max_size=6),
    workloads,
    st.sampled_from(
        ["10.0.0.1:80", "10.0.1.1:8080", "[fd00::1]:80", "a.example:80", "b.example:9"]
    ),
    st.booleans(),
)
def test_a_target_is_always_the_pod_itself(
    resources: list[Service | Workload], workload: Workload, authority: str, on_demand: bool
) -> None:
    state = mesh(*resources, workload, on_demand=on_demand)
    answer = validate(state, workload, "10.0.0.1", authority)
    if isinstance(answer, InboundTarget):
        assert answer.destination[0] == "10.0.0.1"
        assert answer.connect[0] in ("10.0.0.1", "127.0.0.1")
        assert answer.connect[1] not in (15001, 15006, 15008)
        assert answer.from_loopback is (answer.connect[0] == "127.0.0.1")
