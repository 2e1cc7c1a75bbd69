"""Configuration that belongs to another control plane (label ``istio.io/rev``) is left to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from daemonset.control_plane.objects.meta import MeshObject
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.translation.finding import Findings

REVISION = "istio.io/rev"

K = TypeVar("K")
T = TypeVar("T", bound=MeshObject)


def revision_of(labels: Mapping[str, str], namespace_labels: Mapping[str, str]) -> str:
    """Which control plane a pod belongs to by its own label, else by its namespace's; "" for
    whichever there is."""
    return labels.get(REVISION) or namespace_labels.get(REVISION, "")


def of_revision(objects: ObjectSet, revision: str, findings: Findings) -> ObjectSet:
    """The objects that this control plane goes by; a finding for each that it leaves out.

    Kubernetes' own objects (services, nodes) belong to nobody; for pods see ``is_selected``.
    """

    def kept(found: Mapping[K, T]) -> dict[K, T]:
        result: dict[K, T] = {}
        for key, item in found.items():
            wanted = item.meta.labels.get(REVISION) or revision
            if wanted == revision:
                result[key] = item
                continue
            findings.warning(
                item.meta.key,
                f"metadata.labels.{REVISION}",
                "OtherRevision",
                f"belongs to the control plane of revision {wanted!r}, this one is {revision!r}: "
                "it has no effect here.",
            )
        return result

    return replace(
        objects,
        authorization_policies=kept(objects.authorization_policies),
        peer_authentications=kept(objects.peer_authentications),
        service_entries=kept(objects.service_entries),
        workload_entries=kept(objects.workload_entries),
        gateways=kept(objects.gateways),
    )
