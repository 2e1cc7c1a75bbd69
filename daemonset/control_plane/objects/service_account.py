"""ServiceAccount (v1)."""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Its name is an identity; nothing else of it matters to the mesh."""

    meta: ObjectMeta


def read_service_account(root: Section) -> ServiceAccount:
    """Raises ObjectError."""
    return ServiceAccount(read_meta(root, "ServiceAccount", namespaced=True))
