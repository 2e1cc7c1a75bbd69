"""All resources at one moment, encoded once and shared by all clients. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from envoy.service.discovery.v3 import discovery_pb2

from daemonset.control_plane.translation.resident import Groups, Viewpoint, needed
from daemonset.control_plane.translation.resource import (
    ADDRESS,
    AUTHORIZATION,
    WORKLOAD,
    Resource,
)

_RESOURCES_TAG = b"\x12"  # DeltaDiscoveryResponse.resources: field 2, length-delimited


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource, ``encoded`` as one element of DeltaDiscoveryResponse.resources."""

    resource: Resource
    encoded: bytes

    @property
    def name(self) -> str:
        return self.resource.name

    @property
    def version(self) -> str:
        return self.resource.version


def encode(resource: Resource, type_url: str) -> bytes:
    """Encode one element of ``resources``; protobuf messages may be joined end to end."""
    payload = resource.payload if type_url == resource.type_url else _inner(resource.payload)
    message = discovery_pb2.Resource(
        name=resource.name, version=resource.version, aliases=resource.aliases
    )
    message.resource.type_url = type_url
    message.resource.value = payload
    encoded: bytes = message.SerializeToString()
    return _RESOURCES_TAG + _varint(len(encoded)) + encoded


def _inner(payload: bytes) -> bytes:
    """The Workload inside an encoded Address: what follows its tag and length."""
    start = 1
    while payload[start] & 0x80:
        start += 1
    return payload[start + 1 :]


def _varint(number: int) -> bytes:
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


class Snapshot:
    """The resources of all types. Entries that did not change are the same objects as before.

    Args:
        before: the snapshot that this one follows.
        residents: where workloads live: what is asked for from somewhere follows from it.
    """

    def __init__(
        self,
        generation: int,
        addresses: Mapping[str, Resource],
        authorizations: Mapping[str, Resource],
        before: Snapshot | None = None,
        residents: Groups | None = None,
    ) -> None:
        self.generation = generation
        self.addresses: dict[str, Entry] = _encoded(addresses, before.addresses if before else {})
        self.authorizations: dict[str, Entry] = _encoded(
            authorizations, before.authorizations if before else {}
        )
        self._workloads: dict[str, Entry] | None = None
        self._workloads_before = (before._workloads if before is not None else None) or {}
        self._by_alias: dict[str, list[str]] | None = None
        self._by_service: dict[str, list[str]] = {}
        self._by_node: dict[str, list[str]] = {}
        self._residents: Groups = residents or {}
        self._needed: dict[Viewpoint, dict[str, Entry]] = {}
        self._holding: dict[str, list[str]] | None = None
        if before is not None and before.addresses is self.addresses:
            self._workloads, self._by_alias = before._workloads, before._by_alias
            self._by_service, self._by_node = before._by_service, before._by_node
        if before is not None and before.authorizations is self.authorizations:
            # In one step: others may be asking the snapshot before at this moment.
            known = before._needed.copy()
            self._needed = {
                viewpoint: found
                for viewpoint, found in known.items()
                if self._residents.get(viewpoint) is before._residents.get(viewpoint)
            }

    def of_type(
        self, type_url: str, viewpoint: Viewpoint | None = None
    ) -> Mapping[str, Entry] | None:
        """Name -> entry, or None for a type that is not served.

        Args:
            viewpoint: from where it is looked at; None: from nowhere, and everything is seen.
                Any address may be somebody's destination. Of the policies, a proxy gets those
                that hold for the workloads that it answers for.
        """
        if type_url == ADDRESS:
            return self.addresses
        if type_url == AUTHORIZATION:
            return self.authorizations if viewpoint is None else self._seen_from(viewpoint)
        if type_url == WORKLOAD:
            return self._as_workloads()
        return None

    def has_residents(self, viewpoint: Viewpoint) -> bool:
        """Is there anything that a proxy there answers for?"""
        return viewpoint in self._residents

    def _seen_from(self, viewpoint: Viewpoint) -> dict[str, Entry]:
        found = self._needed.get(viewpoint)
        if found is None:
            if self._holding is None:
                self._holding = {}
                for name, entry in self.authorizations.items():
                    self._holding.setdefault(entry.resource.holds_in, []).append(name)
            residents = self._residents.get(viewpoint, {})
            names = needed(residents.values(), self.authorizations, self._holding)
            found = {name: self.authorizations[name] for name in sorted(names)}
            self._needed[viewpoint] = found
        return found

    def _as_workloads(self) -> dict[str, Entry]:
        if self._workloads is None:
            found: dict[str, Entry] = {}
            for name, entry in self.addresses.items():
                if entry.resource.is_workload:
                    known = self._workloads_before.get(name)
                    if known is None or known.version != entry.version:
                        known = Entry(entry.resource, encode(entry.resource, WORKLOAD))
                    found[name] = known
            self._workloads, self._workloads_before = found, {}
        return self._workloads

    def resolve(self, key: str) -> list[str]:
        """Names of the addresses that an on-demand key stands for; empty if there are none.

        The key is a uid, "network/ip" of a workload, "namespace/hostname", or "network/ip" of a
        service; a service brings all its workloads with it.
        """
        self._index()
        assert self._by_alias is not None
        entry = self.addresses.get(key)
        if entry is not None:
            if entry.resource.is_workload:
                return [key]
            return [key, *self._by_service.get(key, ())]
        found = self._by_alias.get(key, ())
        workloads = [name for name in found if self.addresses[name].resource.is_workload]
        if workloads:
            return workloads
        return [name for key in found for name in (key, *self._by_service.get(key, ()))]

    def on_node(self, node: str) -> list[str]:
        """Names of the workloads of a node."""
        self._index()
        return self._by_node.get(node, [])

    def _index(self) -> None:
        if self._by_alias is not None:
            return
        self._by_alias = {}
        for name, entry in self.addresses.items():
            resource = entry.resource
            for alias in resource.aliases:
                self._by_alias.setdefault(alias, []).append(name)
            for service in resource.services:
                self._by_service.setdefault(service, []).append(name)
            if resource.node:
                self._by_node.setdefault(resource.node, []).append(name)


