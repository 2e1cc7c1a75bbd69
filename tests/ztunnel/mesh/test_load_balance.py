"""Which endpoint is chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from tests.ztunnel.mesh.builders import behind, by_address, mesh, pod, service
from ztunnel.mesh import load_balance
from ztunnel.mesh.service import HealthPolicy, LoadBalancing, LoadBalancingMode, Scope, Service
from ztunnel.mesh.service_table import ServiceRecord
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Locality, Workload, WorkloadStatus

WEB = service("web", "10.96.0.1")
HERE = Locality("r1", "z1", "s1")
CLIENT = pod("client", "10.0.0.1", locality=HERE, node="n1", cluster_id="k1")
DOWN = WorkloadStatus.UNHEALTHY


def endpoint(name: str, number: int, **fields: Any) -> Workload:
    made = pod(name, f"10.0.1.{number}", services=behind(WEB))
    fields.setdefault("cluster_id", "k1")
    return replace(made, **fields)


def record_of(state: MeshState) -> ServiceRecord:
    record = state.services.get(WEB.key)
    assert record is not None
    return record


def chosen(state: MeshState, draws: int = 2000, **options: Any) -> Counter[str]:
    rng = Random(5)
    counter: Counter[str] = Counter()
    for _ in range(draws):
        choice = load_balance.choose(
            record_of(state),
            CLIENT,
            80,
            rng,
            **options,
        )
        counter[choice[0].name if choice else "none"] += 1
    return counter


def preferring(mode: LoadBalancingMode, *scopes: Scope, **fields: Any) -> Service:
    return replace(WEB, load_balancing=LoadBalancing(scopes, mode, **fields))


def test_equal_endpoints_are_chosen_equally_often() -> None:
    counts = chosen(mesh(WEB, *(endpoint(f"e{n}", n) for n in range(1, 5))), draws=4000)
    assert len(counts) == 4
    assert all(850 < count < 1150 for count in counts.values())


def test_capacity_is_a_weight() -> None:
    state = mesh(
        WEB,
        endpoint("a", 1, capacity=1),
        endpoint("b", 2, capacity=3),
        endpoint("c", 3, capacity=0),
    )
    counts = chosen(state, draws=4000)
    assert set(counts) == {"a", "b"}
    assert 2800 < counts["b"] < 3200


def test_capacity_zero_everywhere_is_no_endpoint() -> None:
    state = mesh(WEB, endpoint("a", 1, capacity=0))
    assert chosen(state, 1) == {"none": 1}
    assert "capacity 0" in load_balance.why_none(record_of(state), CLIENT, 80)


def test_great_capacities_do_not_overflow() -> None:
    state = mesh(WEB, *(endpoint(f"e{n}", n, capacity=2**32 - n) for n in range(1, 4)))
    assert len(chosen(state)) == 3


def test_unhealthy_endpoints_come_back_with_allow_all_and_with_health() -> None:
    state = mesh(WEB, endpoint("up", 1), endpoint("down", 2, status=DOWN))
    assert set(chosen(state)) == {"up"}
    standard = LoadBalancingMode.STANDARD
    state.upsert_service(preferring(standard, health_policy=HealthPolicy.ALLOW_ALL))
    assert set(chosen(state)) == {"up", "down"}
    state.upsert_service(WEB)
    assert set(chosen(state)) == {"up"}
    state.upsert_workload(endpoint("down", 2))
    assert set(chosen(state)) == {"up", "down"}


def test_only_unhealthy_endpoints_is_said() -> None:
    state = mesh(WEB, endpoint("down", 2, status=DOWN))
    assert "no healthy endpoint (1 unhealthy)" in load_balance.why_none(
        record_of(state), CLIENT, 80
    )


FAILOVER, STRICT = LoadBalancingMode.FAILOVER, LoadBalancingMode.STRICT
SAME_ZONE = endpoint("same-zone", 1, locality=Locality("r1", "z1"))
SAME_REGION = endpoint("same-region", 2, locality=Locality("r1", "z2"))
SAME_NODE = endpoint("same-node", 3, locality=Locality("r2", "z1"), node="n1")
ELSEWHERE = endpoint("elsewhere", 4, locality=Locality("r2", "z1"), cluster_id="k2")
EVERYBODY = (SAME_ZONE, SAME_REGION, SAME_NODE, ELSEWHERE)


@pytest.mark.parametrize(
    ("mode", "scopes", "expected"),
    [
        (FAILOVER, (Scope.REGION, Scope.ZONE), {"same-zone"}),
        (FAILOVER, (Scope.REGION,), {"same-zone", "same-region"}),
        # The first scope that differs ends the count: same zone name in another region is nothing.
        (FAILOVER, (Scope.REGION, Scope.ZONE, Scope.NODE), {"same-zone"}),
        (FAILOVER, (Scope.NODE,), {"same-node"}),
        (FAILOVER, (Scope.CLUSTER,), {"same-zone", "same-region", "same-node"}),
        (FAILOVER, (), {"same-zone", "same-region", "same-node", "elsewhere"}),
        (STRICT, (Scope.REGION,), {"same-zone", "same-region"}),
        (STRICT, (Scope.NODE,), {"same-node"}),
        (STRICT, (Scope.REGION, Scope.ZONE, Scope.SUBZONE), {"none"}),
        (LoadBalancingMode.STANDARD, (Scope.NODE,), {w.name for w in EVERYBODY}),
    ],
)
def test_routing_preferences(
    mode: LoadBalancingMode, scopes: tuple[Scope, ...], expected: set[str]
) -> None:
    state = mesh(preferring(mode, *scopes), *EVERYBODY)
    assert set(chosen(state, 300)) == expected


def test_failover_goes_further_when_the_near_ones_failed_or_are_unhealthy() -> None:
    wanted = preferring(FAILOVER, Scope.REGION, Scope.ZONE)
    state = mesh(wanted, *EVERYBODY)
    assert set(chosen(state, 100, exclude={SAME_ZONE.uid})) == {"same-region"}
    state.upsert_workload(replace(SAME_ZONE, status=DOWN))
    assert set(chosen(state, 100)) == {"same-region"}
    state.upsert_workload(replace(SAME_REGION, capacity=0))
    assert set(chosen(state, 100)) == {"same-node", "elsewhere"}


def test_strict_says_what_nobody_has_in_common() -> None:
    state = mesh(preferring(STRICT, Scope.NODE), SAME_ZONE)
    reason = load_balance.why_none(record_of(state), CLIENT, 80)
    assert "the same node as the client" in reason


def remote(name: str, number: int, **fields: Any) -> Workload:
    gateway = by_address("172.18.0.1", "east")
    return endpoint(name, number, network="east", network_gateway=gateway, **fields)


def test_a_network_that_is_first_counts_most_but_does_not_hide_the_rest() -> None:
    scopes = (Scope.NETWORK, Scope.REGION, Scope.ZONE)
    near = remote("remote-near", 5, locality=HERE)
    far = remote("remote-far", 6, locality=Locality("r9"))
    state = mesh(preferring(FAILOVER, *scopes), ELSEWHERE, near, far)
    assert set(chosen(state, 100)) == {"elsewhere"}
    state.remove(ELSEWHERE.uid)
    assert set(chosen(state, 100)) == {"remote-near"}
    state.upsert_service(preferring(STRICT, *scopes))
    assert set(chosen(state, 100)) == {"none"}


def test_a_network_that_is_not_first_ends_the_count_like_any_scope() -> None:
    scopes = (Scope.REGION, Scope.NETWORK, Scope.ZONE)
    near = remote("remote-near", 5, locality=HERE)
    other = remote("remote-region", 6, locality=Locality("r1", "z9"))
    state = mesh(preferring(FAILOVER, *scopes), near, other)
    assert set(chosen(state, 100)) == {"remote-near", "remote-region"}


def test_the_target_port_is_the_endpoints_then_the_services() -> None:
    named = replace(WEB, ports={80: 0})
    with_port = endpoint("with", 1, services={WEB.key: {80: 9000}})
    without = endpoint("without", 2, services={WEB.key: {}})
    state = mesh(named, with_port, without)
    for seed in range(10):
        assert load_balance.choose(record_of(state), CLIENT, 80, Random(seed)) == (with_port, 9000)
    state.upsert_service(WEB)
    assert load_balance.choose(record_of(state), CLIENT, 80, Random(1), prefer=without.uid) == (
        without,
        8080,
    )
    state.remove(with_port.uid)
    state.upsert_service(named)
    assert "named target of port 80" in load_balance.why_none(record_of(state), CLIENT, 80)


def test_preferred_endpoints_are_taken_where_they_can_be() -> None:
    state = mesh(WEB, endpoint("a", 1), endpoint("b", 2), endpoint("down", 3, status=DOWN))
    assert set(chosen(state, 50, prefer=endpoint("b", 2).uid)) == {"b"}
    assert set(chosen(state, 50, prefer=endpoint("down", 3).uid)) == {"a", "b"}


def test_what_is_remembered_for_many_ports_stays_bounded() -> None:
    state = mesh(WEB, endpoint("a", 1))
    for port in range(1, 1000):
        load_balance.choose(record_of(state), CLIENT, port, Random(1))
    assert len(record_of(state).selections) <= 64


def test_a_service_that_is_not_known_has_nothing_to_choose_from() -> None:
    unknown = ServiceRecord("shop/unknown")
    assert load_balance.choose(unknown, CLIENT, 80, Random(1)) is None
    assert load_balance.why_none(unknown, CLIENT, 80) == "is not known"
