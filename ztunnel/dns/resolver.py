"""Answers from the mesh: a name and a record type in, addresses or "ask upstream" out."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from ztunnel.dns.lookup import Client, Family, ServiceLookup, ServiceRecord, family_of
from ztunnel.dns.names import (
    Candidate,
    Labels,
    assumed_search_domains,
    candidates,
    is_wildcard,
    labels,
    wildcards,
)


@dataclass(frozen=True, slots=True)
class MeshAnswer:
    """The mesh's own, authoritative answer.

    `addresses` may be empty: the name exists and has no record of that type. `alias` is the name
    the records are given under when a CNAME leads there from the question's name.
    """

    service: str
    addresses: tuple[str, ...]
    alias: Labels | None = None


class Resolver:
    """Answers A and AAAA questions from the services of the mesh.

    Args:
        lookup: the mesh state.
        cluster_domain: the domain of the cluster, `cluster.local`.
        preferred_namespace: whose service is taken when several namespaces have the name, the
            client's has not, and none is canonical.
        ipv6_enabled: False never answers with an IPv6 address.
        rng: shuffles the addresses of an answer.
    """

    def __init__(
        self,
        lookup: ServiceLookup,
        cluster_domain: str = "cluster.local",
        preferred_namespace: str = "",
        ipv6_enabled: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        self._lookup = lookup
        self._domain = labels(cluster_domain)
        self._service_domain = ("svc", *self._domain)
        self._preferred_namespace = preferred_namespace
        self._ipv6_enabled = ipv6_enabled
        self._rng = rng if rng is not None else random.Random()

    def resolve(self, client: Client, name: Labels, family: Family) -> MeshAnswer | None:
        """The mesh's answer to a question of `client`, or None where upstream is to be asked."""
        domains = client.search_domains
        if domains is None:
            domains = assumed_search_domains(client.namespace, self._domain)
        for candidate in candidates(name, client.namespace, self._domain, domains):
            answer = self._answer(client, candidate, family)
            if answer is not None:
                return answer
        return None

    def _answer(self, client: Client, candidate: Candidate, family: Family) -> MeshAnswer | None:
        service = self._service(client, candidate.name)
        if service is not None:
            return self._of_service(client, service, family, candidate.stripped)
        answer = self._of_pod(client, candidate, family)
        if answer is not None:
            return answer
        for wildcard in wildcards(candidate.name):
            service = self._service(client, wildcard)
            if service is not None:
                # The records of a wildcard are given under the name that was asked for.
                return self._of_service(client, service, family, None)
        return None

    def _service(self, client: Client, name: Labels) -> ServiceRecord | None:
        """The service of this very name that `client` is to be answered with."""
        best: ServiceRecord | None = None
        best_rank = -1
        for service in self._lookup.services_named(".".join(name)):
            if service.namespace_only and service.namespace != client.namespace:
                continue
            if not service.addresses and not self._may_be_headless(service):
                continue
            rank = self._rank(client, service)
            if rank > best_rank:
                best, best_rank = service, rank
        return best

    def _rank(self, client: Client, service: ServiceRecord) -> int:
        if service.namespace == client.namespace:
            return 3
        if service.canonical:
            return 2
        return 1 if service.namespace == self._preferred_namespace else 0

    def _may_be_headless(self, service: ServiceRecord) -> bool:
        """Without an address, only a Kubernetes service is headless.

        An external name without an address belongs to the real DNS, whatever its endpoints are.
        """
        name = labels(service.hostname)
        return name[-len(self._service_domain) :] == self._service_domain

    def _of_service(
        self, client: Client, service: ServiceRecord, family: Family, alias: Labels | None
    ) -> MeshAnswer:
        found: Iterable[str]
        if not self._allowed(service, family):
            found = ()
        elif service.addresses:
            found = (
                address
                for network, address in service.addresses
                if network == client.network and family_of(address) is family
            )
        else:
            found = self._endpoint_addresses(client, service, family, None)
        return self._shuffled(service, found, alias)

    def _of_pod(self, client: Client, candidate: Candidate, family: Family) -> MeshAnswer | None:
        """A pod of a headless service by its own name, as a StatefulSet's pods are addressed."""
        if len(candidate.name) < 2 or is_wildcard(candidate.name):
            return None
        pod, parent = candidate.name[0], candidate.name[1:]
        service = self._service(client, parent)
        if service is None or service.addresses:
            return None
        endpoints = self._lookup.endpoints_of(service)
        if not any(endpoint.name.lower() == pod for endpoint in endpoints):
            return None
        found: Iterable[str] = ()
        if self._allowed(service, family):
            found = self._endpoint_addresses(client, service, family, pod)
        return self._shuffled(service, found, candidate.stripped)

    def _allowed(self, service: ServiceRecord, family: Family) -> bool:
        if family is Family.IPV6 and not self._ipv6_enabled:
            return False
        return family in service.families

    def _endpoint_addresses(
        self, client: Client, service: ServiceRecord, family: Family, pod: str | None
    ) -> Iterable[str]:
        """One address of each endpoint: more would weigh a dual-homed endpoint twice."""
        for endpoint in self._lookup.endpoints_of(service):
            if endpoint.network != client.network:
                continue  # an address of another network may be somebody else's in this one
            if pod is not None and endpoint.name.lower() != pod:
                continue
            for address in endpoint.addresses:
                if family_of(address) is family:
                    yield address
                    break

    def _shuffled(
        self, service: ServiceRecord, addresses: Iterable[str], alias: Labels | None
    ) -> MeshAnswer:
        unique = list(dict.fromkeys(addresses))
        self._rng.shuffle(unique)
        return MeshAnswer(service.hostname, tuple(unique), alias)
