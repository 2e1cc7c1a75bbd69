from __future__ import annotations

import random

import pytest

from tests.ztunnel.dns.fakes import FakeLookup, vip
from ztunnel.dns.lookup import Client, EndpointRecord, Family, ServiceRecord
from ztunnel.dns.names import labels
from ztunnel.dns.resolver import MeshAnswer, Resolver

PROD = Client(namespace="prod", network="")
WEB = "web.prod.svc.cluster.local"


def ask(
    lookup: FakeLookup,
    name: str,
    family: Family = Family.IPV4,
    client: Client = PROD,
    preferred: str = "",
    ipv6: bool = True,
) -> MeshAnswer | None:
    resolver = Resolver(lookup, "cluster.local", preferred, ipv6, random.Random(1))
    return resolver.resolve(client, labels(name), family)


@pytest.mark.parametrize("name", ["web", "web.prod", "web.prod.svc", WEB])
def test_every_form_of_a_service_name(name: str) -> None:
    assert ask(FakeLookup(vip(WEB, "prod", "10.0.0.1")), name) == MeshAnswer(WEB, ("10.0.0.1",))


def test_unknown_names_are_for_upstream() -> None:
    lookup = FakeLookup(vip(WEB, "prod", "10.0.0.1"))
    assert ask(lookup, "other") is None
    assert ask(lookup, "example.com") is None


def test_an_external_name_found_by_search_domain_gets_an_alias() -> None:
    lookup = FakeLookup(vip("www.example.com", "prod", "240.0.0.1"))
    found = ask(lookup, "www.example.com.prod.svc.cluster.local")
    assert found == MeshAnswer("www.example.com", ("240.0.0.1",), labels("www.example.com"))


def test_a_wildcard_covers_deeper_names_but_not_its_own_root() -> None:
    lookup = FakeLookup(vip("*.example.com", "prod", "240.0.0.2"))
    assert ask(lookup, "a.example.com") == MeshAnswer("*.example.com", ("240.0.0.2",))
    assert ask(lookup, "a.b.example.com") == MeshAnswer("*.example.com", ("240.0.0.2",))
    assert ask(lookup, "example.com") is None


def test_a_wildcard_behind_a_search_domain_has_no_alias() -> None:
    lookup = FakeLookup(vip("*.example.com", "prod", "240.0.0.2"))
    found = ask(lookup, "a.example.com.svc.cluster.local")
    assert found == MeshAnswer("*.example.com", ("240.0.0.2",))


def test_an_exact_name_goes_before_a_wildcard() -> None:
    lookup = FakeLookup(
        vip("*.example.com", "prod", "240.0.0.2"), vip("a.example.com", "prod", "240.0.0.3")
    )
    assert ask(lookup, "a.example.com") == MeshAnswer("a.example.com", ("240.0.0.3",))


def test_which_namespace_is_taken() -> None:
    def named(namespace: str, address: str, canonical: bool = False) -> ServiceRecord:
        return vip("db.example.com", namespace, address, canonical=canonical)

    first, second = named("a", "240.0.0.1"), named("b", "240.0.0.2")
    canonical, own = named("c", "240.0.0.3", canonical=True), named("prod", "240.0.0.4")

    def address(*services: ServiceRecord, preferred: str = "") -> str:
        found = ask(FakeLookup(*services), "db.example.com", preferred=preferred)
        assert found is not None
        return found.addresses[0]

    assert address(first, second) == "240.0.0.1"
    assert address(first, second, preferred="b") == "240.0.0.2"
    assert address(first, second, canonical, preferred="b") == "240.0.0.3"
    assert address(first, second, canonical, own, preferred="b") == "240.0.0.4"


def test_a_private_service_is_not_there_for_other_namespaces() -> None:
    lookup = FakeLookup(vip("db.example.com", "secret", "240.0.0.1", namespace_only=True))
    assert ask(lookup, "db.example.com") is None
    own = Client("secret", "")
    assert ask(lookup, "db.example.com", client=own) is not None


