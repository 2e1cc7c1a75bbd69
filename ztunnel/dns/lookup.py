"""What the DNS proxy needs to know of the mesh, and of the pod that asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ztunnel.dns.names import Labels


class Family(Enum):
    IPV4 = 4
    IPV6 = 6


BOTH_FAMILIES = frozenset({Family.IPV4, Family.IPV6})


def family_of(address: str) -> Family:
    """The family of an address in canonical text form."""
    return Family.IPV6 if ":" in address else Family.IPV4


@dataclass(frozen=True, slots=True)
class Client:
    """The pod that asks: what is visible to it, and what its short names mean.

    `search_domains` are those of its resolv.conf; None assumes what the kubelet writes.
    """

    namespace: str
    network: str
    search_domains: tuple[Labels, ...] | None = None


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """A workload behind a service: its own name and its addresses in canonical text form."""

    name: str
    network: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service as DNS sees it.

    `addresses` are (network, address) of its virtual addresses; without any it is headless and is
    answered by its endpoints. `namespace_only` hides it from other namespaces.
    """

    hostname: str
    namespace: str
    addresses: tuple[tuple[str, str], ...] = ()
    families: frozenset[Family] = BOTH_FAMILIES
    canonical: bool = False
    namespace_only: bool = False


class ServiceLookup(Protocol):
    """The mesh state as the resolver reads it. Both methods are cheap and never block."""

    def services_named(self, hostname: str) -> Iterable[ServiceRecord]:
        """Every service with exactly this host name (lower case), of every namespace.

        The name may be a wildcard, `*.example.com`, and then means services of that very name.
        """
        ...

    def endpoints_of(self, service: ServiceRecord) -> Iterable[EndpointRecord]:
        """The endpoints of a headless service that may be given to clients."""
        ...
