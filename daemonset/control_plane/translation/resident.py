"""Where workloads live and what they carry: from this follows which policies each proxy needs.

Pods count from when they are scheduled, before they have an address: their policies are with the
node's proxy before the pod can be reached. Whether a pod is in the mesh already makes no
difference: once it is captured, it would be too late.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from daemonset.control_plane.translation.resource import EVERYWHERE


@dataclass(frozen=True, slots=True)
class Resident:
    """A pod, or a workload that is none.

    Attributes:
        node: "" where it lives on none.
        policies: names ("namespace/name") that it carries, sorted.
        own_proxy: it brings its own tunnel end, which is no node's proxy.
    """

    namespace: str
    service_account: str
    node: str
    policies: tuple[str, ...]
    own_proxy: bool


@dataclass(frozen=True, slots=True)
class Viewpoint:
    """Whose proxy looks: that of a node, or that of the workloads of one service account."""

    node: str = ""
    namespace: str = ""
    service_account: str = ""

    def __str__(self) -> str:
        return self.node or f"{self.namespace}/{self.service_account}"


def viewpoints(resident: Resident) -> Iterable[Viewpoint]:
    """Who is its proxy, or may be."""
    if resident.node:
        yield Viewpoint(node=resident.node)
    if resident.own_proxy:
        yield Viewpoint("", resident.namespace, resident.service_account)


def by_viewpoint(residents: Iterable[Resident]) -> dict[Viewpoint, tuple[Resident, ...]]:
    """The residents that each proxy answers for."""
    found: dict[Viewpoint, list[Resident]] = {}
    for resident in residents:
        for viewpoint in viewpoints(resident):
            found.setdefault(viewpoint, []).append(resident)
    return {viewpoint: tuple(inside) for viewpoint, inside in found.items()}


def needed(
    residents: Sequence[Resident], policies: Container[str], holding: Mapping[str, Iterable[str]]
) -> set[str]:
    """Names of the policies that hold for any of the residents, or for everybody.

    Args:
        policies: all of the mesh, by name.
        holding: those that hold for a whole namespace, or EVERYWHERE, by that.
    """
    names = set(holding.get(EVERYWHERE, ()))
    for namespace in {resident.namespace for resident in residents}:
        names.update(holding.get(namespace, ()))
    for resident in residents:
        names.update(name for name in resident.policies if name in policies)
    return names
