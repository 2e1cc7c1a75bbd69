"""Namespace (v1)."""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section


@dataclass(frozen=True, slots=True)
class Namespace:
    """Only its labels and annotations matter to the mesh."""

    meta: ObjectMeta


def read_namespace(root: Section) -> Namespace:
    """Raises ObjectError."""
    return Namespace(read_meta(root, "Namespace", namespaced=False))
