"""A mesh in a few records, for the tests of the DNS proxy."""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.dns.lookup import EndpointRecord, ServiceRecord


class FakeLookup:
    def __init__(
        self,
        *services: ServiceRecord,
        endpoints: dict[str, tuple[EndpointRecord, ...]] | None = None,
    ) -> None:
        self.services = services
        self.endpoints = endpoints or {}

    def services_named(self, hostname: str) -> Iterable[ServiceRecord]:
        return [service for service in self.services if service.hostname == hostname]

    def endpoints_of(self, service: ServiceRecord) -> Iterable[EndpointRecord]:
        return self.endpoints.get(service.hostname, ())


def vip(hostname: str, namespace: str, *addresses: str, **others: object) -> ServiceRecord:
    """A service with virtual addresses in the network ""."""
    return ServiceRecord(
        hostname,
        namespace,
        tuple(("", address) for address in addresses),
        **others,  # type: ignore[arg-type]
    )
