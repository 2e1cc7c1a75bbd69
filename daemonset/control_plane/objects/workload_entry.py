"""WorkloadEntry (networking.istio.io/v1), also as an inline endpoint of a ServiceEntry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import canonical_ip
from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")
_NUMBERS = re.compile(r"([0-9]+\.)*[0-9]+\.?")  # an address with a mistake in it


@dataclass(frozen=True, slots=True)
class EntrySpec:
    """``ip`` is canonical; where the address is no IP, ``hostname`` has it."""

    ip: str
    hostname: str
    ports: Mapping[str, int]
    labels: Mapping[str, str]
    network: str
    locality: str
    weight: int | None
    service_account: str


@dataclass(frozen=True, slots=True)
class WorkloadEntry:
    """A workload that is not a pod."""

    meta: ObjectMeta
    spec: EntrySpec


def read_workload_entry(root: Section) -> WorkloadEntry:
    """Raises ObjectError."""
    meta = read_meta(root, "WorkloadEntry", namespaced=True)
    return WorkloadEntry(meta, read_entry(root.required_section("spec").strictly()))


def is_host_name(text: str) -> bool:
    """Can it be looked up in DNS?"""
    return len(text) <= 253 and bool(_HOST.fullmatch(text)) and not _NUMBERS.fullmatch(text)


def read_entry(section: Section) -> EntrySpec:
    """Read the fields that WorkloadEntry and ServiceEntry endpoints share.

    Raises:
        ObjectError: no address, or a field of the wrong type.
    """
    address = section.text("address")
    network = section.text("network")
    if not address and not network:
        raise section.error("address", "is missing")
    if address.startswith("unix://"):
        raise section.error("address", "a unix socket is no address for other hosts")
    ip = canonical_ip(address) if address else ""
    if ip is None and not is_host_name(address):
        problem = f"is neither an IP address nor a host name: {address!r}"
        raise section.error("address", problem)
    ports_section = section.section("ports")
    return EntrySpec(
        ip=ip or "",
        hostname=address if ip is None else "",
        ports={name: ports_section.required_port(name) for name in ports_section.names()},
        labels=section.text_map("labels"),
        network=network,
        locality=section.text("locality"),
        weight=section.integer("weight", 0, 2**32 - 1),
        service_account=section.text("serviceAccount"),
    )
