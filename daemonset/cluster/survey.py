"""What can be seen of a cluster through its API, listed once."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from daemonset.cluster.installation import Installation, find_installation
from daemonset.cluster.listing import list_all
from daemonset.control_plane.ca.secret_authority import ROOT_MAP
from daemonset.kube.client import ApiError, Json, KubeClient
from daemonset.kube.reflector import Resource

_CALICO = "crd.projectcalico.org"
_ADMISSION = "admissionregistration.k8s.io"


def _named(name: str) -> tuple[tuple[str, str], ...]:
    return (("fieldSelector", f"metadata.name={name}"),)


RESOURCES: Mapping[str, Resource] = {
    "namespaces": Resource("", ("v1",), "namespaces"),
    "nodes": Resource("", ("v1",), "nodes"),
    "pods": Resource("", ("v1",), "pods"),
    "daemonsets": Resource("apps", ("v1",), "daemonsets"),
    "deployments": Resource("apps", ("v1",), "deployments"),
    "networkpolicies": Resource("networking.k8s.io", ("v1",), "networkpolicies"),
    "definitions": Resource("apiextensions.k8s.io", ("v1",), "customresourcedefinitions"),
    "webhooks": Resource(_ADMISSION, ("v1",), "mutatingwebhookconfigurations"),
    "quotas": Resource("", ("v1",), "resourcequotas"),
    "leases": Resource("coordination.k8s.io", ("v1",), "leases"),
    "roots": Resource("", ("v1",), "configmaps", _named(ROOT_MAP)),
    "cilium": Resource("", ("v1",), "configmaps", _named("cilium-config")),
    "felix": Resource(_CALICO, ("v1",), "felixconfigurations"),
    "calico policies": Resource(_CALICO, ("v1",), "networkpolicies"),
    "global calico policies": Resource(_CALICO, ("v1",), "globalnetworkpolicies"),
    "cilium policies": Resource("cilium.io", ("v2",), "ciliumnetworkpolicies"),
    "cluster cilium policies": Resource("cilium.io", ("v2",), "ciliumclusterwidenetworkpolicies"),
    "peer authentications": Resource("security.istio.io", ("v1", "v1beta1"), "peerauthentications"),
}
"""What is listed, by the name that it has here."""

_LISTS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Access:
    """May somebody do this? ``who`` is empty for whoever asks."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""
    who: str = ""
    allowed: bool = False
    reason: str = ""

    def __str__(self) -> str:
        kind = f"{self.resource}.{self.group}" if self.group else self.resource
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {kind}{f' {self.name}' if self.name else ''}{where}"


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """One look at a cluster; equal only to itself, so that what it comes to can be remembered.

    Attributes:
        version: what the API server says of itself at /version.
        objects: by the names of ``RESOURCES``; kinds that the API does not know have none.
        absent: the names of those kinds.
        unseen: names of what could not be listed, with the reason.
    """

    version: Mapping[str, str]
    objects: Mapping[str, Sequence[Json]]
    installation: Installation
    now: datetime.datetime
    absent: frozenset[str] = frozenset()
    unseen: Mapping[str, str] = field(default_factory=dict)
    access: tuple[Access, ...] = ()

    def all(self, name: str) -> Sequence[Json]:
        """Objects of one of ``RESOURCES``."""
        return self.objects.get(name, ())


async def take_survey(client: KubeClient, system_namespace: str) -> Survey:
    """Look at everything once; what may not be seen is noted.

    Raises:
        ApiUnavailableError: the API server does not answer.
        ApiError: not even its version may be seen.
        SelectorError: the agent that is installed has selectors that cannot be read.
    """
    version = await client.call("GET", "/version")
    objects: dict[str, Sequence[Json]] = {}
    absent: set[str] = set()
    unseen: dict[str, str] = {}
    limiter = trio.CapacityLimiter(_LISTS_AT_ONCE)

    async def look(name: str, resource: Resource) -> None:
        async with limiter:
            try:
                objects[name] = [_trimmed(item) async for item in list_all(client, resource)]
            except ApiError as error:
                if error.status == 404:
                    absent.add(name)
                else:
                    unseen[name] = str(error)

    async with trio.open_nursery() as nursery:
        for name, resource in RESOURCES.items():
            nursery.start_soon(look, name, resource)
    return Survey(
        {str(key): str(value) for key, value in version.items()},
        objects,
        find_installation(
            system_namespace, objects.get("daemonsets", ()), objects.get("deployments", ())
        ),
        datetime.datetime.now(datetime.UTC),
        frozenset(absent),
        unseen,
    )


def _trimmed(item: Json) -> Json:
    """Without what takes most of the room and nobody reads here."""
    meta = item.get("metadata")
    if isinstance(meta, dict):
        meta.pop("managedFields", None)
        annotations = meta.get("annotations")
        if annotations:
            annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
    return item


async def review(client: KubeClient, wanted: Access) -> Access:
    """Ask the API server whether somebody may do something.

    Raises:
        ApiError, ApiUnavailableError: it does not say.
    """
    attributes = {
        "verb": wanted.verb,
        "group": wanted.group,
        "resource": wanted.resource.partition("/")[0],
        "subresource": wanted.resource.partition("/")[2],
        "namespace": wanted.namespace,
        "name": wanted.name,
    }
    kind = "SubjectAccessReview" if wanted.who else "SelfSubjectAccessReview"
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": kind,
        "spec": {"resourceAttributes": attributes, **({"user": wanted.who} if wanted.who else {})},
    }
    path = f"/apis/authorization.k8s.io/v1/{kind.lower()}s"
    status = (await client.call("POST", path, body=body)).get("status") or {}
    return Access(
        wanted.verb,
        wanted.group,
        wanted.resource,
        wanted.namespace,
        wanted.name,
        wanted.who,
        bool(status.get("allowed")),
        str(status.get("reason") or ""),
    )
