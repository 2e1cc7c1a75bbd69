"""NetworkPolicies by the rules of their definition, and what tunnels make of them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from daemonset.cluster.network_policy import EGRESS, INGRESS, End, Policy, passage, read_policy
from daemonset.cluster.tunnels import blocked_tunnels, widened_ports
from daemonset.control_plane.objects.section import ObjectError

WEB = End("shop", "web-1", {"app": "web"}, {"team": "a"}, ("10.0.0.1",))
DB = End("shop", "db-1", {"app": "db"}, {"team": "a"}, ("10.0.0.2",), {"sql": 5432})
FAR = End("far", "far-1", {"app": "web"}, {"team": "b"}, ("10.1.0.1",))


def policy(spec: str, name: str = "p", namespace: str = "shop") -> Policy:
    return read_policy(
        {"metadata": {"name": name, "namespace": namespace}, "spec": yaml.safe_load(spec)}
    )


@pytest.mark.parametrize(
    ("spec", "source", "port", "lets"),
    [
        ("{podSelector: {}, ingress: []}", WEB, 1, False),
        ("{podSelector: {}}", WEB, 1, False),
        ("{podSelector: {}, ingress: [{}]}", FAR, 1, True),
        ("{podSelector: {matchLabels: {app: other}}, ingress: []}", WEB, 1, True),
        ("{podSelector: {}, policyTypes: [Egress]}", WEB, 1, True),
        ("{podSelector: {}, ingress: [{ports: [{port: 80}]}]}", WEB, 80, True),
        ("{podSelector: {}, ingress: [{ports: [{port: 80}]}]}", WEB, 81, False),
        ("{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 90}]}]}", WEB, 90, True),
        ("{podSelector: {}, ingress: [{ports: [{port: 80, protocol: UDP}]}]}", WEB, 80, False),
        ("{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}", WEB, 7, True),
        ("{podSelector: {}, ingress: [{ports: [{port: sql}]}]}", WEB, 5432, True),
        ("{podSelector: {}, ingress: [{ports: [{port: web}]}]}", WEB, 5432, False),
        ("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", WEB, 1, True),
        ("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", FAR, 1, False),
        ("{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}", FAR, 1, True),
        (
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}},"
            " podSelector: {matchLabels: {app: db}}}]}]}",
            FAR,
            1,
            False,
        ),
        ("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16}}]}]}", WEB, 1, True),
        ("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16}}]}]}", FAR, 1, False),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8,"
            " except: [10.1.0.0/16]}}]}]}",
            FAR,
            1,
            False,
        ),
        (
            "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]},"
            " ingress: []}",
            WEB,
            1,
            True,
        ),
    ],
)
def test_what_a_policy_lets_in(spec: str, source: End, port: int, lets: bool) -> None:
    assert passage([policy(spec)], INGRESS, source, DB).lets(port) is lets


def test_a_block_of_one_family_holds_pods_of_two() -> None:
    only = policy("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16}}]}]}")
    both = End("shop", "x", {}, {}, ("10.0.0.9", "fd00::9"))
    assert passage([only], INGRESS, both, DB).lets(1)
    assert not passage([only], INGRESS, End("shop", "y", {}, {}, ("fd00::9",)), DB).lets(1)


def test_rules_of_several_policies_add_up() -> None:
    policies = [
        policy("{podSelector: {}, ingress: [{ports: [{port: 80}]}]}", "a"),
        policy("{podSelector: {}, ingress: [{ports: [{port: 81}]}]}", "b"),
        policy("{podSelector: {}, ingress: []}", "c", "far"),
    ]
    way = passage(policies, INGRESS, WEB, DB)
    assert [way.lets(port) for port in (80, 81, 82)] == [True, True, False]
    assert not passage(policies, EGRESS, WEB, DB).isolated


def test_what_goes_out() -> None:
    only_db = policy("{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector:"
                     " {matchLabels: {app: db}}}], ports: [{port: sql}]}]}")  # fmt: skip
    assert passage([only_db], EGRESS, WEB, DB).lets(5432)
    assert not passage([only_db], EGRESS, WEB, DB).lets(80)
    assert not passage([only_db], EGRESS, WEB, FAR).lets(5432)


IN_8080 = "{podSelector: {matchLabels: {app: db}}, ingress: [{}, {ports: [{port: 8080}]}]}"


def test_a_rule_that_breaks_tunnels_is_named_with_an_example() -> None:
    rules = policy(
        "{podSelector: {matchLabels: {app: db}}, ingress:"
        " [{from: [{podSelector: {matchLabels: {app: x}}}]},"
        "  {from: [{podSelector: {}}], ports: [{port: 8080}, {port: 9090}]}]}"
    )
    [found] = blocked_tunnels([rules], [WEB, DB, FAR])
    assert str(found.policy) == "NetworkPolicy shop/p"
    assert found.field == "spec.ingress[1].ports"
    assert (found.direction, found.source, found.destination) == (
        INGRESS,
        "shop/web-1",
        "shop/db-1",
    )
    assert found.port == 8080
    assert found.others == 1  # pods of the database among each other


@pytest.mark.parametrize(
    "spec",
    [
        "{podSelector: {}, ingress: []}",  # nobody could talk before either
        "{podSelector: {}, ingress: [{ports: [{port: 53, protocol: UDP}]}]}",
        IN_8080,  # another rule lets everything in
        "{podSelector: {}, ingress: [{ports: [{port: 8080}, {port: 15008}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15100}]}]}",
        "{podSelector: {matchLabels: {app: nobody}}, ingress: [{ports: [{port: 80}]}]}",
        # Only somebody outside of the cluster is let in, who has no tunnel.
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports:"
        " [{port: 80}]}]}",
    ],
)
def test_rules_that_break_nothing(spec: str) -> None:
    assert blocked_tunnels([policy(spec)], [WEB, DB, FAR]) == []


def test_both_ends_must_agree() -> None:
    out = policy("{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress],"
                 " egress: [{ports: [{port: 5432}]}]}", "out")  # fmt: skip
    into = policy("{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 80}]}]}", "in")
    # 80 is let in and 5432 out: they never could talk.
    assert [one.source for one in blocked_tunnels([out, into], [WEB, DB])] == [
        "shop/web-1",
        "shop/db-1",
    ]
    [found] = blocked_tunnels([out], [WEB, DB])
    assert (found.direction, found.field) == (EGRESS, "spec.egress[0].ports")


def test_a_cluster_of_thousands_is_looked_through_by_kinds() -> None:
    pods = [
        End(
            "shop",
            f"db-{n}",
            {"app": "db", "pod-template-hash": str(n)},
            {},
            (f"10.2.{n % 250}.1",),
        )
        for n in range(5000)
    ]
    [found] = blocked_tunnels(
        [policy("{podSelector: {}, ingress: [{ports: [{port: 8080}]}]}")], pods
    )
    assert found.others == 0


def test_rules_about_ports_that_tunnels_go_around() -> None:
    limited = policy("{podSelector: {}, ingress: [{ports: [{port: 8080}]}]}", "limited")
    tunnels = policy("{podSelector: {}, ingress: [{ports: [{port: 15008}]}]}", "tunnels")
    assert widened_ports([limited], [WEB, DB]) == []
    [found] = widened_ports([limited, tunnels], [WEB, DB])
    assert (found.policy.name, found.field) == ("limited", "spec.ingress[0].ports")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["podSelector", "ingress", "egress", "from", "to", "ports", "port", "endPort",
             "ipBlock", "cidr", "except", "namespaceSelector", "matchLabels", "policyTypes"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_whatever_is_written_is_read_or_refused(spec: Any) -> None:
    with contextlib.suppress(ObjectError):
        found = read_policy({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
        for direction in (INGRESS, EGRESS):
            passage([found], direction, WEB, DB)
        blocked_tunnels([found], [WEB, DB])
