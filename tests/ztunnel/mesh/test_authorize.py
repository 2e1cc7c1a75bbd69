"""Who may connect, with examples and against an evaluation written plainly."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.mesh.builders import (
    PRESENT,
    allow,
    deny,
    identity,
    match,
    mesh,
    pod,
    rule,
)
from tests.ztunnel.mesh.strategies import identities, ips, policies, ports, unhurried, workloads
from ztunnel.mesh.authorize import Verdict, authorize
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
)
from ztunnel.mesh.workload import Workload

WEB = pod("web", "10.0.0.11")
CLIENT = identity("client")
SELECTOR = PolicyScope.WORKLOAD_SELECTOR


def connection(
    peer: Identity | None = CLIENT, source: str = "10.0.0.1", port: int = 8080
) -> ConnectionAttributes:
    return ConnectionAttributes(source, peer, "10.0.0.11", port)


def verdict(
    *found: Authorization, peer: Identity | None = CLIENT, to: Workload = WEB, **fields: object
) -> Verdict:
    return authorize(mesh(to, *found), to, connection(peer, **fields))  # type: ignore[arg-type]


# -- actions ---


def test_without_policies_everybody_may() -> None:
    assert verdict() == Verdict(True, "", 0, "allowed: no policy applies to the workload")
    assert verdict(peer=None).allowed


def test_a_denial_names_policy_rule_and_peer() -> None:
    found = verdict(deny("d", rule(destination_ports=(9,)), rule(principals=(CLIENT.principal,))))
    assert (found.allowed, found.policy, found.rule) == (False, "shop/d", 2)
    assert found.reason.startswith("denied by policy shop/d (rule 2): ")
    assert CLIENT.uri in found.reason


def test_a_deny_that_does_not_apply_allows() -> None:
    assert verdict(deny("d", rule(destination_ports=(9,)))).reason == "allowed: no policy denies it"


def test_an_allow_lets_in_what_it_names_and_nothing_else() -> None:
    web = allow("a", rule(destination_ports=(9,)), rule(principals=(CLIENT.principal,)))
    found = verdict(web)
    assert (found.allowed, found.policy, found.rule) == (True, "shop/a", 2)
    refused = verdict(web, peer=identity("other"))
    assert not refused.allowed
    assert "none of the ALLOW policies of shop/web (shop/a) applies" in refused.reason


def test_deny_comes_before_allow() -> None:
    everybody = ()
    found = verdict(allow("a", everybody), deny("d", everybody))
    assert (found.allowed, found.policy) == (False, "shop/d")


def test_an_allow_without_rules_allows_nobody() -> None:
    refused = verdict(allow("nothing"))
    assert not refused.allowed
    assert "shop/nothing has no rules and therefore allows nothing" in refused.reason


def test_a_deny_without_rules_denies_nobody() -> None:
    assert verdict(deny("nothing")).allowed


# -- scopes ---

EVERYBODY = ()


def test_global_policies_are_for_all() -> None:
    everywhere = deny("d", EVERYBODY, namespace="istio-system", scope=PolicyScope.GLOBAL)
    assert not verdict(everywhere).allowed


def test_policies_of_other_namespaces_do_not_apply() -> None:
    assert verdict(deny("d", EVERYBODY, namespace="else")).allowed
    assert verdict(deny("d", EVERYBODY, namespace="else", scope=SELECTOR)).allowed


def test_selector_policies_are_for_workloads_that_name_them() -> None:
    selected = deny("d", EVERYBODY, scope=SELECTOR)
    assert verdict(selected).allowed
    named = replace(WEB, authorization_policies=("shop/d",))
    assert not verdict(selected, to=named).allowed


def test_a_named_policy_that_is_unknown_denies_unless_told_otherwise() -> None:
    named = replace(WEB, authorization_policies=("shop/gone",))
    found = verdict(to=named)
    assert (found.allowed, found.policy, found.rule) == (False, "shop/gone", 0)
    assert "has not been received from the control plane" in found.reason
    lenient = mesh(named, ignore_unknown_policies=True)
    assert authorize(lenient, named, connection()).allowed


def test_a_policy_that_could_not_be_read_denies_unless_told_otherwise() -> None:
    unreadable = replace(deny("d"), unreadable="source_ips: 3 bytes")
    found = verdict(unreadable)
    assert (found.allowed, found.policy) == (False, "shop/d")
    assert "could not be read (source_ips: 3 bytes)" in found.reason
    lenient = mesh(WEB, unreadable, ignore_unknown_policies=True)
    assert authorize(lenient, WEB, connection()).allowed
    assert verdict(replace(unreadable, dry_run=True)).allowed


def test_an_unreadable_version_does_not_replace_a_good_one() -> None:
    good = allow("p", rule(principals=(CLIENT.principal,)))
    bad = replace(deny("p"), unreadable="broken")
    state = mesh(WEB, good)
    assert not state.upsert_policy(bad)
    assert state.policy("shop/p") == good
    state.remove_policy("shop/p")
    state.upsert_policy(bad)
    assert state.upsert_policy(good)
    assert authorize(state, WEB, connection()).allowed


# -- matches ---


def matches(peer: Identity | None = CLIENT, **fields: object) -> bool:
    return verdict(allow("a", rule(**fields)), peer=peer).allowed


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (StringMatchKind.EXACT, "cluster.local/ns/shop/sa/client", True),
        (StringMatchKind.EXACT, "cluster.local/ns/shop/sa", False),
        (StringMatchKind.EXACT, "spiffe://cluster.local/ns/shop/sa/client", False),
        (StringMatchKind.PREFIX, "cluster.local/ns/shop/", True),
        (StringMatchKind.PREFIX, "ns/shop/", False),
        (StringMatchKind.SUFFIX, "/sa/client", True),
        (StringMatchKind.SUFFIX, "/sa/clien", False),
        (StringMatchKind.PRESENCE, "", True),
    ],
)
def test_principals(kind: StringMatchKind, value: str, expected: bool) -> None:
    value_match = StringMatch(kind, value)
    assert matches(principals=(value_match,)) is expected
    assert matches(not_principals=(value_match,)) is not expected
    # Whoever has no identity is none of those named, however they are named.
    assert not matches(None, principals=(value_match,))
    assert matches(None, not_principals=(value_match,))


def test_nobody_has_the_empty_identity() -> None:
    for kind in StringMatchKind:
        for field in ("principals", "namespaces"):
            assert not matches(None, **{field: (StringMatch(kind, ""),)})


def test_namespaces_and_accounts() -> None:
    assert matches(namespaces=("shop",))
    assert not matches(namespaces=("sho",))
    assert not matches(None, namespaces=("shop",))
    assert matches(service_accounts=("shop/client",))
    assert not matches(service_accounts=("else/client", "shop/else"))
    assert matches(identity("client", trust_domain="other"), service_accounts=("shop/client",))
    assert not matches(None, service_accounts=("shop/client",))
    assert matches(None, not_service_accounts=("shop/client",))
    assert not matches(not_service_accounts=("shop/client",))


def test_addresses_and_ports() -> None:
    assert matches(source_ips=("10.0.0.0/24",), destination_ports=(8080, 9))
    assert not matches(source_ips=("10.0.0.0/24",), destination_ports=(9,))
    assert not matches(source_ips=("fd00::/8",))
    assert matches(destination_ips=("10.0.0.11",), not_source_ips=("10.0.0.2/31",))
    assert not matches(not_destination_ips=("10.0.0.8/29",))
    assert not matches(not_destination_ports=(8080,))


def test_strict_mtls_as_control_planes_write_it() -> None:
    strict = deny("strict", rule(not_principals=(PRESENT,)))
    assert not verdict(strict, peer=None).allowed
    assert verdict(strict).allowed
    except_port = ((match(not_principals=(PRESENT,)),), (match(not_destination_ports=(9090,)),))
    partly = deny("strict", except_port)
    assert verdict(partly, peer=None, port=9090).allowed
    assert not verdict(partly, peer=None, port=8080).allowed


def test_nesting_and_empties() -> None:
    yes, no, empty = match(destination_ports=(8080,)), match(destination_ports=(9,)), Match()
    for clauses, expected in [
        ((), True),  # no clauses
        (((),), True),  # an empty clause
        (((empty,),), False),  # a match without conditions
        (((empty, yes),), True),
        (((no, yes),), True),  # matches: or
        (((yes,), (no,)), False),  # clauses: and
        (((yes,), (), (no, yes)), True),
    ]:
        assert verdict(allow("a", clauses)).allowed is expected
        assert verdict(deny("d", clauses)).allowed is not expected


# -- dry run ---


def test_policies_that_are_tried_out_only_report() -> None:
    found = verdict(
        deny("d", EVERYBODY, dry_run=True), allow("a", rule(destination_ports=(9,)), dry_run=True)
    )
    assert found.allowed
    peer = "spiffe://cluster.local/ns/shop/sa/client"
    assert [finding[:2] for finding in found.dry_run] == [("shop/d", False), ("", False)]
    assert found.dry_run[0].words.startswith(f"dry run: policy shop/d (rule 1) would deny {peer}")
    assert "none of the ALLOW policies shop/a would allow" in found.dry_run[1].words
    found = verdict(allow("a", EVERYBODY, dry_run=True), deny("x", EVERYBODY))
    assert not found.allowed
    assert [finding[:2] for finding in found.dry_run] == [("shop/a", True)]
    assert "dry run: policy shop/a (rule 1) would allow" in found.dry_run[0].words
    assert verdict(deny("d", rule(destination_ports=(9,)), dry_run=True)).dry_run == ()


# -- explanations ---


def test_the_nearest_cause_is_the_rule_with_the_fewest_failures() -> None:
    far = allow("far", rule(principals=("x",), destination_ports=(9,), source_ips=("192.0.2.1",)))
    near = allow("near", rule(namespaces=("shop",), destination_ports=(81, 82)))
    reason = verdict(far, near).reason
    assert reason.endswith("nearest: shop/near (rule 1): the port is 8080, not 81 or 82")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"principals": ("x",)}, "the peer's identity is cluster.local/ns/shop/sa/client, not x"),
        ({"not_principals": (PRESENT,)}, "which must not be any"),
        ({"namespaces": ("a", "b", "c", "d", "e")}, "namespace is shop, not a or b or c or 2 more"),
        ({"not_namespaces": ("shop",)}, "namespace is shop, which must not be shop"),
        ({"service_accounts": ("a/b",)}, "not a/b"),
        ({"not_service_accounts": ("shop/client",)}, "must not be shop/client"),
        ({"source_ips": ("192.0.2.0/24",)}, "the source is 10.0.0.1, not 192.0.2.0/24"),
        ({"not_source_ips": ("10.0.0.0/8",)}, "10.0.0.1, which must not be 10.0.0.0/8"),
        ({"destination_ips": ("192.0.2.0/24",)}, "the destination is 10.0.0.11, not"),
        ({"not_destination_ips": ("10.0.0.0/8",)}, "must not be 10.0.0.0/8"),
        ({"not_destination_ports": (8080,)}, "the port is 8080, which must not be 8080"),
        ({}, "a match without conditions never applies"),
    ],
)
def test_each_field_is_explained(fields: dict[str, object], words: str) -> None:
    assert words in verdict(allow("a", rule(**fields))).reason


def test_peers_without_identity_are_told_so() -> None:
    assert (
        "the peer has no identity, not x"
        in verdict(allow("a", rule(principals=("x",))), peer=None).reason
    )


def test_prefixes_and_suffixes_are_written_as_people_do() -> None:
    prefix = StringMatch(StringMatchKind.PREFIX, "a")
    suffix = StringMatch(StringMatchKind.SUFFIX, "b")
    assert "not a* or *b" in verdict(allow("a", rule(principals=(prefix, suffix)))).reason


def test_an_explanation_looks_at_a_bounded_number_of_rules() -> None:
    rules = [rule(principals=(f"x{number}",)) for number in range(5000)]
    wide = allow("wide", (tuple(match(principals=(f"y{n}",)) for n in range(5000)),))
    assert len(verdict(allow("many", *rules), wide).reason) < 1000
    deep = allow("deep", tuple((match(principals=(f"z{n}",)),) for n in range(5000)))
    reason = verdict(deep).reason
    assert "not z39" in reason
    assert "not z40" not in reason


def test_many_policies_are_named_in_part() -> None:
    many = [allow(f"a{number}") for number in range(8)]
    assert "shop/a4 and 3 more" in verdict(*many).reason


# -- against an evaluation written plainly ---


def plain_string(one: StringMatch, text: str) -> bool:
    if text == "":
        return False
    return {
        StringMatchKind.EXACT: text == one.value,
        StringMatchKind.PREFIX: text.startswith(one.value),
        StringMatchKind.SUFFIX: text.endswith(one.value),
        StringMatchKind.PRESENCE: True,
    }[one.kind]


def plain_match(one: Match, peer: Identity | None, source: str, to: str, port: int) -> bool:
    if one == Match():
        return False
    principal = peer.principal if peer else ""
    namespace = peer.namespace if peer else ""
    account = f"{peer.namespace}/{peer.service_account}" if peer else ""
    outcomes = [
        (one.principals, [plain_string(m, principal) for m in one.principals]),
        (one.namespaces, [plain_string(m, namespace) for m in one.namespaces]),
        (one.service_accounts, [str(m) == account for m in one.service_accounts]),
        (one.source_ips, [ipaddress.ip_address(source) in n for n in one.source_ips]),
        (one.destination_ips, [ipaddress.ip_address(to) in n for n in one.destination_ips]),
        (one.destination_ports, [port == p for p in one.destination_ports]),
    ]
    negated = [
        *[plain_string(m, principal) for m in one.not_principals],
        *[plain_string(m, namespace) for m in one.not_namespaces],
        *[str(m) == account for m in one.not_service_accounts],
        *[ipaddress.ip_address(source) in n for n in one.not_source_ips],
        *[ipaddress.ip_address(to) in n for n in one.not_destination_ips],
        *[port == p for p in one.not_destination_ports],
    ]
    return all(not values or any(held) for values, held in outcomes) and not any(negated)


@unhurried
@given(
    workloads,
    st.lists(policies, max_size=5),
    st.none() | identities,
    ips,
    ips,
    ports,
    st.booleans(),
)
def test_verdicts_are_those_of_a_plain_evaluation(
    to: Workload,
    found: list[Authorization],
    peer: Identity | None,
    source: str,
    destination: str,
    port: int,
    lenient: bool,
) -> None:
    by_key = {policy.key: policy for policy in found}
    state = mesh(to, *found, ignore_unknown_policies=lenient)

    def applies(policy: Authorization) -> bool:
        return any(
            all(
                not clause or any(plain_match(m, peer, source, destination, port) for m in clause)
                for clause in one_rule
            )
            for one_rule in policy.rules
        )

    for_it = [
        policy
        for policy in by_key.values()
        if policy.scope is PolicyScope.GLOBAL
        or (policy.scope is PolicyScope.NAMESPACE and policy.namespace == to.namespace)
        or policy.key in to.authorization_policies
    ]
    enforced = [policy for policy in for_it if not policy.dry_run]
    denies = [p for p in enforced if p.action is PolicyAction.DENY and applies(p)]
    allows = [p for p in enforced if p.action is PolicyAction.ALLOW]
    unknown = [name for name in to.authorization_policies if name not in by_key]
    expected = (
        not denies
        and (lenient or not unknown)
        and (not allows or any(applies(policy) for policy in allows))
    )
    answer = authorize(state, to, ConnectionAttributes(source, peer, destination, port))
    assert answer.allowed is expected
    if answer.policy in by_key:
        assert applies(by_key[answer.policy])
        assert answer.rule >= 1
    assert len(answer.dry_run) <= len([p for p in for_it if p.dry_run]) + 1
