"""What is found by demand is what evaluation of every policy finds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ztunnel.mesh import strategies
from tests.ztunnel.mesh.builders import allow, identity, rule
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.policy import Authorization, StringMatch, StringMatchKind
from ztunnel.mesh.policy_index import PolicyGroup, PolicySet, demands
from ztunnel.mesh.policy_match import CompiledPolicy

_connections = st.builds(
    ConnectionAttributes,
    strategies.ips,
    st.none() | strategies.identities,
    strategies.ips,
    strategies.ports,
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(strategies.policies, max_size=30),
    st.lists(st.integers(0, 29), max_size=10),
    st.lists(_connections, min_size=1, max_size=4),
)
def test_a_group_finds_what_one_by_one_would(
    written: list[Authorization],
    removed: list[int],
    connections: list[ConnectionAttributes],
) -> None:
    policies = [
        CompiledPolicy(replace(policy, name=f"{policy.name}{number}"))
        for number, policy in enumerate(written)
    ]
    sets = (PolicySet(), PolicySet())
    for number, policy in enumerate(policies):
        sets[number % 2].add(policy)
    left = dict(enumerate(policies))
    for number in removed:
        if number in left:
            sets[number % 2].remove(left.pop(number))
    group = PolicyGroup(sets)
    in_order = sorted(left.values(), key=lambda policy: policy.key)
    assert list(group) == in_order
    assert len(group) == len(in_order)
    for connection in connections:
        applying = [
            (policy, policy.first_rule(connection))
            for policy in in_order
            if policy.first_rule(connection)
        ]
        assert group.all(connection) == applying
        assert group.first(connection) == (applying[0] if applying else None)


def test_only_policies_that_may_apply_are_evaluated() -> None:
    policies = PolicySet()
    for number in range(5000):
        name = identity(f"client-{number}").principal
        policies.add(CompiledPolicy(allow(f"p{number}", rule(principals=(name,)))))
    connection = ConnectionAttributes("10.0.0.1", identity("client-77"), "10.0.0.2", 80)
    assert [policy.policy.name for policy in policies.candidates(connection)] == ["p77"]


PREFIX = StringMatch(StringMatchKind.PREFIX, "cluster.local/")


def test_a_prefix_demands_nothing_exact_but_the_port_beside_it_does() -> None:
    anyone = CompiledPolicy(allow("a", rule(principals=(PREFIX,))))
    at_port = CompiledPolicy(allow("b", rule(principals=(PREFIX,), destination_ports=(80, 81))))
    assert demands(anyone) is None
    assert demands(at_port) == frozenset((80, 81))
