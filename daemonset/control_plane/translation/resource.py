"""Resources of the workload API, encoded once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from ztunnel.proto import authorization_pb2, workload_pb2

ADDRESS = "type.googleapis.com/istio.workload.Address"
WORKLOAD = "type.googleapis.com/istio.workload.Workload"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"

EVERYWHERE = "*"


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: ``payload`` is the encoded message, ``version`` a hash of it.

    ``node`` and ``services`` are set for workloads: what on-demand answers are found by.
    ``holds_in`` is set for policies that hold for a whole namespace, or EVERYWHERE.
    """

    type_url: str
    name: str
    aliases: tuple[str, ...]
    version: str
    payload: bytes
    node: str = ""
    services: tuple[str, ...] = ()
    holds_in: str = ""

    @property
    def is_workload(self) -> bool:
        return self.type_url == ADDRESS and self.payload[:1] == b"\x0a"


def workload_resource(workload: workload_pb2.Workload, aliases: Iterable[str]) -> Resource:
    """The Address resource of a workload; named by its uid."""
    payload = workload_pb2.Address(workload=workload).SerializeToString(deterministic=True)
    return Resource(
        ADDRESS,
        workload.uid,
        tuple(aliases),
        _version(payload),
        payload,
        workload.node,
        tuple(sorted(workload.services)),
    )


def service_resource(service: workload_pb2.Service, aliases: Iterable[str]) -> Resource:
    """The Address resource of a service; named "namespace/hostname"."""
    payload = workload_pb2.Address(service=service).SerializeToString(deterministic=True)
    name = f"{service.namespace}/{service.hostname}"
    return Resource(ADDRESS, name, tuple(aliases), _version(payload), payload)


def authorization_resource(policy: authorization_pb2.Authorization) -> Resource:
    """The resource of a policy; named "namespace/name"."""
    payload = policy.SerializeToString(deterministic=True)
    name = f"{policy.namespace}/{policy.name}"
    holds_in = ""
    if policy.scope != authorization_pb2.WORKLOAD_SELECTOR:
        in_namespace = policy.scope == authorization_pb2.NAMESPACE
        holds_in = policy.namespace if in_namespace else EVERYWHERE
    return Resource(AUTHORIZATION, name, (), _version(payload), payload, holds_in=holds_in)


def _version(payload: bytes) -> str:
    return blake2b(payload, digest_size=12).hexdigest()
