"""What an uninstallation deletes, in which order, and what it leaves. Pure, but for the lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from daemonset.cluster.listing import list_all
from daemonset.cluster.names import AGENT, CONTROL_PLANE, PART_OF, US, ZTUNNEL
from daemonset.control_plane.ca.root_maps import MANAGED_BY, OWNER
from daemonset.control_plane.ca.secret_authority import GIVEN, OWN, ROOT_MAP
from daemonset.control_plane.kubernetes_backend import LEASE
from daemonset.control_plane.sources.kubernetes_kinds import KINDS
from daemonset.kube.client import ApiError, Json, KubeClient
from daemonset.kube.reflector import Resource

_RBAC = "rbac.authorization.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"
_OURS = (("labelSelector", f"{PART_OF}={US}"),)
_ROOT_MAPS = (
    ("labelSelector", f"{MANAGED_BY}={OWNER}"),
    ("fieldSelector", f"metadata.name={ROOT_MAP}"),
)
NAMESPACES = Resource("", ("v1",), "namespaces", _OURS)
KINDS_OF_OURS: tuple[Resource, ...] = (
    Resource(_ADMISSION, ("v1",), "validatingwebhookconfigurations", _OURS),
    Resource("policy", ("v1",), "poddisruptionbudgets", _OURS),
    Resource("", ("v1",), "services", _OURS),
    Resource("networking.k8s.io", ("v1",), "networkpolicies", _OURS),
    Resource("", ("v1",), "resourcequotas", _OURS),
    Resource(_ADMISSION, ("v1",), "validatingadmissionpolicybindings", _OURS),
    Resource(_ADMISSION, ("v1",), "validatingadmissionpolicies", _OURS),
    Resource(_RBAC, ("v1",), "clusterrolebindings", _OURS),
    Resource(_RBAC, ("v1",), "rolebindings", _OURS),
    Resource(_RBAC, ("v1",), "clusterroles", _OURS),
    Resource(_RBAC, ("v1",), "roles", _OURS),
    Resource("", ("v1",), "serviceaccounts", _OURS),
    Resource("", ("v1",), "configmaps", _OURS),
    Resource(
        "coordination.k8s.io", ("v1",), "leases", (("fieldSelector", f"metadata.name={LEASE}"),)
    ),
    Resource("", ("v1",), "configmaps", _ROOT_MAPS),
)
"""After the workloads, in this order: rights go when nobody needs them any more."""
WORKLOADS = (("daemonsets", AGENT), ("daemonsets", ZTUNNEL), ("deployments", CONTROL_PLANE))
"""In this order: whoever puts pods into the mesh goes first, and who serves them after it."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """An object to be deleted; ``path`` is that of the API."""

    path: str
    words: str


async def list_doomed(client: KubeClient, system: str, root: str) -> AsyncIterator[Doomed]:
    """Everything but the workloads and namespaces.

    Args:
        system: the namespace of the installation; root: where mesh-wide policies live.

    Raises:
        ApiError, ApiUnavailableError: something cannot be listed.
    """
    for resource in KINDS_OF_OURS:
        everywhere = dict(resource.query) == dict(_ROOT_MAPS)
        try:
            async for item in list_all(client, resource):
                namespace = str(item["metadata"].get("namespace", ""))
                if everywhere or namespace in ("", system, root):
                    yield doomed(resource, item)
        except ApiError as error:
            if error.status != 404:  # a kind that this API server does not know
                raise


def doomed(resource: Resource, item: Json) -> Doomed:
    """One object of a list."""
    meta = item["metadata"]
    namespace, name = str(meta.get("namespace", "")), str(meta["name"])
    folder = resource.path(resource.versions[0])
    if not namespace:
        return Doomed(f"{folder}/{name}", f"{resource} {name}")
    base, _, plural = folder.rpartition("/")
    path = f"{base}/namespaces/{namespace}/{plural}/{name}"
    return Doomed(path, f"{resource} {namespace}/{name}")


def what_stays(root: str, labelled: list[str]) -> list[str]:
    """For people: what was not deleted, and why. ``labelled``: namespaces that ask for the mesh."""
    definitions = sorted(
        f"{kind.resource.plural}.{kind.resource.group}"
        for kind in KINDS
        if kind.resource.group.endswith(".istio.io")
    )
    lines = [
        f"the definitions {', '.join(definitions)}: their objects would go with them",
        f"the CA's Secret ({root}/{OWN} or {root}/{GIVEN}) and namespace {root}: who installs a "
        "mesh again, this one or Istio, keeps its root of trust",
    ]
    if labelled:
        lines.append(f"the label istio.io/dataplane-mode of {', '.join(labelled)}")
    return lines
