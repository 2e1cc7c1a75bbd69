"""Node (v1)."""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import canonical_ip
from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section


@dataclass(frozen=True, slots=True)
class Node:
    """Labels carry the locality; ``addresses`` are its internal IPs, canonical."""

    meta: ObjectMeta
    addresses: tuple[str, ...] = ()


def read_node(root: Section) -> Node:
    """Raises ObjectError."""
    meta = read_meta(root, "Node", namespaced=False)
    addresses: list[str] = []
    for item in root.section("status").sections("addresses"):
        address = canonical_ip(item.text("address"))
        if item.text("type") == "InternalIP":
            if address is None:
                raise item.error("address", f"is not an IP address: {item.text('address')!r}")
            addresses.append(address)
    return Node(meta, tuple(addresses))
