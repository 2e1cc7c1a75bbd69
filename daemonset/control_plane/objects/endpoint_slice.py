"""EndpointSlice (discovery.k8s.io/v1)."""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import read_ip
from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint; ``pod`` is the name of the Pod it refers to, if any."""

    addresses: tuple[str, ...]
    ready: bool
    pod: str
    node: str


@dataclass(frozen=True, slots=True)
class EndpointPort:
    """A TCP port of all endpoints of a slice."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """``service`` is from the label kubernetes.io/service-name; ``fqdn`` slices hold names."""

    meta: ObjectMeta
    service: str
    fqdn: bool
    endpoints: tuple[Endpoint, ...]
    ports: tuple[EndpointPort, ...]


def read_endpoint_slice(root: Section) -> EndpointSlice:
    """Raises ObjectError."""
    meta = read_meta(root, "EndpointSlice", namespaced=True)
    fqdn = root.choice("addressType", ("IPv4", "IPv6", "FQDN"), "IPv4") == "FQDN"
    endpoints: list[Endpoint] = []
    for item in root.sections("endpoints"):
        texts = item.texts("addresses")
        if not fqdn:
            texts = tuple(
                read_ip(text, item.at(f"addresses[{i}]"), item.line) for i, text in enumerate(texts)
            )
        target = item.section("targetRef")
        endpoints.append(
            Endpoint(
                addresses=texts,
                # "Nil should be interpreted as true" (discovery.k8s.io/v1, EndpointConditions).
                ready=item.section("conditions").flag("ready", True),
                pod=target.text("name") if target.text("kind") == "Pod" else "",
                node=item.text("nodeName"),
            )
        )
    ports: list[EndpointPort] = []
    for item in root.sections("ports"):
        number = item.port("port")
        if number is not None and item.text("protocol", "TCP") == "TCP":
            ports.append(EndpointPort(item.text("name"), number))
    service = meta.labels.get("kubernetes.io/service-name", "")
    return EndpointSlice(meta, service, fqdn, tuple(endpoints), tuple(ports))