def _encoded(resources: Mapping[str, Resource], before: dict[str, Entry]) -> dict[str, Entry]:
    """Entries of resources; ``before`` itself where nothing has changed."""
    result: dict[str, Entry] = {}
    same = len(resources) == len(before)
    for name, resource in resources.items():
        known = before.get(name)
        if known is not None and (known.resource is resource or known.version == resource.version):
            result[name] = known
        else:
            same = False
            result[name] = Entry(resource, encode(resource, resource.type_url))
    return before if same else result


@dataclass(frozen=True, slots=True)
class Difference:
    """What a client lacks."""

    changed: tuple[Entry, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


NOTHING = Difference((), ())


def difference(known: Mapping[str, str], wanted: Iterable[Entry]) -> Difference:
    """From name -> version to entries."""
    by_name = {entry.name: entry for entry in wanted}
    changed = tuple(entry for name, entry in by_name.items() if known.get(name) != entry.version)
    return Difference(changed, tuple(name for name in known if name not in by_name))


class Differences:
    """Differences between snapshots, worked out once for all clients that are equally far."""

    def __init__(self) -> None:
        self._latest = -1
        self._known: dict[tuple[int, str, Viewpoint | None], Difference] = {}

    def between(
        self, old: Snapshot, new: Snapshot, type_url: str, viewpoint: Viewpoint | None = None
    ) -> Difference:
        if old is new:
            return NOTHING
        before = old.of_type(type_url, viewpoint) or {}
        after = new.of_type(type_url, viewpoint) or {}
        if before is after:
            return NOTHING
        if new.generation != self._latest:
            self._latest = new.generation
            self._known.clear()
        # All see the same addresses.
        key = (old.generation, type_url, viewpoint if type_url == AUTHORIZATION else None)
        found = self._known.get(key)
        if found is None:
            found = Difference(
                tuple(entry for name, entry in after.items() if not _same(before.get(name), entry)),
                tuple(name for name in before if name not in after),
            )
            self._known[key] = found
        return found


def _same(before: Entry | None, after: Entry) -> bool:
    return before is after or (before is not None and before.version == after.version)
