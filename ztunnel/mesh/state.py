"""The state of the mesh as one node sees it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from ztunnel.mesh.changes import Batch, Changes
from ztunnel.mesh.policy import Authorization
from ztunnel.mesh.policy_table import EffectivePolicies, PolicyTable
from ztunnel.mesh.service import Service
from ztunnel.mesh.service_table import ServiceRecord, ServiceTable
from ztunnel.mesh.workload import Workload
from ztunnel.mesh.workload_table import WorkloadTable


class MeshState:
    """Workloads, services and policies, with the indexes that decisions need.

    Resources are immutable; an update replaces them. Nothing here blocks or does input and
    output, and no call takes longer for the size of the mesh.

    Attributes:
        on_demand: the control plane sends only what is asked for: an unknown address must be
            looked up before it counts as unknown.
        ignore_unknown_policies: let connections through although a policy that the workload
            names is unknown or unreadable, as Istio does. Off: they are refused.
        generation: grows with every step that changed something.
    """

    __slots__ = (
        "_looked_up",
        "_policies",
        "generation",
        "ignore_unknown_policies",
        "on_demand",
        "services",
        "workloads",
    )

    def __init__(self, *, on_demand: bool = False, ignore_unknown_policies: bool = False) -> None:
        self.on_demand = on_demand
        self.ignore_unknown_policies = ignore_unknown_policies
        self.generation = 0
        self.workloads = WorkloadTable()
        self.services = ServiceTable()
        self._policies = PolicyTable()
        self._looked_up: set[str] = set()

    # -- changes ------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> Changes:
        """Make one step. Endpoints may come before their service and services before theirs."""
        changes = Changes()
        for name in batch.removed:
            self._remove_address(name, changes)
        for name in batch.removed_policies:
            policy = self._policies.remove(name)
            if policy is not None:
                changes.note_policy(policy)
        for resource in batch.upserts:
            if isinstance(resource, Workload):
                self._upsert_workload(resource, changes)
            elif isinstance(resource, Service):
                if self.services.upsert(resource):
                    changes.services.add(resource.key)
            else:
                self._upsert_policy(resource, changes)
        if changes:
            self.generation += 1
        changes.generation = self.generation
        return changes

    def replace_policies(self, policies: Sequence[Authorization]) -> Changes:
        """Make the state hold exactly these policies, in one step."""
        keys = {policy.key for policy in policies}
        gone = [policy.key for policy in self._policies if policy.key not in keys]
        return self.apply(Batch(policies, removed_policies=gone))

    def keep_only(self, names: Container[str]) -> Changes:
        """Remove every workload and service that `names` does not name, in one step."""
        gone = [workload.uid for workload in self.workloads if workload.uid not in names]
        gone += [record.key for record in self.services if record.key not in names]
        return self.apply(Batch(removed=gone))

    def upsert_workload(self, workload: Workload) -> Changes:
        """`apply` for one workload."""
        return self.apply(Batch([workload]))

    def upsert_service(self, service: Service) -> Changes:
        """`apply` for one service."""
        return self.apply(Batch([service]))

    def upsert_policy(self, policy: Authorization) -> Changes:
        """`apply` for one policy."""
        return self.apply(Batch([policy]))

    def remove(self, name: str) -> Changes:
        """`apply` for the removal of a workload (uid) or service ("namespace/hostname")."""
        return self.apply(Batch(removed=[name]))

    def remove_policy(self, name: str) -> Changes:
        """`apply` for the removal of a policy ("namespace/name")."""
        return self.apply(Batch(removed_policies=[name]))

    # -- look-ups -----------------------------------------------------------------------------

    def workload(self, uid: str) -> Workload | None:
        """The workload of that uid."""
        return self.workloads.get(uid)

    def workload_by_address(self, network: str, ip: str) -> Workload | None:
        """The workload that the address means; a pod before anything else that repeats it."""
        return self.workloads.find_by_address(network, ip)

    def workloads_by_hostname(self, hostname: str) -> list[Workload]:
        """Every workload of that hostname."""
        return self.workloads.find_by_hostname(hostname)

    def local_workload(
        self, name: str, namespace: str, service_account: str, node: str = ""
    ) -> Workload | None:
        """The workload of a pod that a node agent announced; `node` "" means any."""
        return self.workloads.find_pod(name, namespace, service_account, node)

    def service(self, key: str) -> Service | None:
        """The service "namespace/hostname"."""
        record = self.services.get(key)
        return record.service if record is not None else None

    def services_by_hostname(self, hostname: str) -> list[Service]:
        """Every service of that name, in any namespace and of any visibility."""
        return _known(self.services.at_hostname(hostname))

    def services_by_address(self, network: str, ip: str) -> list[Service]:
        """Every service with that address, alone or in a block, and of any visibility."""
        return _known(self.services.at_address(network, ip))

    def endpoints(self, key: str) -> Iterator[Workload]:
        """The workloads of a service, healthy or not."""
        record = self.services.get(key)
        return iter(record.endpoints.values()) if record is not None else iter(())

    def policy(self, key: str) -> Authorization | None:
        """The policy "namespace/name"."""
        return self._policies.get(key)

    def policies(self) -> Iterator[Authorization]:
        """Every policy."""
        return iter(self._policies)

    def effective_policies(self, destination: Workload) -> EffectivePolicies:
        """The policies for connections to `destination`."""
        return self._policies.effective(destination)

    # -- on demand ----------------------------------------------------------------------------

    def needs_lookup(self, key: str) -> bool:
        """Whether the control plane must be asked for `key` before it counts as unknown."""
        return self.on_demand and key not in self._looked_up

    def lookup_finished(self, key: str) -> None:
        """The control plane answered for `key`, or gave up: what is not here does not exist.

        Changes to what it answered arrive by themselves from now on.
        """
        self._looked_up.add(key)

    @property
    def looked_up(self) -> frozenset[str]:
        """All keys that the control plane has answered for."""
        return frozenset(self._looked_up)

    # -- parts of a step ----------------------------------------------------------------------

    def _upsert_workload(self, workload: Workload, changes: Changes) -> None:
        old = self.workloads.get(workload.uid)
        if old == workload:
            return
        self.workloads.put(workload)
        changes.services |= self.services.set_endpoints(old, workload, workload.services)
        changes.note_workload(old, workload)

    def _upsert_policy(self, policy: Authorization, changes: Changes) -> None:
        old = self._policies.get(policy.key)
        if self._policies.upsert(policy):
            if old is not None:
                changes.note_policy(old)
            changes.note_policy(policy)

    def _remove_address(self, name: str, changes: Changes) -> None:
        workload = self.workloads.pop(name)
        if workload is not None:
            changes.services |= self.services.set_endpoints(workload, None, {})
            changes.note_workload(workload, None)
        elif self.services.remove(name) is not None:
            changes.services.add(name)


def _known(records: Iterable[ServiceRecord]) -> list[Service]:
    return [record.service for record in records if record.service is not None]
