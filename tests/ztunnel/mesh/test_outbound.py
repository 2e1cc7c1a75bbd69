"""Where connections go."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from tests.ztunnel.mesh.builders import (
    behind,
    by_address,
    by_name,
    going,
    identity,
    mesh,
    pod,
    service,
)
from ztunnel.mesh.address import parse_network
from ztunnel.mesh.decision import (
    Direct,
    Hbone,
    NeedsDns,
    NeedsLookup,
    Passthrough,
    RefusalCode,
    Refuse,
    Via,
)
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.service import (
    CidrVip,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel.mesh.workload import (
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    GatewayAddress,
    NetworkMode,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
)

CLIENT = pod("client", "10.0.0.1", "fd00::1")
VIP = ("10.96.0.1", 80)
WEB = service("web", VIP[0])
WEB_1 = pod("web-1", "10.0.0.11", services=behind(WEB))
WAYPOINT = service("waypoint", "10.96.0.9", ports={15008: 15008})
WAYPOINT_1 = pod("waypoint-1", "10.0.0.9", services=behind(WAYPOINT))


def hbone(decision: object) -> Hbone:
    assert isinstance(decision, Hbone), decision
    return decision


def refusal(decision: object, code: RefusalCode) -> Refuse:
    assert isinstance(decision, Refuse), decision
    assert decision.code is code
    return decision


# -- plain cases ---


def test_an_address_outside_the_mesh_is_passed_through() -> None:
    decision = going(mesh(CLIENT), CLIENT, ("1.1.1.1", 443))
    assert isinstance(decision, Passthrough)
    assert decision.next_hop == ("1.1.1.1", 443)
    assert "1.1.1.1" in decision.reason
    assert decision.hostname == ""


def test_a_service_address_becomes_a_tunnel_to_an_endpoint() -> None:
    decision = hbone(going(mesh(CLIENT, WEB, WEB_1), CLIENT, VIP))
    assert decision.next_hop == ("10.0.0.11", 15008)
    assert decision.authority == "10.0.0.11:8080"
    assert decision.expected_identities == (identity("web-1"),)
    assert (decision.workload, decision.service) == (WEB_1, WEB)
    assert decision.via is Via.WORKLOAD
    assert decision.hostname == WEB.hostname
    assert "shop/web-1" in decision.reason
    assert "shop/web" in decision.reason


def test_a_pod_address_becomes_a_tunnel_to_the_pod_at_the_port_asked_for() -> None:
    decision = hbone(going(mesh(CLIENT, WEB, WEB_1), CLIENT, ("10.0.0.11", 9000)))
    assert decision.authority == "10.0.0.11:9000"
    assert decision.service is None


def test_ipv6_authorities_have_brackets() -> None:
    six = pod("six", "fd00::6")
    decision = hbone(going(mesh(CLIENT, six), CLIENT, ("fd00::6", 80)))
    assert decision.next_hop == ("fd00::6", 15008)
    assert decision.authority == "[fd00::6]:80"


def test_a_workload_outside_the_mesh_is_connected_directly_at_its_target_port() -> None:
    plain = replace(WEB_1, tunnel_protocol=TunnelProtocol.NONE)
    decision = going(mesh(CLIENT, WEB, plain), CLIENT, VIP)
    assert isinstance(decision, Direct)
    assert decision.next_hop == ("10.0.0.11", 8080)
    assert decision.service == WEB


def test_service_identities_are_accepted_beside_the_workloads_own_once_each() -> None:
    other = identity("migrated")
    web = replace(WEB, subject_alt_names=(other, identity("web-1"), other))
    decision = hbone(going(mesh(CLIENT, web, WEB_1), CLIENT, VIP))
    assert decision.expected_identities == (identity("web-1"), other)


def test_headless_services_are_reached_by_pod_address_without_the_services_waypoint() -> None:
    headless = replace(WEB, vips=(), waypoint=by_name(WAYPOINT))
    state = mesh(CLIENT, headless, WEB_1, WAYPOINT, WAYPOINT_1)
    assert hbone(going(state, CLIENT, ("10.0.0.11", 8080))).via is Via.WORKLOAD


def test_a_call_to_the_own_service_goes_through_a_tunnel_to_oneself() -> None:
    state = mesh(WEB, WEB_1)
    assert hbone(going(state, WEB_1, VIP)).next_hop == ("10.0.0.11", 15008)


# -- guards ---


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "::", "10.0.0.1"])
@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_a_pod_must_not_call_the_proxys_own_ports_on_itself(ip: str, port: int) -> None:
    decision = refusal(going(mesh(CLIENT), CLIENT, (ip, port)), RefusalCode.SELF_CALL)
    assert "attempted recursive call to ourselves" in decision.reason


def test_more_ports_can_be_declared_illegal_and_other_destinations_stay_free() -> None:
    state = mesh(CLIENT)
    refusal(
        going(state, CLIENT, ("127.0.0.1", 15080), illegal_ports={15080}), RefusalCode.SELF_CALL
    )
    assert isinstance(going(state, CLIENT, ("127.0.0.1", 8080)), Passthrough)
    assert isinstance(going(state, CLIENT, ("1.1.1.1", 15001)), Passthrough)


# -- which service an address means ---


def test_a_service_of_the_clients_namespace_is_meant_first() -> None:
    elsewhere = replace(service("web", VIP[0], namespace="aaa"), canonical=True)
    there = pod("w", "10.0.0.12", namespace="aaa", services=behind(elsewhere))
    state = mesh(CLIENT, elsewhere, there, WEB, WEB_1)
    assert hbone(going(state, CLIENT, VIP)).service == WEB
    stranger = pod("s", "10.0.0.3", namespace="else")
    assert hbone(going(state, stranger, VIP)).service == elsewhere


def test_two_services_of_one_namespace_can_share_an_address() -> None:
    admin = service("admin", VIP[0], ports={81: 8081}, canonical=True)
    admin_1 = pod("admin-1", "10.0.0.13", services=behind(admin))
    for order in ((WEB, admin), (admin, WEB)):
        state = mesh(CLIENT, WEB_1, admin_1, *order)
        assert hbone(going(state, CLIENT, VIP)).service == WEB
        assert hbone(going(state, CLIENT, (VIP[0], 81))).service == admin
        state.remove(admin.key)
        assert hbone(going(state, CLIENT, VIP)).service == WEB


def test_a_service_visible_in_its_namespace_only_is_unknown_to_others() -> None:
    hidden = replace(WEB, visibility=Visibility.NAMESPACE)
    stranger = pod("s", "10.0.0.3", namespace="else")
    state = mesh(CLIENT, hidden, WEB_1)
    assert hbone(going(state, CLIENT, VIP)).service == hidden
    decision = going(state, stranger, VIP)
    assert isinstance(decision, Passthrough)
    assert "visible in its own namespace only" in decision.reason


def block(name: str, cidr: str, **fields: Any) -> Service:
    return replace(
        service(name, ports={80: 0}, **fields), cidr_vips=(CidrVip("", parse_network(cidr)),)
    )


def test_an_address_in_a_block_means_the_narrowest_block() -> None:
    wide = replace(block("wide", "240.0.0.0/8"), ports={80: 8080})
    narrow = replace(block("narrow", "240.240.0.0/16"), ports={80: 8080})
    wide_1 = pod("wide-1", "10.0.1.1", services=behind(wide))
    narrow_1 = pod("narrow-1", "10.0.1.2", services=behind(narrow))
    state = mesh(CLIENT, wide, narrow, wide_1, narrow_1)
    assert hbone(going(state, CLIENT, ("240.240.7.7", 80))).service == narrow
    assert hbone(going(state, CLIENT, ("240.1.7.7", 80))).service == wide
    assert isinstance(going(state, CLIENT, ("241.0.0.1", 80)), Passthrough)


def test_single_addresses_and_pods_are_meant_before_blocks() -> None:
    wide = block("wide", "10.0.0.0/8", load_balancing=LoadBalancing(mode=PASSTHROUGH))
    state = mesh(CLIENT, wide, WEB, WEB_1)
    assert hbone(going(state, CLIENT, VIP)).service == WEB
    assert hbone(going(state, CLIENT, ("10.0.0.11", 80))).service is None
    assert isinstance(going(state, CLIENT, ("10.7.7.7", 80)), Passthrough)


PASSTHROUGH = LoadBalancingMode.PASSTHROUGH


def test_endpoint_updates_reach_services_with_blocks_of_addresses() -> None:
    narrow = replace(block("narrow", "240.240.0.0/16"), ports={80: 8080})
    first = pod("first", "10.0.1.1", services=behind(narrow))
    second = pod("second", "10.0.1.2", services=behind(narrow))
    state = mesh(CLIENT, narrow, first)
    for _ in range(5):
        state.upsert_workload(second)
        state.remove(first.uid)
        assert hbone(going(state, CLIENT, ("240.240.0.1", 80))).workload == second
        state.upsert_workload(first)
        state.remove(second.uid)
        assert hbone(going(state, CLIENT, ("240.240.0.1", 80))).workload == first


def test_a_passthrough_service_sends_to_the_original_destination() -> None:
    external = service("api", "1.2.3.4", load_balancing=LoadBalancing(mode=PASSTHROUGH))
    decision = going(mesh(CLIENT, external), CLIENT, ("1.2.3.4", 443))
    assert isinstance(decision, Passthrough)
    assert decision.next_hop == ("1.2.3.4", 443)
    assert decision.service == external


def test_a_passthrough_service_does_not_lead_out_of_the_tunnel_to_a_pod() -> None:
    external = service("api", "10.0.0.11", load_balancing=LoadBalancing(mode=PASSTHROUGH))
    decision = hbone(going(mesh(CLIENT, external, WEB_1), CLIENT, ("10.0.0.11", 8080)))
    assert decision.workload == WEB_1
    assert decision.service == external


def test_host_network_workloads_are_endpoints_but_own_no_address() -> None:
    node = replace(WEB_1, network_mode=NetworkMode.HOST_NETWORK)
    state = mesh(CLIENT, WEB, node)
    assert hbone(going(state, CLIENT, VIP)).workload == node
    assert isinstance(going(state, CLIENT, ("10.0.0.11", 8080)), Passthrough)


def test_a_pod_owns_its_address_against_what_repeats_it() -> None:
    entry = Workload(uid="Kubernetes/WorkloadEntry/shop/zzz", addresses=("10.0.0.11",))
    done = replace(
        WEB_1, uid="Kubernetes//Pod/shop/zzz-job", name="job", status=WorkloadStatus.UNHEALTHY
    )
    for order in ((entry, done, WEB_1), (WEB_1, done, entry)):
        assert mesh(*order).workload_by_address("", "10.0.0.11") == WEB_1


# -- nothing to connect to ---


def test_without_endpoints_the_refusal_says_what_is_missing() -> None:
    why = refusal(going(mesh(CLIENT, WEB), CLIENT, VIP), RefusalCode.NO_ENDPOINT)
    assert "no healthy upstream" in why.reason
    assert "has no endpoints" in why.reason
    assert why.service == WEB
    state = mesh(CLIENT, WEB, WEB_1)
    why = refusal(going(state, CLIENT, (VIP[0], 81)), RefusalCode.NO_ENDPOINT)
    assert "has no port 81 (its ports: 80)" in why.reason


def test_endpoints_that_failed_can_be_excluded() -> None:
    web_2 = pod("web-2", "10.0.0.12", services=behind(WEB))
    state = mesh(CLIENT, WEB, WEB_1, web_2)
    for seed in range(20):
        decision = going(state, CLIENT, VIP, exclude={WEB_1.uid}, rng=Random(seed))
        assert hbone(decision).workload == web_2
    why = going(state, CLIENT, VIP, exclude={WEB_1.uid, web_2.uid})
    assert "all 2 were tried and failed" in refusal(why, RefusalCode.NO_ENDPOINT).reason


# -- address families ---


def test_the_clients_family_is_preferred_and_the_services_families_obeyed() -> None:
    web = service("web", VIP[0], "fd00:96::1")
    both = pod("web-1", "10.0.0.11", "fd00::11", services=behind(web))
    state = mesh(CLIENT, web, both)
    assert hbone(going(state, CLIENT, VIP)).authority == "10.0.0.11:8080"
    assert hbone(going(state, CLIENT, ("fd00:96::1", 80))).authority == "[fd00::11]:8080"
    state.upsert_service(replace(web, ip_families=IPFamilies.IPV6_ONLY))
    assert hbone(going(state, CLIENT, VIP)).authority == "[fd00::11]:8080"
    state.upsert_service(replace(web, ip_families=IPFamilies.IPV4_ONLY))
    assert hbone(going(state, CLIENT, ("fd00:96::1", 80))).authority == "10.0.0.11:8080"


def test_a_single_address_of_the_other_family_is_used() -> None:
    web = service("web", "fd00:96::1")
    state = mesh(CLIENT, web, replace(WEB_1, services=behind(web)))
    assert hbone(going(state, CLIENT, ("fd00:96::1", 80))).authority == "10.0.0.11:8080"


def test_endpoints_without_an_allowed_family_are_not_chosen() -> None:
    web = replace(WEB, ip_families=IPFamilies.IPV6_ONLY)
    why = refusal(going(mesh(CLIENT, web, WEB_1), CLIENT, VIP), RefusalCode.NO_ENDPOINT)
    assert "family IPv6" in why.reason


# -- waypoints ---


@pytest.mark.parametrize("waypoint", [by_name(WAYPOINT), by_address("10.96.0.9")])
def test_a_service_waypoint_gets_the_original_destination(waypoint: GatewayAddress) -> None:
    web = replace(WEB, waypoint=waypoint)
    state = mesh(CLIENT, web, WEB_1, WAYPOINT, WAYPOINT_1)
    decision = hbone(going(state, CLIENT, VIP))
    assert decision.via is Via.WAYPOINT
    assert decision.next_hop == ("10.0.0.9", 15008)
    assert decision.authority == "10.96.0.1:80"
    assert decision.expected_identities == (identity("waypoint-1"),)
    assert (decision.workload, decision.service) == (WAYPOINT_1, web)


def test_a_waypoint_can_be_a_workload_by_address_or_hostname() -> None:
    alone = pod("alone", "10.0.0.8", hostname="alone.example")
    for waypoint in (by_address("10.0.0.8"), by_name(replace(WAYPOINT, hostname="alone.example"))):
        state = mesh(CLIENT, replace(WEB, waypoint=waypoint), WEB_1, alone)
        assert hbone(going(state, CLIENT, VIP)).next_hop == ("10.0.0.8", 15008)


def test_a_waypoint_by_hostname_is_of_the_namespace_named() -> None:
    elsewhere = pod("alone", "10.0.0.8", namespace="else", hostname="alone.example")
    waypoint = by_name(replace(WAYPOINT, hostname="alone.example"))
    state = mesh(CLIENT, replace(WEB, waypoint=waypoint), WEB_1, elsewhere)
    refusal(going(state, CLIENT, VIP), RefusalCode.NO_WAYPOINT)


def test_a_required_waypoint_that_is_missing_refuses() -> None:
    web = replace(WEB, waypoint=by_name(WAYPOINT))
    why = refusal(going(mesh(CLIENT, web, WEB_1), CLIENT, VIP), RefusalCode.NO_WAYPOINT)
    assert "shop/web requires waypoint shop/waypoint" in why.reason
    assert "is it deployed?" in why.reason
    why = refusal(going(mesh(CLIENT, web, WEB_1, WAYPOINT), CLIENT, VIP), RefusalCode.NO_WAYPOINT)
    assert "has no endpoints" in why.reason
    down = replace(WAYPOINT_1, status=WorkloadStatus.UNHEALTHY)
    state = mesh(CLIENT, web, WEB_1, WAYPOINT, down)
    assert "unhealthy" in refusal(going(state, CLIENT, VIP), RefusalCode.NO_WAYPOINT).reason


def test_a_waypoint_pod_with_an_application_tunnel_needs_no_declared_port() -> None:
    waypoint = replace(WAYPOINT, ports={80: 80})
    tunnel = ApplicationTunnel(ApplicationTunnelProtocol.PROXY, 15088)
    sandwich = pod("sandwich", "10.0.0.9", services=behind(waypoint), application_tunnel=tunnel)
    web = replace(WEB, waypoint=by_name(waypoint))
    state = mesh(CLIENT, web, WEB_1, waypoint, sandwich)
    assert hbone(going(state, CLIENT, VIP)).next_hop == ("10.0.0.9", 15008)
    state.upsert_workload(replace(sandwich, application_tunnel=None))
    refusal(going(state, CLIENT, VIP), RefusalCode.NO_WAYPOINT)


def test_weighted_waypoints_share_connections_by_weight() -> None:
    canary = service("canary", ports={15008: 15008})
    canary_1 = pod("canary-1", "10.0.0.10", services=behind(canary))
    weights = (
        WeightedWaypoint(by_name(WAYPOINT), 80),
        WeightedWaypoint(by_name(canary), 20),
        WeightedWaypoint(by_address("10.9.9.9"), 0),
    )
    web = replace(WEB, waypoint=by_name(WAYPOINT), weighted_waypoints=weights)
    state = mesh(CLIENT, web, WEB_1, WAYPOINT, WAYPOINT_1, canary, canary_1)
    rng = Random(3)
    met = Counter(hbone(going(state, CLIENT, VIP, rng=rng)).workload.name for _ in range(2000))
    assert set(met) == {"waypoint-1", "canary-1"}
    assert 320 < met["canary-1"] < 480


def test_rounding_never_leads_past_the_weights() -> None:
    class Edge(Random):
        """As close to 1 as this can come, and beyond."""

        def random(self) -> float:
            return 1.0

    weights = (WeightedWaypoint(by_name(WAYPOINT), 3), WeightedWaypoint(by_address("10.9.9.9"), 0))
    web = replace(WEB, weighted_waypoints=weights)
    state = mesh(CLIENT, web, WEB_1, WAYPOINT, WAYPOINT_1)
    assert hbone(going(state, CLIENT, VIP, rng=Edge())).workload == WAYPOINT_1


def test_a_waypoint_workload_that_is_unhealthy_or_failed_is_not_used() -> None:
    alone = pod("alone", "10.0.0.8")
    web = replace(WEB, waypoint=by_address("10.0.0.8"))
    state = mesh(CLIENT, web, alone)
    why = going(state, CLIENT, VIP, exclude={alone.uid})
    assert "tried and failed" in refusal(why, RefusalCode.NO_WAYPOINT).reason
    state.upsert_workload(replace(alone, status=WorkloadStatus.UNHEALTHY))
    assert "unhealthy" in refusal(going(state, CLIENT, VIP), RefusalCode.NO_WAYPOINT).reason


def test_a_waypoint_with_only_a_hostname_needs_dns() -> None:
    named = pod("waypoint-1", hostname="waypoint.example", services=behind(WAYPOINT))
    state = mesh(CLIENT, replace(WEB, waypoint=by_name(WAYPOINT)), WAYPOINT, named)
    decision = going(state, CLIENT, VIP)
    assert isinstance(decision, NeedsDns)
    answer = {decision.hostname: ("192.0.2.9",)}
    again = going(state, CLIENT, VIP, resolved=answer, prefer=decision.workload.uid)
    assert hbone(again).next_hop == ("192.0.2.9", 15008)
    assert hbone(again).via is Via.WAYPOINT


def test_without_weights_the_single_waypoint_holds() -> None:
    web = replace(
        WEB,
        waypoint=by_name(WAYPOINT),
        weighted_waypoints=(WeightedWaypoint(by_address("10.9.9.9"), 0),),
    )
    state = mesh(CLIENT, web, WEB_1, WAYPOINT, WAYPOINT_1)
    assert hbone(going(state, CLIENT, VIP)).workload == WAYPOINT_1


def test_a_workloads_waypoint_is_for_traffic_to_its_own_address() -> None:
    web_1 = replace(WEB_1, waypoint=by_name(WAYPOINT))
    state = mesh(CLIENT, WEB, web_1, WAYPOINT, WAYPOINT_1)
    decision = hbone(going(state, CLIENT, ("10.0.0.11", 8080)))
    assert decision.via is Via.WAYPOINT
    assert decision.authority == "10.0.0.11:8080"
    assert decision.service is None
    assert hbone(going(state, CLIENT, VIP)).via is Via.WORKLOAD


def test_the_waypoint_itself_reaches_what_it_stands_before() -> None:
    web = replace(WEB, waypoint=by_name(WAYPOINT))
    web_1 = replace(WEB_1, waypoint=by_name(WAYPOINT))
    state = mesh(CLIENT, web, web_1, WAYPOINT, WAYPOINT_1)
    assert hbone(going(state, WAYPOINT_1, ("10.0.0.11", 8080))).via is Via.WORKLOAD
    assert hbone(going(state, WAYPOINT_1, VIP)).via is Via.WORKLOAD


def test_the_service_account_of_a_waypoint_does_not_make_a_pod_a_waypoint() -> None:
    web_1 = replace(WEB_1, waypoint=by_name(WAYPOINT))
    impostor = replace(CLIENT, service_account=WAYPOINT_1.service_account)
    state = mesh(impostor, WEB, web_1, WAYPOINT, WAYPOINT_1)
    assert hbone(going(state, impostor, ("10.0.0.11", 8080))).via is Via.WAYPOINT


def test_a_missing_waypoint_of_a_workload_refuses_too() -> None:
    web_1 = replace(WEB_1, waypoint=by_address("10.9.9.9"))
    why = going(mesh(CLIENT, web_1), CLIENT, ("10.0.0.11", 8080))
    assert "workload shop/web-1 requires waypoint" in refusal(why, RefusalCode.NO_WAYPOINT).reason


def test_a_waypoint_given_by_name_follows_the_clients_family() -> None:
    both = pod("waypoint-1", "10.0.0.9", "fd00::9", services=behind(WAYPOINT))
    web = service("web", VIP[0], "fd00:96::1", waypoint=by_name(WAYPOINT))
    state = mesh(CLIENT, web, WAYPOINT, both)
    assert hbone(going(state, CLIENT, ("fd00:96::1", 80))).next_hop == ("fd00::9", 15008)
    assert hbone(going(state, CLIENT, VIP)).next_hop == ("10.0.0.9", 15008)
    state.upsert_service(replace(web, waypoint=by_address("10.96.0.9")))
    assert hbone(going(state, CLIENT, ("fd00:96::1", 80))).next_hop == ("10.0.0.9", 15008)


# -- other networks ---

GATEWAY = Workload(
    uid="NetworkGateway/east/172.18.0.1/15008",
    name="gateway",
    namespace="istio-gateways",
    service_account="gateway",
    network="east",
    addresses=("172.18.0.1",),
    tunnel_protocol=TunnelProtocol.HBONE,
)
REMOTE_WEB = replace(WEB, subject_alt_names=(identity("web-1"),))
REMOTE = Workload(
    uid="east/SplitHorizonWorkload/gateway/web",
    name="web",
    namespace="shop",
    network="east",
    tunnel_protocol=TunnelProtocol.HBONE,
    network_gateway=by_address("172.18.0.1", "east"),
    services=behind(WEB),
    capacity=3,
)


def test_another_network_is_reached_by_two_tunnels_through_its_gateway() -> None:
    decision = hbone(going(mesh(CLIENT, REMOTE_WEB, REMOTE, GATEWAY), CLIENT, VIP))
    assert decision.via is Via.GATEWAY
    assert decision.next_hop == ("172.18.0.1", 15008)
    assert decision.authority == "web.shop.svc.cluster.local:80"
    assert decision.expected_identities == (GATEWAY.identity,)
    assert decision.inner_identities == (identity("web-1"),)
    assert decision.workload == GATEWAY


def test_another_network_without_gateway_is_not_an_endpoint() -> None:
    lost = replace(REMOTE, network_gateway=None, addresses=("10.0.0.50",))
    why = going(mesh(CLIENT, REMOTE_WEB, lost), CLIENT, VIP)
    assert "network gateways" in refusal(why, RefusalCode.NO_ENDPOINT).reason


def test_a_gateway_that_is_not_there_refuses() -> None:
    why = going(mesh(CLIENT, REMOTE_WEB, REMOTE), CLIENT, VIP)
    assert "east/172.18.0.1" in refusal(why, RefusalCode.NO_GATEWAY).reason


def test_a_gateway_with_only_a_hostname_needs_dns() -> None:
    named = replace(GATEWAY, addresses=(), hostname="gateway.example")
    remote = replace(REMOTE, network_gateway=by_name(replace(WEB, hostname="gateway.example")))
    named = replace(named, namespace="shop")
    decision = going(mesh(CLIENT, REMOTE_WEB, remote, named), CLIENT, VIP)
    assert isinstance(decision, NeedsDns)
    assert decision.hostname == "gateway.example"


def test_a_remote_waypoint_without_gateway_refuses() -> None:
    waypoint = replace(WAYPOINT, subject_alt_names=(identity("waypoint-1"),))
    alone = replace(REMOTE, uid="east/w", network_gateway=None, addresses=("10.0.0.9",))
    web = replace(WEB, waypoint=by_address("10.0.0.9", "east"))
    why = going(mesh(CLIENT, web, waypoint, alone), CLIENT, VIP)
    assert "has no network gateway" in refusal(why, RefusalCode.NO_GATEWAY).reason


def test_what_cannot_be_verified_beyond_the_gateway_is_refused() -> None:
    why = going(mesh(CLIENT, WEB, REMOTE, GATEWAY), CLIENT, VIP)
    assert "subjectAltNames" in refusal(why, RefusalCode.NO_IDENTITY).reason


def test_a_waypoint_of_another_network_is_reached_through_the_gateway() -> None:
    waypoint = replace(WAYPOINT, subject_alt_names=(identity("waypoint-1"),))
    remote = replace(REMOTE, uid="east/w", services=behind(waypoint))
    web = replace(WEB, waypoint=by_name(waypoint))
    decision = hbone(going(mesh(CLIENT, web, waypoint, remote, GATEWAY), CLIENT, VIP))
    assert decision.via is Via.GATEWAY
    assert decision.inner_identities == (identity("waypoint-1"),)
    assert decision.authority == "web.shop.svc.cluster.local:80"


def test_a_workloads_waypoint_in_another_network_refuses() -> None:
    waypoint = replace(WAYPOINT, subject_alt_names=(identity("waypoint-1"),))
    remote = replace(REMOTE, uid="east/w", services=behind(waypoint))
    web_1 = replace(WEB_1, waypoint=by_name(waypoint))
    why = going(mesh(CLIENT, web_1, waypoint, remote, GATEWAY), CLIENT, ("10.0.0.11", 80))
    assert "use the service's address" in refusal(why, RefusalCode.NO_WAYPOINT).reason


def test_a_local_workload_is_not_reached_through_its_networks_gateway() -> None:
    local = replace(WEB_1, network_gateway=by_address("172.18.0.1", "east"))
    assert hbone(going(mesh(CLIENT, WEB, local), CLIENT, VIP)).via is Via.WORKLOAD


def test_addresses_are_looked_up_in_the_clients_network() -> None:
    east_client = replace(CLIENT, network="east")
    assert isinstance(going(mesh(WEB, WEB_1), east_client, VIP), Passthrough)


# -- what must be asked elsewhere first ---


def test_a_workload_with_only_a_hostname_needs_dns() -> None:
    external = Workload(
        uid="se", name="se", namespace="shop", hostname="db.example", services=behind(WEB)
    )
    state = mesh(CLIENT, WEB, external, WEB_1)
    decision = going(state, CLIENT, VIP, prefer="se")
    assert isinstance(decision, NeedsDns)
    assert decision.hostname == "db.example"
    prefer = decision.workload.uid
    answer = {"db.example": ("2001:db8::1", "192.0.2.1")}
    for seed in range(20):
        again = decide(state, CLIENT, VIP, rng=Random(seed), resolved=answer, prefer=prefer)
        assert isinstance(again, Direct)
        assert again.next_hop == ("192.0.2.1", 8080)
    nothing = going(state, CLIENT, VIP, resolved={"db.example": ()}, prefer=prefer)
    assert "db.example gives none" in refusal(nothing, RefusalCode.NO_ADDRESS).reason


def test_on_demand_asks_for_addresses_once() -> None:
    state = mesh(CLIENT, on_demand=True)
    decision = going(state, CLIENT, VIP)
    assert isinstance(decision, NeedsLookup)
    assert decision.key == "/10.96.0.1"
    state.lookup_finished(decision.key)
    assert isinstance(going(state, CLIENT, VIP), Passthrough)


def test_on_demand_finds_an_answer_that_is_named_otherwise() -> None:
    state = mesh(CLIENT, on_demand=True)
    assert isinstance(going(state, CLIENT, ("10.0.0.11", 80)), NeedsLookup)
    state.upsert_workload(WEB_1)
    assert hbone(going(state, CLIENT, ("10.0.0.11", 80))).workload == WEB_1


@pytest.mark.parametrize(
    ("waypoint", "key"),
    [(by_name(WAYPOINT), WAYPOINT.key), (by_address("10.9.9.9"), "/10.9.9.9")],
)
def test_on_demand_asks_for_waypoints(waypoint: GatewayAddress, key: str) -> None:
    state = mesh(CLIENT, replace(WEB, waypoint=waypoint), WEB_1, on_demand=True)
    decision = going(state, CLIENT, VIP)
    assert isinstance(decision, NeedsLookup)
    assert decision.key == key
    state.lookup_finished(key)
    refusal(going(state, CLIENT, VIP), RefusalCode.NO_WAYPOINT)


def test_on_demand_asks_for_gateways() -> None:
    state = mesh(CLIENT, REMOTE_WEB, REMOTE, on_demand=True)
    decision = going(state, CLIENT, VIP)
    assert isinstance(decision, NeedsLookup)
    assert decision.key == "east/172.18.0.1"
