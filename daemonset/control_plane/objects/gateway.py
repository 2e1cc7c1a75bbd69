"""Gateway (gateway.networking.k8s.io/v1): what waypoint resolution needs of it."""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section
from daemonset.control_plane.objects.selector import LabelSelector, read_selector


@dataclass(frozen=True, slots=True)
class Listener:
    """``allowed_from`` is Same, All or Selector (then ``allowed_selector`` is set)."""

    name: str
    port: int
    protocol: str
    allowed_from: str
    allowed_selector: LabelSelector | None


@dataclass(frozen=True, slots=True)
class Gateway:
    """``hostnames`` and ``ips`` are the addresses of its status, as they stand there, else those
    of its spec (one whose addresses are given is nobody's to deploy)."""

    meta: ObjectMeta
    class_name: str
    listeners: tuple[Listener, ...]
    hostnames: tuple[str, ...]
    ips: tuple[str, ...]


def read_gateway(root: Section) -> Gateway:
    """Raises ObjectError."""
    meta = read_meta(root, "Gateway", namespaced=True)
    spec = root.required_section("spec")
    listeners: list[Listener] = []
    for item in spec.sections("listeners"):
        namespaces = item.section("allowedRoutes").section("namespaces")
        allowed = namespaces.choice("from", ("Same", "All", "Selector", "None"), "Same")
        selector = read_selector(namespaces.section("selector")) if allowed == "Selector" else None
        listeners.append(
            Listener(
                name=item.text("name"),
                port=item.required_port("port"),
                protocol=item.required_text("protocol"),
                allowed_from=allowed,
                allowed_selector=selector,
            )
        )
    hostnames: list[str] = []
    ips: list[str] = []
    listed = root.section("status").sections("addresses") or spec.sections("addresses")
    for item in listed:
        value = item.required_text("value")
        if item.text("type", "IPAddress") == "Hostname":
            hostnames.append(value)
        else:
            ips.append(value)
    return Gateway(
        meta, spec.required_text("gatewayClassName"), tuple(listeners), tuple(hostnames), tuple(ips)
    )
