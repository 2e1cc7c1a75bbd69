"""Where workloads live and what they carry: from this follows which policies each proxy needs.

Pods count from when they are scheduled, before they have an address: their policies are with the
node's proxy before the pod can be reached. Whether a pod is in the mesh already makes no
difference: once it is captured, it would be too late.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectKey
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


Groups = Mapping[Viewpoint, Mapping[ObjectKey, Resident]]


def viewpoints(resident: Resident) -> Iterable[Viewpoint]:
    """Who is its proxy, or may be."""
    if resident.node:
        yield Viewpoint(node=resident.node)
    if resident.own_proxy:
        yield Viewpoint("", resident.namespace, resident.service_account)


class Residents:
    """Who lives where, kept up to date."""

    def __init__(self) -> None:
        self._known: dict[ObjectKey, Resident] = {}
        self._groups: Groups = {}

    @property
    def groups(self) -> Groups:
        """The residents that each proxy answers for. What was handed out does not change, and what
        has not changed since is the same."""
        return self._groups

    def put(self, key: ObjectKey, resident: Resident | None) -> None:
        """A resident, new or changed; None: it is gone."""
        before = self._known.get(key)
        if before == resident:
            return
        groups = dict(self._groups)
        for viewpoint in viewpoints(before) if before is not None else ():
            left = {other: one for other, one in groups[viewpoint].items() if other != key}
            if left:
                groups[viewpoint] = left
            else:
                del groups[viewpoint]
        if resident is None:
            del self._known[key]
        else:
            self._known[key] = resident
            for viewpoint in viewpoints(resident):
                groups[viewpoint] = {**groups.get(viewpoint, {}), key: resident}
        self._groups = groups


def needed(
    residents: Collection[Resident], policies: Container[str], holding: Mapping[str, Iterable[str]]
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
