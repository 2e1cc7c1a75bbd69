"""Which pods may be joined with others of their node, past tunnels and their port 15008."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from daemonset.control_plane.objects.meta import MeshObject
from daemonset.control_plane.objects.namespace import Namespace
from daemonset.control_plane.objects.network_policy import NetworkPolicy
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.objects.selector import LabelSelector
from daemonset.control_plane.translation.finding import Ledger

JOIN = "ambientd.io/join"
"""A label of a namespace, or of a pod, which counts for more: "enabled" or "disabled". The workload
API carries what it comes to in an extension of that name."""

_SAYS: Mapping[str | None, bool | None] = {None: None, "enabled": True, "disabled": False}


class Joins:
    """What labels and NetworkPolicies say of pods."""

    def __init__(self) -> None:
        self._selectors: dict[str, list[LabelSelector]] = {}

    def guard(self, policies: Iterable[NetworkPolicy]) -> None:
        """All NetworkPolicies that there are."""
        self._selectors = {}
        for policy in policies:
            self._selectors.setdefault(policy.meta.namespace, []).append(policy.pods)

    def of_pod(self, pod: Pod, namespace: Namespace | None) -> bool | None:
        """Whether it may be joined; None leaves that to its node's ztunnel.

        A pod that a NetworkPolicy selects may not, whatever labels say: what the policy lets pass
        or not is decided on the way between the pods, where it expects to see tunnels.
        """
        labels = pod.meta.labels
        selectors = self._selectors.get(pod.meta.namespace)
        if selectors and any(selector.matches(labels) for selector in selectors):
            return False
        said = labels.get(JOIN)
        if said is None and namespace is not None:
            said = namespace.meta.labels.get(JOIN)
        return _SAYS.get(said, False)


def report_unknown_joins(objects: Iterable[MeshObject], findings: Ledger) -> None:
    """A word that nobody knows is taken for the careful one."""
    for item in objects:
        said = item.meta.labels.get(JOIN)
        if said not in _SAYS:
            findings.warning(
                item.meta.key,
                f"metadata.labels.{JOIN}",
                "UnknownJoin",
                f"{said!r} is neither enabled nor disabled: it is taken for disabled.",
            )
