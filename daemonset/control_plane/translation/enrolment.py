"""Which pods belong to the mesh, and which are reached through HBONE."""

from __future__ import annotations

from collections.abc import Mapping

from daemonset.control_plane.objects.meta import ObjectMeta
from daemonset.control_plane.objects.namespace import Namespace
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.objects.section import EMPTY
from daemonset.control_plane.translation.revisions import revision_of
from daemonset.control_plane.translation.settings import MeshSettings

REDIRECTION = "ambient.istio.io/redirection"
TUNNEL = "networking.istio.io/tunnel"


def is_selected(pod: Pod, namespace: Namespace | None, settings: MeshSettings) -> bool:
    """Do labels want this pod in the mesh? The pod's own label beats its namespace's."""
    if pod.host_network or pod.meta.namespace in settings.excluded_namespaces:
        return False
    if "sidecar.istio.io/status" in pod.meta.annotations:
        return False
    labels = namespace.meta.labels if namespace is not None else EMPTY
    if revision_of(pod.meta.labels, labels) not in ("", settings.revision):
        return False
    return any(
        entry.pod.matches(pod.meta.labels) and entry.namespace.matches(labels)
        for entry in settings.enablement
    )


def is_captured(meta: ObjectMeta) -> bool:
    """Did a node agent say so, by its annotation?"""
    return meta.annotations.get(REDIRECTION) == "enabled"


def speaks_hbone_itself(labels: Mapping[str, str]) -> bool:
    """Does the workload bring its own tunnel end (a gateway, a waypoint, a dedicated proxy)?"""
    return "http" in labels.get(TUNNEL, "").split(",")
