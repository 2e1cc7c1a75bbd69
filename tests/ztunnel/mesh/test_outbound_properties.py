"""What holds for every decision, whatever the state of the mesh."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.mesh.builders import mesh
from tests.ztunnel.mesh.strategies import ips, ports, services, unhurried, workloads
from ztunnel.mesh.changes import Resource
from ztunnel.mesh.decision import Direct, Hbone, NeedsDns, NeedsLookup, Passthrough, Refuse, Via
from ztunnel.mesh.gateways import serves
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.service import HealthPolicy, LoadBalancingMode
from ztunnel.mesh.workload import TunnelProtocol, Workload, WorkloadStatus

_NAMES = {f"{name}.example": ("192.0.2.1", "2001:db8::1") for name in "abc"}


@unhurried
@given(
    st.lists(services | workloads, max_size=8),
    workloads,
    ips | st.just("127.0.0.1"),
    ports,
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
)
def test_decisions(
    resources: list[Resource],
    source: Workload,
    ip: str,
    port: int,
    seed: int,
    on_demand: bool,
    names_known: bool,
) -> None:
    state = mesh(*resources, source, on_demand=on_demand)
    resolved = _NAMES if names_known else {}
    decision = decide(state, source, (ip, port), rng=Random(seed), resolved=resolved)
    assert len(decision.reason) > 10
    if isinstance(decision, Passthrough):
        assert decision.next_hop == (ip, port)
        if decision.service is None:
            known = state.workload_by_address(source.network, ip)
            assert known is None
    elif isinstance(decision, Direct):
        assert decision.workload.tunnel_protocol is TunnelProtocol.NONE
        assert decision.next_hop[0] in (*decision.workload.addresses, *_NAMES["a.example"])
    elif isinstance(decision, Hbone):
        assert decision.workload.identity in decision.expected_identities
        assert bool(decision.inner_identities) is (decision.via is Via.GATEWAY)
        assert decision.workload.network == source.network or decision.via is Via.GATEWAY
    elif isinstance(decision, NeedsDns):
        assert not names_known
        assert decision.hostname == decision.workload.hostname
    elif isinstance(decision, NeedsLookup):
        assert on_demand
        state.lookup_finished(decision.key)
        again = decide(state, source, (ip, port), rng=Random(seed), resolved=resolved)
        assert not isinstance(again, NeedsLookup) or again.key != decision.key
    else:
        assert isinstance(decision, Refuse)


@unhurried
@given(st.lists(services | workloads, min_size=2, max_size=8), workloads, ips, ports)
def test_no_connection_leaves_a_service_that_requires_a_waypoint_without_it(
    resources: list[Resource], source: Workload, ip: str, port: int
) -> None:
    state = mesh(*resources, source)
    decision = decide(state, source, (ip, port), rng=Random(1), resolved=_NAMES)
    service = decision.service
    if service is None or not service.waypoints():
        return
    past_it = isinstance(decision, Direct | Passthrough) or (
        isinstance(decision, Hbone) and decision.via is Via.WORKLOAD
    )
    if past_it:
        assert any(serves(state, source, waypoint) for waypoint in service.waypoints())


@unhurried
@given(st.lists(services | workloads, max_size=8), workloads, ips, ports, st.integers(0, 3))
def test_unhealthy_and_excluded_endpoints_are_not_chosen(
    resources: list[Resource], source: Workload, ip: str, port: int, seed: int
) -> None:
    state = mesh(*resources, source)
    first = decide(state, source, (ip, port), rng=Random(seed), resolved=_NAMES)
    if not isinstance(first, Hbone | Direct) or first.service is None:
        return
    service = first.service
    if service.load_balancing.mode is LoadBalancingMode.PASSTHROUGH:
        return
    if service.load_balancing.health_policy is HealthPolicy.ONLY_HEALTHY and not (
        isinstance(first, Hbone) and first.via is not Via.WORKLOAD
    ):
        assert first.workload.status is WorkloadStatus.HEALTHY
    excluded = {first.workload.uid}
    second = decide(state, source, (ip, port), rng=Random(seed), resolved=_NAMES, exclude=excluded)
    if isinstance(second, Hbone | Direct):
        assert second.workload.uid not in excluded
