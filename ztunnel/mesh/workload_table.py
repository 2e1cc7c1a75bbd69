"""The workloads of the mesh, found by uid, address, hostname or pod."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from ztunnel.mesh.workload import NetworkMode, TunnelProtocol, Workload, WorkloadStatus

_Key = TypeVar("_Key")

# One workload under a key, or several by uid: a dictionary for each would weigh more than they do.
_Index = dict[_Key, Workload | dict[str, Workload]]


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

    __slots__ = ("_by_address", "_by_hostname", "_by_pod", "_by_uid")

    def __init__(self) -> None:
        self._by_uid: dict[str, Workload] = {}
        self._by_address: dict[str, dict[str, Workload | list[Workload]]] = {}
        self._by_hostname: _Index[str] = {}
        self._by_pod: dict[str, _Index[str]] = {}

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
        found = of_network.get(ip)
        return found[0] if isinstance(found, list) else found

    def find_by_hostname(self, hostname: str) -> list[Workload]:
        """Every workload of that hostname."""
        return _all(self._by_hostname, hostname.lower())

    def find_pod(
        self, name: str, namespace: str, service_account: str, node: str
    ) -> Workload | None:
        """A pod as a node agent names it; `node` "" takes it from any node."""
        for workload in _all(self._by_pod.get(namespace, {}), name):
            if workload.service_account == service_account and node in ("", workload.node):
                return workload
        return None

    def put(self, workload: Workload) -> Workload | None:
        """Take over a workload; gives the version it replaces."""
        old = self.pop(workload.uid)
        self._by_uid[workload.uid] = workload
        _add(self._by_pod.setdefault(workload.namespace, {}), workload.name, workload)
        if workload.hostname:
            _add(self._by_hostname, workload.hostname.lower(), workload)
        if workload.network_mode is NetworkMode.STANDARD:
            of_network = self._by_address.setdefault(workload.network, {})
            for ip in dict.fromkeys(workload.addresses):
                known = of_network.get(ip)
                if known is None:
                    of_network[ip] = workload
                else:
                    several = known if isinstance(known, list) else [known]
                    several.append(workload)
                    several.sort(key=_address_rank, reverse=True)
                    of_network[ip] = several
        return old

    def pop(self, uid: str) -> Workload | None:
        """Take a workload away; gives what it was."""
        old = self._by_uid.pop(uid, None)
        if old is None:
            return None
        of_namespace = self._by_pod[old.namespace]
        _discard(of_namespace, old.name, uid)
        if not of_namespace:
            del self._by_pod[old.namespace]
        if old.hostname:
            _discard(self._by_hostname, old.hostname.lower(), uid)
        if old.network_mode is NetworkMode.STANDARD:
            of_network = self._by_address.get(old.network, {})
            for ip in dict.fromkeys(old.addresses):
                known = of_network[ip]
                left = [w for w in known if w.uid != uid] if isinstance(known, list) else []
                if left:
                    of_network[ip] = left[0] if len(left) == 1 else left
                else:
                    del of_network[ip]
            if not of_network:
                self._by_address.pop(old.network, None)
        return old


def _add(index: _Index[_Key], key: _Key, workload: Workload) -> None:
    known = index.get(key)
    if known is None:
        index[key] = workload
    elif isinstance(known, dict):
        known[workload.uid] = workload
    else:
        index[key] = {known.uid: known, workload.uid: workload}


def _discard(index: _Index[_Key], key: _Key, uid: str) -> None:
    known = index[key]
    if isinstance(known, dict):
        del known[uid]
        if len(known) == 1:
            (index[key],) = known.values()
    else:
        del index[key]


def _all(index: _Index[_Key], key: _Key) -> list[Workload]:
    known = index.get(key)
    if known is None:
        return []
    return list(known.values()) if isinstance(known, dict) else [known]
