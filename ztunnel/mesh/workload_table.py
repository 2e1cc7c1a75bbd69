"""The workloads of the mesh, found by uid, address, hostname or pod."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from ztunnel.mesh.identity import Identity
from ztunnel.mesh.workload import NetworkMode, TunnelProtocol, Workload, WorkloadStatus

_Key = TypeVar("_Key")


def _address_rank(workload: Workload) -> tuple[int, bool, str]:
    """Which of several workloads an address belongs to: the greatest.

    A pod beats an external endpoint or an entry made by hand that repeats its address; a
    workload that is gone but not yet removed (unhealthy) loses against its successor.
    """
    is_pod = "//Pod/" in workload.uid
    is_hbone = workload.tunnel_protocol is TunnelProtocol.HBONE
    healthy = workload.status is WorkloadStatus.HEALTHY
    return 2 * is_pod + is_hbone, healthy, workload.uid


class WorkloadTable:
    """Every workload. The indexes hold the workloads themselves: one look-up, no second one."""

    __slots__ = ("_by_address", "_by_hostname", "_by_identity", "_by_pod", "_by_uid")

    def __init__(self) -> None:
        self._by_uid: dict[str, Workload] = {}
        self._by_address: dict[str, dict[str, list[Workload]]] = {}
        self._by_hostname: dict[str, dict[str, Workload]] = {}
        self._by_pod: dict[tuple[str, str], dict[str, Workload]] = {}
        self._by_identity: dict[Identity, dict[str, Workload]] = {}

    def __len__(self) -> int:
        return len(self._by_uid)

    def __iter__(self) -> Iterator[Workload]:
        return iter(self._by_uid.values())

    def get(self, uid: str) -> Workload | None:
        """The workload of that uid."""
        return self._by_uid.get(uid)

    def find_by_address(self, network: str, ip: str) -> Workload | None:
        """The workload that the address means; host-network workloads are never meant."""
        of_network = self._by_address.get(network)
        if of_network is None:
            return None
        workloads = of_network.get(ip)
        return workloads[0] if workloads is not None else None

    def find_by_hostname(self, hostname: str) -> list[Workload]:
        """Every workload of that hostname."""
        return list(self._by_hostname.get(hostname.lower(), {}).values())

    def find_by_identity(self, identity: Identity) -> list[Workload]:
        """Every workload that runs as `identity`."""
        return list(self._by_identity.get(identity, {}).values())

    def find_pod(
        self, name: str, namespace: str, service_account: str, node: str
    ) -> Workload | None:
        """A pod as a node agent names it; `node` "" takes it from any node."""
        for workload in self._by_pod.get((namespace, name), {}).values():
            if workload.service_account == service_account and node in ("", workload.node):
                return workload
        return None

    def put(self, workload: Workload) -> Workload | None:
        """Take over a workload; gives the version it replaces."""
        old = self.pop(workload.uid)
        self._by_uid[workload.uid] = workload
        self._by_pod.setdefault((workload.namespace, workload.name), {})[workload.uid] = workload
        self._by_identity.setdefault(workload.identity, {})[workload.uid] = workload
        if workload.hostname:
            named = self._by_hostname.setdefault(workload.hostname.lower(), {})
            named[workload.uid] = workload
        if workload.network_mode is NetworkMode.STANDARD:
            of_network = self._by_address.setdefault(workload.network, {})
            for ip in workload.addresses:
                workloads = of_network.setdefault(ip, [])
                if all(other is not workload for other in workloads):
                    workloads.append(workload)
                    workloads.sort(key=_address_rank, reverse=True)
        return old

    def pop(self, uid: str) -> Workload | None:
        """Take a workload away; gives what it was."""
        old = self._by_uid.pop(uid, None)
        if old is None:
            return None
        _discard(self._by_pod, (old.namespace, old.name), uid)
        _discard(self._by_identity, old.identity, uid)
        if old.hostname:
            _discard(self._by_hostname, old.hostname.lower(), uid)
        if old.network_mode is NetworkMode.STANDARD:
            of_network = self._by_address[old.network]
            for ip in old.addresses:
                workloads = [w for w in of_network.get(ip, []) if w.uid != uid]
                if workloads:
                    of_network[ip] = workloads
                else:
                    of_network.pop(ip, None)
        return old


def _discard(index: dict[_Key, dict[str, Workload]], key: _Key, uid: str) -> None:
    of_key = index[key]
    del of_key[uid]
    if not of_key:
        del index[key]
