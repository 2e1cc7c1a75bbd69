from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.dns.names import (
    assumed_search_domains,
    candidates,
    labels,
    wildcards,
)

DOMAIN = labels("cluster.local")


def tried(name: str, namespace: str = "prod") -> list[str]:
    domains = assumed_search_domains(namespace, DOMAIN)
    return [".".join(c.name) for c in candidates(labels(name), namespace, DOMAIN, domains)]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("web", ["web", "web.prod.svc.cluster.local"]),
        ("web.test", ["web.test", "web.test.svc.cluster.local", "web.test.prod.svc.cluster.local"]),
        (
            "web.test.svc",
            ["web.test.svc", "web.test.svc.cluster.local", "web.test.svc.svc.cluster.local"],
        ),
        ("pod.web.test", ["pod.web.test", "pod.web.test.svc.cluster.local"]),
        ("pod.web.test.svc", ["pod.web.test.svc", "pod.web.test.svc.cluster.local"]),
        ("a.b.c.d", ["a.b.c.d"]),
    ],
)
def test_short_names_get_their_kubernetes_forms(asked: str, expected: list[str]) -> None:
    assert tried(asked) == expected


def test_a_search_domain_that_a_resolver_added_is_taken_off_again() -> None:
    domains = assumed_search_domains("prod", DOMAIN)
    found = candidates(labels("www.example.com.prod.svc.cluster.local"), "prod", DOMAIN, domains)
    stripped = [c for c in found if c.stripped == labels("www.example.com")]
    assert [c.name for c in stripped] == [
        labels("www.example.com"),
        labels("www.example.com.svc.cluster.local"),
    ]
    assert found[0].stripped is None


def test_the_search_domain_itself_leaves_nothing_to_look_up() -> None:
    assert all(c.stripped is None for c in candidates(DOMAIN, "prod", DOMAIN, (DOMAIN,)))


def test_wildcards_go_from_the_closest_to_the_top_level() -> None:
    assert [".".join(w) for w in wildcards(labels("a.b.c"))] == ["*.b.c", "*.c"]
    assert list(wildcards(("a",))) == []


label = st.text("abc*", min_size=1, max_size=2)
names = st.lists(st.one_of(label, st.sampled_from(["svc", "cluster", "local", "prod"])), max_size=8)


@given(names, st.lists(names.map(tuple), max_size=3))
def test_no_candidate_twice_and_the_name_itself_first(
    name: list[str], domains: list[tuple[str, ...]]
) -> None:
    found = candidates(tuple(name), "prod", DOMAIN, tuple(domains))
    assert found[0].name == tuple(name)
    assert len({c.name for c in found}) == len(found)
    for candidate in found:
        assert candidate.stripped is None or tuple(name[: len(candidate.stripped)]) == (
            candidate.stripped
        )
