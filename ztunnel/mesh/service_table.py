"""The services of the mesh with their endpoints, found by name, address or block of addresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ztunnel.mesh.address import ip_bits, is_ipv6
from ztunnel.mesh.selection import Selection
from ztunnel.mesh.service import CidrVip, Service
from ztunnel.mesh.workload import Placement, Workload

SelectionKey = tuple[int, bool, str | Placement]


class ServiceRecord:
    """A service and what is known of it.

    Endpoints may arrive before their service: `service` is then None, and nothing finds the
    record except its endpoints. `selections` is load balancing's memory of what it worked out;
    it is emptied by every change.
    """

    __slots__ = ("endpoints", "key", "selections", "service")

    def __init__(self, key: str) -> None:
        self.key = key
        self.service: Service | None = None
        self.endpoints: dict[str, Workload] = {}
        self.selections: dict[SelectionKey, Selection] = {}


class _CidrIndex:
    """Blocks of addresses of one network, by family and prefix length."""

    __slots__ = ("_by_length",)

    def __init__(self) -> None:
        self._by_length: dict[tuple[bool, int, int], dict[int, list[ServiceRecord]]] = {}

    @staticmethod
    def _where(vip: CidrVip) -> tuple[tuple[bool, int, int], int]:
        cidr = vip.cidr
        where = (cidr.version == 6, cidr.prefixlen, int(cidr.netmask))
        return where, int(cidr.network_address)

    def add(self, vip: CidrVip, record: ServiceRecord) -> None:
        where, block = self._where(vip)
        records = self._by_length.setdefault(where, {}).setdefault(block, [])
        if record not in records:
            records.append(record)

    def discard(self, vip: CidrVip, record: ServiceRecord) -> None:
        where, block = self._where(vip)
        blocks = self._by_length.get(where, {})
        records = blocks.get(block, [])
        if record in records:
            records.remove(record)
            if not records:
                del blocks[block]
                if not blocks:
                    del self._by_length[where]

    def find(self, ip: str) -> Iterator[tuple[int, ServiceRecord]]:
        """Every record whose block holds the address, with the length of the prefix."""
        if not self._by_length:
            return
        ipv6, bits = is_ipv6(ip), ip_bits(ip)
        for (block_ipv6, length, mask), blocks in self._by_length.items():
            if block_ipv6 is ipv6:
                for record in blocks.get(bits & mask, ()):
                    yield length, record


class ServiceTable:
    """Every service, its endpoints and its addresses."""

    __slots__ = ("_by_cidr", "_by_hostname", "_by_vip", "_records", "count")

    def __init__(self) -> None:
        self.count = 0
        self._records: dict[str, ServiceRecord] = {}
        self._by_vip: dict[str, dict[str, list[ServiceRecord]]] = {}
        self._by_cidr: dict[str, _CidrIndex] = {}
        self._by_hostname: dict[str, list[ServiceRecord]] = {}

    def __iter__(self) -> Iterator[ServiceRecord]:
        return (record for record in self._records.values() if record.service is not None)

    def get(self, key: str) -> ServiceRecord | None:
        """The record of "namespace/hostname", if the service itself is known."""
        record = self._records.get(key)
        return record if record is not None and record.service is not None else None

    def at_vip(self, network: str, ip: str) -> list[ServiceRecord]:
        """Every service with exactly this address."""
        of_network = self._by_vip.get(network)
        return of_network.get(ip, []) if of_network is not None else []

    def at_address(self, network: str, ip: str) -> list[ServiceRecord]:
        """Every service with this address, alone or in a block of addresses."""
        index = self._by_cidr.get(network)
        blocks = [record for _, record in index.find(ip)] if index is not None else []
        return list(dict.fromkeys([*self.at_vip(network, ip), *blocks]))

    def find_by_vip(self, network: str, ip: str, namespace: str, port: int) -> ServiceRecord | None:
        """The service that a client in `namespace` means by this address.

        Of several: the client's own namespace, then one that has the port, then the canonical
        one, then the first by name.
        """
        of_network = self._by_vip.get(network)
        if of_network is None:
            return None
        records = of_network.get(ip)
        if records is None:
            return None
        return _best(((0, record) for record in records), namespace, port)

    def find_by_cidr(
        self, network: str, ip: str, namespace: str, port: int
    ) -> ServiceRecord | None:
        """The service with the block of addresses that fits best.

        Of several: the client's own namespace, then the longest prefix, then as for an address.
        """
        index = self._by_cidr.get(network)
        return _best(index.find(ip), namespace, port) if index is not None else None

    def at_hostname(self, hostname: str) -> list[ServiceRecord]:
        """Every service of that name, in any namespace."""
        return self._by_hostname.get(hostname.lower(), [])

    def upsert(self, service: Service) -> bool:
        """Take over a service; False when nothing changes by it."""
        record = self._record(service.key)
        if record.service == service:
            return False
        if record.service is not None:
            self._unlink(record, record.service)
        record.service = service
        record.selections.clear()
        self._link(record, service)
        return True

    def remove(self, key: str) -> Service | None:
        """Take a service away; gives what it was. Its endpoints stay for its return."""
        record = self.get(key)
        if record is None or record.service is None:
            return None
        service = record.service
        self._unlink(record, service)
        record.service = None
        record.selections.clear()
        self._drop_if_empty(record)
        return service

    def set_endpoints(
        self, old: Workload | None, new: Workload | None, services: Mapping[str, object]
    ) -> set[str]:
        """Replace a workload among the endpoints of services; gives the keys touched.

        `services` holds the keys that `new` is an endpoint of.
        """
        touched = set()
        if old is not None:
            for key in old.services:
                if new is None or key not in services:
                    record = self._records[key]
                    del record.endpoints[old.uid]
                    record.selections.clear()
                    self._drop_if_empty(record)
                    touched.add(key)
        if new is not None:
            for key in services:
                record = self._record(key)
                record.endpoints[new.uid] = new
                record.selections.clear()
                touched.add(key)
        return touched

    def _record(self, key: str) -> ServiceRecord:
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = ServiceRecord(key)
        return record

    def _drop_if_empty(self, record: ServiceRecord) -> None:
        if record.service is None and not record.endpoints:
            del self._records[record.key]

    def _link(self, record: ServiceRecord, service: Service) -> None:
        self.count += 1
        for vip in service.vips:
            records = self._by_vip.setdefault(vip.network, {}).setdefault(vip.address, [])
            if record not in records:
                records.append(record)
        for block in service.cidr_vips:
            self._by_cidr.setdefault(block.network, _CidrIndex()).add(block, record)
        self._by_hostname.setdefault(service.hostname.lower(), []).append(record)

    def _unlink(self, record: ServiceRecord, service: Service) -> None:
        self.count -= 1
        for vip in service.vips:
            of_network = self._by_vip[vip.network]
            records = of_network.get(vip.address, [])
            if record in records:
                records.remove(record)
                if not records:
                    del of_network[vip.address]
        for block in service.cidr_vips:
            self._by_cidr[block.network].discard(block, record)
        named = self._by_hostname[service.hostname.lower()]
        named.remove(record)
        if not named:
            del self._by_hostname[service.hostname.lower()]


def _best(
    found: Iterable[tuple[int, ServiceRecord]], namespace: str, port: int
) -> ServiceRecord | None:
    best: ServiceRecord | None = None
    best_rank: tuple[bool, int, bool, bool] | None = None
    for length, record in found:
        service = record.service
        if service is None or not service.visible_to(namespace):
            continue
        rank = (service.namespace == namespace, length, port in service.ports, service.canonical)
        if (
            best is None
            or best_rank is None
            or rank > best_rank
            or (rank == best_rank and record.key < best.key)
        ):
            best, best_rank = record, rank
    return best


def best_by_name(records: Iterable[ServiceRecord], namespace: str) -> ServiceRecord | None:
    """Of services with one hostname, the one that a client in `namespace` means.

    The client's own namespace, then the canonical one, then the first by name.
    """
    best: ServiceRecord | None = None
    best_rank: tuple[bool, bool] | None = None
    for record in records:
        service = record.service
        if service is None or not service.visible_to(namespace):
            continue
        rank = (service.namespace == namespace, service.canonical)
        if (
            best is None
            or best_rank is None
            or rank > best_rank
            or (rank == best_rank and record.key < best.key)
        ):
            best, best_rank = record, rank
    return best