def test_only_addresses_of_the_clients_network() -> None:
    service = ServiceRecord(WEB, "prod", (("east", "10.0.0.1"), ("west", "10.1.0.1")))
    found = ask(FakeLookup(service), WEB, client=Client("prod", "west"))
    assert found == MeshAnswer(WEB, ("10.1.0.1",))
    assert ask(FakeLookup(service), WEB) == MeshAnswer(WEB, ())


def test_families_of_a_service_and_of_the_proxy() -> None:
    both = FakeLookup(vip(WEB, "prod", "10.0.0.1", "fd00::1"))
    assert ask(both, WEB, Family.IPV6) == MeshAnswer(WEB, ("fd00::1",))
    assert ask(both, WEB, Family.IPV6, ipv6=False) == MeshAnswer(WEB, ())
    only4 = vip(WEB, "prod", "10.0.0.1", "fd00::1", families=frozenset({Family.IPV4}))
    assert ask(FakeLookup(only4), WEB, Family.IPV6) == MeshAnswer(WEB, ())
    assert ask(FakeLookup(only4), WEB, Family.IPV4) == MeshAnswer(WEB, ("10.0.0.1",))


def headless() -> FakeLookup:
    return FakeLookup(
        ServiceRecord("db.prod.svc.cluster.local", "prod"),
        endpoints={
            "db.prod.svc.cluster.local": (
                EndpointRecord("db-0", "", ("10.0.1.1", "10.0.9.1", "fd00::a")),
                EndpointRecord("db-1", "", ("10.0.1.2",)),
                EndpointRecord("db-0", "elsewhere", ("10.9.9.9",)),
            )
        },
    )


def test_a_headless_service_has_one_address_of_each_endpoint() -> None:
    found = ask(headless(), "db")
    assert found is not None
    assert sorted(found.addresses) == ["10.0.1.1", "10.0.1.2"]
    assert ask(headless(), "db", Family.IPV6) == MeshAnswer(
        "db.prod.svc.cluster.local", ("fd00::a",)
    )


@pytest.mark.parametrize("name", ["db-0.db.prod.svc.cluster.local", "db-0.db", "db-0.db.prod.svc"])
def test_a_pod_of_a_headless_service_by_name(name: str) -> None:
    found = ask(headless(), name)
    assert found == MeshAnswer("db.prod.svc.cluster.local", ("10.0.1.1",))


def test_a_pod_that_a_headless_service_does_not_have_is_for_upstream() -> None:
    assert ask(headless(), "db-7.db.prod.svc.cluster.local") is None


def test_a_pod_of_a_service_with_an_address_is_for_upstream() -> None:
    assert ask(FakeLookup(vip(WEB, "prod", "10.0.0.1")), f"pod.{WEB}") is None


def test_an_external_name_without_address_belongs_to_the_real_dns() -> None:
    name = "db.example.com"
    lookup = FakeLookup(
        ServiceRecord(name, "prod"), endpoints={name: (EndpointRecord("x", "", ("1.2.3.4",)),)}
    )
    assert ask(lookup, name) is None


def test_the_pods_own_search_domains_count() -> None:
    lookup = FakeLookup(vip("db.example.com", "prod", "240.0.0.1"))
    assert ask(lookup, "db.example.com.corp.test") is None
    client = Client("prod", "", search_domains=(labels("corp.test"),))
    found = ask(lookup, "db.example.com.corp.test", client=client)
    assert found == MeshAnswer("db.example.com", ("240.0.0.1",), labels("db.example.com"))


def test_addresses_are_shuffled() -> None:
    addresses = tuple(f"10.0.0.{n}" for n in range(1, 9))
    resolver = Resolver(FakeLookup(vip(WEB, "prod", *addresses)), rng=random.Random(7))
    orders = set()
    for _ in range(20):
        found = resolver.resolve(PROD, labels(WEB), Family.IPV4)
        assert found is not None
        assert sorted(found.addresses) == sorted(addresses)
        orders.add(found.addresses)
    assert len(orders) > 10
