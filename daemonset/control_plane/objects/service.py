"""Service (v1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import read_ip
from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_FAMILY_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")


@dataclass(frozen=True, slots=True)
class ServicePort:
    """``target`` is a number, or the name of a container's port."""

    name: str
    number: int
    target: int | str
    protocol: str
    app_protocol: str


@dataclass(frozen=True, slots=True)
class Service:
    """``cluster_ips`` are canonical; ``headless`` where the object says ``clusterIP: None``."""

    meta: ObjectMeta
    type: str
    selector: Mapping[str, str]
    cluster_ips: tuple[str, ...]
    headless: bool
    ports: tuple[ServicePort, ...]
    ip_families: tuple[str, ...]
    traffic_distribution: str
    internal_traffic_local: bool
    publish_not_ready: bool
    external_name: str = ""
    family_policy: str = ""


def read_service(root: Section) -> Service:
    """Raises ObjectError."""
    meta = read_meta(root, "Service", namespaced=True)
    spec = root.section("spec")
    addresses: list[str] = []
    headless = False
    named = [("clusterIP", spec.text("clusterIP"))] if spec.has("clusterIP") else []
    named += [(f"clusterIPs[{i}]", text) for i, text in enumerate(spec.texts("clusterIPs"))]
    for field, text in named:
        if text == "None":
            headless = True
        elif text:
            address = read_ip(text, spec.at(field), spec.line)
            if address not in addresses:
                addresses.append(address)
    families = spec.texts("ipFamilies")
    for family in families:
        if family not in ("IPv4", "IPv6"):
            raise spec.error("ipFamilies", f"must be IPv4 or IPv6, not {family!r}")
    kind = spec.choice("type", _TYPES, "ClusterIP")
    external_name = spec.required_text("externalName") if kind == "ExternalName" else ""
    return Service(
        meta=meta,
        type=kind,
        selector=spec.text_map("selector"),
        cluster_ips=tuple(addresses),
        headless=headless,
        ports=_ports(spec),
        ip_families=families,
        traffic_distribution=spec.text("trafficDistribution"),
        internal_traffic_local=spec.choice("internalTrafficPolicy", ("Cluster", "Local"), "Cluster")
        == "Local",
        publish_not_ready=spec.flag("publishNotReadyAddresses"),
        external_name=external_name,
        family_policy=spec.choice("ipFamilyPolicy", _FAMILY_POLICIES),
    )


def _ports(spec: Section) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    for item in spec.sections("ports"):
        number = item.required_port("port")
        target = item.integer_or_text("targetPort")
        ports.append(
            ServicePort(
                name=item.text("name"),
                number=number,
                target=target or number,
                protocol=item.choice("protocol", _PROTOCOLS, "TCP"),
                app_protocol=item.text("appProtocol"),
            )
        )
    return tuple(ports)
