"""NetworkPolicy (networking.k8s.io/v1): which pods it selects.

What it allows is for the cluster's network to enforce, on the links between pods; the mesh must
only know whose connections have to pass there in the form that the policy was written for.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section
from daemonset.control_plane.objects.selector import LabelSelector, read_selector


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """An empty selector selects every pod of the namespace."""

    meta: ObjectMeta
    pods: LabelSelector


def read_network_policy(root: Section) -> NetworkPolicy:
    """Raises ObjectError."""
    meta = read_meta(root, "NetworkPolicy", namespaced=True)
    return NetworkPolicy(meta, read_selector(root.section("spec").section("podSelector")))
