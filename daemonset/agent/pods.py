"""Pods as the node agent sees them, and where it learns of them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ztunnel.linux.netns import NetworkNamespace


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of this node. `addresses` are canonical text; empty while it has none.

    `netns` is the path of its network namespace where the source knows it (the local form does), ""
    where it must be found. `phase` is Kubernetes' (Pending, Running, Succeeded, Failed).
    """

    uid: str
    name: str
    namespace: str
    service_account: str
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    host_network: bool = False
    phase: str = "Running"
    netns: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def terminated(self) -> bool:
        """It will never run again, and its address may be somebody else's already."""
        return self.phase in ("Succeeded", "Failed")


class PodSource(Protocol):
    """Where pods come from: a folder, or the Kubernetes API."""

    def pods(self) -> AsyncGenerator[Sequence[Pod], None]:
        """All pods of this node: once at the start, and again after every change.

        The first list must be complete: what is not in it is taken for gone.
        """
        ...


class NetnsNotFound(Exception):
    """The pod's namespace cannot be found, or is not the pod's. The message says which and why."""


class NetnsResolver(Protocol):
    """Finds pods' network namespaces. Synchronous: it runs in a worker thread."""

    def resolve(self, pod: Pod) -> NetworkNamespace:
        """The caller owns what it gets. Raises NetnsNotFound."""
        ...


class PathResolver:
    """For sources that know the path."""

    def resolve(self, pod: Pod) -> NetworkNamespace:
        if not pod.netns:
            raise NetnsNotFound(f"the source names no network namespace for {pod}")
        try:
            return NetworkNamespace.open(pod.netns)
        except OSError as error:
            raise NetnsNotFound(f"cannot open the network namespace of {pod}: {error}") from error
