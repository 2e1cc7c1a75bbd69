"""Configuration that belongs to another control plane (label ``istio.io/rev``) is left to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from daemonset.control_plane.objects.meta import MeshObject
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.translation.finding import Ledger

REVISION = "istio.io/rev"

# Kubernetes' own objects (services, nodes) belong to nobody; for pods see ``is_selected``.
_OWNED = (
    "authorization_policies",
    "peer_authentications",
    "service_entries",
    "workload_entries",
    "gateways",
)


def revision_of(labels: Mapping[str, str], namespace_labels: Mapping[str, str]) -> str:
    """Which control plane a pod belongs to by its own label, else by its namespace's; "" for
    whichever there is."""
    return labels.get(REVISION) or namespace_labels.get(REVISION, "")


class Revisions:
    """Keeps to the objects that this control plane goes by."""

    def __init__(self, revision: str, findings: Ledger) -> None:
        self._revision = revision
        self._findings = findings
        self._known: dict[str, tuple[Mapping[Any, MeshObject], Mapping[Any, MeshObject]]] = {}

    def own(self, objects: ObjectSet) -> ObjectSet:
        """Those of our revision; a finding for each that is left out. Kinds that have not changed
        are the same mappings as before."""
        owned: dict[str, Any] = {name: self._kept(name, getattr(objects, name)) for name in _OWNED}
        return replace(objects, **owned)

    def _kept(self, field: str, found: Mapping[Any, MeshObject]) -> Mapping[Any, MeshObject]:
        known = self._known.get(field)
        if known is not None and known[0] is found:
            return known[1]
        kept: dict[Any, MeshObject] = {}
        with self._findings.part(("revision", field)):
            for key, item in found.items():
                wanted = item.meta.labels.get(REVISION) or self._revision
                if wanted == self._revision:
                    kept[key] = item
                    continue
                self._findings.warning(
                    item.meta.key,
                    f"metadata.labels.{REVISION}",
                    "OtherRevision",
                    f"belongs to the control plane of revision {wanted!r}, this one is "
                    f"{self._revision!r}: it has no effect here.",
                )
        self._known[field] = (found, kept)
        return kept
