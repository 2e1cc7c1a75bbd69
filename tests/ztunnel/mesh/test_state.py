"""The state's indexes and what it says of changes."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ztunnel.mesh import strategies
from tests.ztunnel.mesh.builders import (
    allow,
    behind,
    deny,
    going,
    identity,
    mesh,
    pod,
    rule,
    service,
)
from ztunnel.mesh.authorize import ConnectionAttributes, authorize
from ztunnel.mesh.changes import Batch, Changes, Resource
from ztunnel.mesh.decision import Hbone, Passthrough
from ztunnel.mesh.policy import Authorization, PolicyScope
from ztunnel.mesh.policy_table import PolicyTable
from ztunnel.mesh.service import Service, Visibility
from ztunnel.mesh.service_table import best_by_name
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload, WorkloadStatus

WEB = service("web", "10.96.0.1")
WEB_1 = pod("web-1", "10.0.0.11", services=behind(WEB))
CLIENT = pod("client", "10.0.0.1")


# -- steps ---


def test_endpoints_and_services_come_in_any_order() -> None:
    for order in ((WEB, WEB_1), (WEB_1, WEB)):
        state = mesh(CLIENT, *order)
        assert isinstance(going(state, CLIENT, ("10.96.0.1", 80)), Hbone)
        assert list(state.endpoints(WEB.key)) == [WEB_1]


def test_endpoints_wait_for_a_service_that_goes_and_returns() -> None:
    state = mesh(CLIENT, WEB, WEB_1)
    state.remove(WEB.key)
    assert isinstance(going(state, CLIENT, ("10.96.0.1", 80)), Passthrough)
    assert list(state.endpoints(WEB.key)) == []
    state.upsert_service(WEB)
    assert isinstance(going(state, CLIENT, ("10.96.0.1", 80)), Hbone)


def test_a_removal_and_an_upsert_of_one_name_in_one_step_is_an_upsert() -> None:
    state = mesh(CLIENT, WEB, WEB_1)
    newer = replace(WEB_1, addresses=("10.0.0.12",))
    changes = state.apply(Batch([newer], removed=[WEB_1.uid, WEB.key]))
    assert changes.workloads == {WEB_1.uid}
    assert changes.removed_workloads == set()
    assert state.workload(WEB_1.uid) == newer
    assert state.service(WEB.key) is None


def test_nothing_new_is_no_change() -> None:
    state = mesh(WEB, WEB_1, allow("a"))
    before = state.generation
    changes = state.apply(Batch([WEB, WEB_1, allow("a")], ["unknown"], ["un/known"]))
    assert not changes
    assert changes == Changes(before)
    assert state.generation == before


def test_changes_name_the_services_whose_endpoints_changed() -> None:
    state = mesh(WEB, WEB_1)
    other = service("other")
    moved = replace(WEB_1, services=behind(other))
    changes = state.upsert_workload(moved)
    assert changes.services == {WEB.key, other.key}
    assert changes.generation == state.generation
    assert state.remove(WEB_1.uid).services == {other.key}


def test_policies_are_replaced_as_a_whole() -> None:
    state = mesh(CLIENT, allow("a"), deny("d"))
    changes = state.replace_policies([deny("d"), deny("e")])
    assert {policy.key for policy in state.policies()} == {"shop/d", "shop/e"}
    assert changes.policies == {"shop/a", "shop/e"}
    assert list(state.workloads) == [CLIENT]


def test_workloads_and_services_that_nobody_names_are_removed() -> None:
    state = mesh(CLIENT, WEB, WEB_1, deny("d"))
    changes = state.keep_only({WEB_1.uid})
    assert list(state.workloads) == [WEB_1]
    assert state.service(WEB.key) is None
    assert changes.removed_workloads == {CLIENT.uid}
    assert [policy.key for policy in state.policies()] == ["shop/d"]


def test_a_policy_may_have_the_name_of_a_service() -> None:
    namesake = deny(WEB.hostname)
    state = mesh(WEB, namesake)
    state.keep_only(())
    assert state.service(WEB.key) is None
    state.remove(namesake.key)
    assert state.policy(namesake.key) == namesake


# -- who must be judged again ---


def rejudged(changes: Changes) -> set[str]:
    elsewhere = pod("w", "10.0.0.50", namespace="else")
    return {workload.name for workload in (WEB_1, elsewhere) if changes.rejudge(workload)}


def test_policies_are_judged_again_where_they_apply() -> None:
    state = mesh(WEB_1)
    mesh_wide = deny("g", scope=PolicyScope.GLOBAL)
    assert rejudged(state.upsert_policy(mesh_wide)) == {"web-1", "w"}
    assert rejudged(state.remove_policy(mesh_wide.key)) == {"web-1", "w"}
    assert rejudged(state.upsert_policy(deny("n"))) == {"web-1"}
    assert rejudged(state.upsert_policy(deny("n", namespace="else"))) == {"w"}
    selected = deny("s", scope=PolicyScope.WORKLOAD_SELECTOR)
    assert rejudged(state.upsert_policy(selected)) == set()


def test_a_policy_that_changes_its_scope_is_judged_where_it_was_too() -> None:
    state = mesh(deny("p"))
    changes = state.upsert_policy(deny("p", scope=PolicyScope.WORKLOAD_SELECTOR))
    assert rejudged(changes) == {"web-1"}


def test_a_named_policy_is_judged_for_whoever_names_it() -> None:
    named = replace(WEB_1, authorization_policies=("root/p",))
    state = mesh(named)
    selected = deny("p", namespace="root", scope=PolicyScope.WORKLOAD_SELECTOR)
    assert state.upsert_policy(selected).rejudge(named)
    assert state.remove_policy("root/p").rejudge(named)


def test_a_change_of_a_workloads_own_list_of_policies_is_noticed() -> None:
    selected = deny("p", (), scope=PolicyScope.WORKLOAD_SELECTOR)
    state = mesh(WEB_1, selected)
    connection = ConnectionAttributes("10.0.0.1", identity("client"), "10.0.0.11", 80)
    assert authorize(state, WEB_1, connection).allowed
    listed = replace(WEB_1, authorization_policies=("shop/p",))
    assert state.upsert_workload(listed).rejudge(listed)
    assert not authorize(state, listed, connection).allowed
    assert state.upsert_workload(WEB_1).rejudge(WEB_1)
    assert authorize(state, WEB_1, connection).allowed


def test_other_changes_of_a_workload_are_not_judged_again() -> None:
    state = mesh(WEB_1)
    assert not state.upsert_workload(replace(WEB_1, status=WorkloadStatus.UNHEALTHY)).rejudge(WEB_1)
    assert state.upsert_workload(replace(WEB_1, service_account="new")).rejudge(WEB_1)
    assert state.remove(WEB_1.uid).rejudge(WEB_1)


# -- look-ups ---


def test_workloads_are_found_in_every_way() -> None:
    named = replace(WEB_1, hostname="Web.Example", node="n1")
    state = mesh(named)
    assert state.workload_by_address("", "10.0.0.11") is named
    assert state.workload_by_address("east", "10.0.0.11") is None
    assert state.workloads_by_hostname("web.example") == [named]
    assert state.local_workload("web-1", "shop", "web-1") is named
    assert state.local_workload("web-1", "shop", "web-1", "n1") is named
    assert state.local_workload("web-1", "shop", "web-1", "n2") is None
    assert state.local_workload("web-1", "shop", "other") is None
    assert state.local_workload("web-1", "else", "web-1") is None


def meant(state: MeshState, hostname: str, namespace: str) -> Service | None:
    """What a client in that namespace means by a hostname."""
    record = best_by_name(state.services.at_hostname(hostname), namespace)
    return record.service if record is not None else None


def test_services_are_found_by_hostname_as_the_client_means_them() -> None:
    def named(namespace: str, **fields: bool) -> Service:
        made = service("api", namespace=namespace)
        return replace(made, hostname="api.example", **fields)  # type: ignore[arg-type]

    first, second = named("aaa"), named("bbb")
    canonical = named("ccc", canonical=True)
    hidden = replace(named("ddd", canonical=True), visibility=Visibility.NAMESPACE)
    state = mesh(second, first, canonical, hidden)
    assert meant(state, "API.example", "bbb") == second
    assert meant(state, "api.example", "else") == canonical
    assert meant(state, "api.example", "ddd") == hidden
    state.remove(canonical.key)
    assert meant(state, "api.example", "else") == first
    assert meant(state, "other.example", "bbb") is None
    assert len(state.services_by_hostname("api.example")) == 3


# -- consistency ---

_steps = st.lists(
    st.one_of(
        strategies.workloads,
        strategies.services,
        strategies.policies,
        st.sampled_from(["k//Pod/a/1", "k//Pod/a/2", "k/we/4", "a/a.example", "b/b.example"]),
        st.tuples(st.sampled_from(["a/p", "b/p", "c/q"])),
    ),
    max_size=25,
)


def answers(state: MeshState) -> list[object]:
    """Everything that can be looked up, in an order that does not depend on history."""
    found: list[object] = [len(state.workloads), state.services.count]
    for network in ("", "east"):
        for ip in ("10.0.0.1", "10.0.0.2", "10.0.1.1", "10.9.9.9", "fd00::1", "fd00::2"):
            found.append(state.workload_by_address(network, ip))
            at_address = state.services_by_address(network, ip)
            found.append(sorted(one.key for one in at_address))
            for namespace in ("a", "b", "c"):
                for lookup in (state.services.find_by_vip, state.services.find_by_cidr):
                    record = lookup(network, ip, namespace, 80)
                    found.append(record.key if record else None)
    for namespace in ("a", "b", "c"):
        for host in ("a.example", "b.example", "c.example"):
            found.append(meant(state, host, namespace))
            found.append(sorted(w.uid for w in state.endpoints(f"{namespace}/{host}")))
            found.append(sorted(w.uid for w in state.workloads_by_hostname(host)))
    for workload in sorted(state.workloads, key=lambda one: one.uid):
        policies = state.effective_policies(workload)
        groups = (
            policies.deny,
            policies.allow,
            policies.dry_run_deny,
            policies.dry_run_allow,
            policies.unreadable,
        )
        found.append([[policy.key for policy in group] for group in groups])
        found.append(policies.unknown)
    return found


@settings(max_examples=150, deadline=None)
@given(_steps, st.integers(1, 5))
def test_any_history_gives_the_indexes_of_a_state_made_afresh(
    steps: list[Resource | str | tuple[str]], size: int
) -> None:
    state = MeshState()
    model: dict[tuple[bool, str], Resource] = {}
    for start in range(0, len(steps), size):
        batch = Batch([], [], [])
        upserts, removed, removed_policies = [], [], []
        for step in steps[start : start + size]:
            if isinstance(step, str):
                removed.append(step)
            elif isinstance(step, tuple):
                removed_policies.append(step[0])
            else:
                upserts.append(step)
        batch = Batch(upserts, removed, removed_policies)
        before = state.generation
        changes = state.apply(batch)
        assert state.generation == before + bool(changes)
        for name in removed:
            model.pop((False, name), None)
        for name in removed_policies:
            model.pop((True, name), None)
        for one in upserts:
            key = one.uid if isinstance(one, Workload) else one.key
            model[isinstance(one, Authorization), key] = one
        for workload in state.workloads:  # fill what is remembered, to see it forgotten
            state.effective_policies(workload)
    afresh = mesh(*model.values())
    assert answers(state) == answers(afresh)
    state.keep_only(())
    state.replace_policies([])
    assert answers(state) == answers(MeshState())


# -- size ---


def test_policies_that_cannot_apply_cost_nothing() -> None:
    connection = ConnectionAttributes("10.0.0.1", identity("client"), "10.0.0.11", 80)
    mine = allow("mine", rule(principals=(identity("client").principal,)))
    state = mesh(WEB_1, mine)

    def cost() -> float:
        best = 1.0
        for _ in range(5):
            start = time.thread_time()  # whoever else wants the processor
            for _ in range(500):
                assert authorize(state, WEB_1, connection).allowed
            best = min(best, time.thread_time() - start)
        return best

    before = cost()
    others = [deny(f"p{n}", (), namespace=f"other{n % 100}") for n in range(10_000)]
    state.apply(Batch(others))
    assert cost() < 5 * before  # ten thousand evaluations would be a thousand times as much
    assert len(state.effective_policies(WEB_1).allow) == 1
    assert len(state.effective_policies(WEB_1).deny) == 0


def test_what_is_remembered_of_policies_stays_bounded() -> None:
    table = PolicyTable()
    table.upsert(deny("d"))
    for number in range(10_001):
        assert table.effective(pod(f"p{number}")).deny
    assert len(table._effective) == 1


def test_only_the_services_own_endpoints_are_looked_at() -> None:
    others = [
        pod(f"p{n}", f"10.{n >> 8}.{n & 255}.9", services=behind(service(f"s{n % 50}")))
        for n in range(2000)
    ]
    state = mesh(CLIENT, WEB, WEB_1, *others)
    decision = going(state, CLIENT, ("10.96.0.1", 80))
    assert isinstance(decision, Hbone)
    record = state.services.get(WEB.key)
    assert record is not None
    assert list(record.endpoints) == [WEB_1.uid]
    assert len(record.selections) == 1


def test_what_workloads_have_in_common_is_there_once_and_stays_so_between_processes() -> None:
    first = pod("a", "10.0.0.1", service_account="web", services=behind(WEB), node="n")
    second = pod("b", "10.0.0.2", service_account="web", services=behind(WEB), node="n")
    copies = [pickle.loads(pickle.dumps(one)) for one in (first, second)]
    assert copies == [first, second]
    for one in (second, *copies):
        assert one.services is first.services
        assert one.identity is first.identity
        assert one.placement is first.placement
        assert one.namespace is first.namespace
