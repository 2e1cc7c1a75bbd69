"""What one step changed, so that live connections can be judged again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ztunnel.mesh.policy import Authorization, PolicyScope
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import Workload

Resource = Workload | Service | Authorization


@dataclass(slots=True)
class Batch:
    """One step: removals are made first, then the upserts.

    `removed` names workloads (uid) and services ("namespace/hostname"); policies have names of
    their own ("namespace/name").
    """

    upserts: Sequence[Resource] = ()
    removed: Sequence[str] = ()
    removed_policies: Sequence[str] = ()


@dataclass(slots=True)
class Changes:
    """What a step changed; empty sets when it changed nothing.

    Attributes:
        generation: of the state after the step.
        workloads: uids that came, went or changed.
        removed_workloads: those of them that went.
        services: "namespace/hostname" of services that changed in themselves or their endpoints.
        policies: "namespace/name" of policies that came, went or changed.
    """

    generation: int = 0
    workloads: set[str] = field(default_factory=set)
    removed_workloads: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)
    _everywhere: bool = False
    _namespaces: set[str] = field(default_factory=set)
    _destinations: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.workloads or self.services or self.policies)

    def names(self, resource: Resource) -> bool:
        """Whether the step may have changed this resource."""
        if isinstance(resource, Workload):
            return resource.uid in self.workloads
        if isinstance(resource, Service):
            return resource.key in self.services
        return resource.key in self.policies

    def note_policy(self, policy: Authorization) -> None:
        """A policy in a version before or after the step."""
        self.policies.add(policy.key)
        if policy.scope is PolicyScope.GLOBAL:
            self._everywhere = True
        elif policy.scope is PolicyScope.NAMESPACE:
            self._namespaces.add(policy.namespace)

    def note_workload(self, old: Workload | None, new: Workload | None) -> None:
        """A workload before and after the step."""
        workload = new or old
        assert workload is not None
        self.workloads.add(workload.uid)
        if new is None:
            self.removed_workloads.add(workload.uid)
        else:
            self.removed_workloads.discard(workload.uid)
        if (
            old is None
            or new is None
            or old.authorization_policies != new.authorization_policies
            or old.identity != new.identity
        ):
            self._destinations.add(workload.uid)

    def rejudge(self, destination: Workload) -> bool:
        """Whether live connections to `destination` must be authorized again.

        True when a policy for it, its namespace or the mesh changed, when its own list of
        policies or its identity did, or when it came or went.
        """
        return (
            self._everywhere
            or destination.uid in self._destinations
            or destination.namespace in self._namespaces
            or not self.policies.isdisjoint(destination.authorization_policies)
        )
