"""ServiceEntry (networking.istio.io/v1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import IPNetwork, read_network
from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section
from daemonset.control_plane.objects.selector import LabelSelector
from daemonset.control_plane.objects.workload_entry import EntrySpec, read_entry

RESOLUTIONS = ("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
_HOST = re.compile(r"(\*|(\*\.)?[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?)")


@dataclass(frozen=True, slots=True)
class EntryPort:
    """A port of a ServiceEntry; ``target`` is None where the object gives none."""

    name: str
    number: int
    target: int | None
    protocol: str


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """``allocated`` are addresses from the status, as (host or "", address)."""

    meta: ObjectMeta
    hosts: tuple[str, ...]
    addresses: tuple[IPNetwork, ...]
    ports: tuple[EntryPort, ...]
    resolution: str
    endpoints: tuple[EntrySpec, ...]
    selector: LabelSelector | None
    export_to: tuple[str, ...]
    subject_alt_names: tuple[str, ...]
    allocated: tuple[tuple[str, IPNetwork], ...]


def read_service_entry(root: Section) -> ServiceEntry:
    """Raises ObjectError."""
    meta = read_meta(root, "ServiceEntry", namespaced=True)
    spec = root.required_section("spec").strictly()
    hosts = spec.texts("hosts")
    if not hosts:
        raise spec.error("hosts", "needs at least one host")
    for host in hosts:
        if not _HOST.fullmatch(host) or len(host) > 253:
            raise spec.error("hosts", f"is not a host name: {host!r}")
    selector = None
    if spec.has("workloadSelector"):
        selector = LabelSelector(spec.section("workloadSelector").text_map("labels"))
        if spec.has("endpoints"):
            raise spec.error("endpoints", "cannot be given together with workloadSelector")
    resolution = spec.choice("resolution", RESOLUTIONS, "NONE")
    endpoints = tuple(read_entry(item) for item in spec.sections("endpoints"))
    if resolution == "NONE" and endpoints:
        raise spec.error("endpoints", "cannot be given with resolution NONE")
    if resolution == "STATIC" and any(endpoint.hostname for endpoint in endpoints):
        raise spec.error("endpoints", "with resolution STATIC every address must be an IP address")
    allocated: list[tuple[str, IPNetwork]] = []
    for item in root.section("status").sections("addresses"):
        value = item.required_text("value")
        allocated.append((item.text("host"), read_network(value, item.at("value"), item.line)))
    return ServiceEntry(
        meta=meta,
        hosts=hosts,
        addresses=tuple(
            read_network(text, spec.at(f"addresses[{i}]"), spec.line)
            for i, text in enumerate(spec.texts("addresses"))
        ),
        ports=tuple(
            EntryPort(
                name=item.text("name"),
                number=item.required_port("number"),
                target=item.port("targetPort"),
                protocol=item.text("protocol"),
            )
            for item in spec.sections("ports")
        ),
        resolution=resolution,
        endpoints=endpoints,
        selector=selector,
        export_to=spec.texts("exportTo"),
        subject_alt_names=spec.texts("subjectAltNames"),
        allocated=tuple(allocated),
    )
