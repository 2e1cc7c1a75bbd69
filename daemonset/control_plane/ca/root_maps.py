"""The roots for everybody: ConfigMap istio-ca-root-cert in every namespace, written by the leader.

A map that somebody else keeps, with other roots in it, is left alone and complained about: two
owners that write over each other would cut off workloads in turn.

Nobody is left to take them away once the mesh is uninstalled: they belong to the control plane's
own namespace, and Kubernetes collects them when it is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import trio

from daemonset.control_plane.ca.secret_authority import ROOT_MAP
from daemonset.kube.client import APPLY_PATCH, ApiError, ApiUnavailableError, Json, KubeClient
from daemonset.kube.lease import LeaderElection
from daemonset.kube.reflector import Pace, Reflector, Resource
from daemonset.kube.table import Table

KEY = "root-cert.pem"
MANAGED_BY = "app.kubernetes.io/managed-by"
OWNER = "ambientd"

_RETRY_SECONDS = 5.0
_MAPS = Resource("", ("v1",), "configmaps", (("fieldSelector", f"metadata.name={ROOT_MAP}"),))
_NAMESPACES = Resource("", ("v1",), "namespaces")

_log = logging.getLogger("daemonset.control_plane.ca")


class _Map(NamedTuple):
    """What is there: the roots, whether we wrote it, and the namespace (its UID) that owns it."""

    roots: str
    is_ours: bool
    owner: str


class RootMaps:
    """Keeps the maps as they should be, while this process leads.

    Args:
        roots: the PEM to hand out now.
        home: the control plane's namespace, with which the maps go.
    """

    def __init__(
        self,
        client: KubeClient,
        election: LeaderElection,
        roots: Callable[[], str],
        home: str,
        pace: Pace | None = None,
    ) -> None:
        self._home = ("", home)
        self._client = client
        self._election = election
        self._roots = roots
        self._maps: Table[_Map] = Table(_content)
        self._namespaces: Table[str] = Table(_uid)
        self._wake = trio.Event()
        self._foreign: set[str] = set()
        limiter = trio.CapacityLimiter(1)
        self._reflectors = [
            Reflector(client, resource, table, limiter, self.look, pace)
            for resource, table in ((_MAPS, self._maps), (_NAMESPACES, self._namespaces))
        ]

    def look(self) -> None:
        """Look again: roots have changed, or something else that no watch tells."""
        self._wake.set()

    async def run(self) -> None:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            for reflector in self._reflectors:
                nursery.start_soon(reflector.run)
            for table in (self._maps, self._namespaces):
                nursery.start_soon(self._follow, table)
            nursery.start_soon(self._follow, self._election)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                if not await self._write_all():
                    await trio.sleep(_RETRY_SECONDS)
                    self.look()

    async def _follow(self, what: Table[str] | Table[_Map] | LeaderElection) -> None:
        while True:
            await what.changed.wait()
            self.look()

    async def _write_all(self) -> bool:
        """Write what differs; False where something could not be written."""
        if not (self._maps.complete and self._namespaces.complete):
            return True
        done = True
        for _, namespace in sorted(self._namespaces.values):
            if not self._election.is_leader:
                break
            roots = self._roots()
            found = self._maps.values.get((namespace, ROOT_MAP))
            # Not known while it is being deleted; the owner that was written stays.
            owner = self._namespaces.values.get(self._home, "")
            if found is not None and found.roots == roots:
                self._foreign.discard(namespace)
                if not found.is_ours or owner in ("", found.owner):
                    continue
            if found is not None and not found.is_ours:
                self._complain(namespace)
                continue
            try:
                await self._write(namespace, roots, owner or (found.owner if found else ""))
            except (ApiError, ApiUnavailableError) as error:
                # One that is being deleted takes nothing new, and is soon gone.
                if not (isinstance(error, ApiError) and "being terminated" in str(error)):
                    _log.warning("ConfigMap %s/%s: %s", namespace, ROOT_MAP, error)
                    done = False
        return done

    def _complain(self, namespace: str) -> None:
        if namespace not in self._foreign:
            self._foreign.add(namespace)
            _log.error(
                "ConfigMap %s/%s belongs to somebody else and holds other roots: workloads there "
                "do not trust this mesh. Once its owner is gone, delete it",
                namespace,
                ROOT_MAP,
            )

    async def _write(self, namespace: str, roots: str, owner: str) -> None:
        meta: Json = {
            "name": ROOT_MAP,
            "namespace": namespace,
            "labels": {MANAGED_BY: OWNER, "istio.io/config": "true"},
        }
        if owner:
            reference = {"apiVersion": "v1", "kind": "Namespace", "name": self._home[1]}
            meta["ownerReferences"] = [{**reference, "uid": owner}]
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta,
            "data": {KEY: roots},
        }
        path = f"/api/v1/namespaces/{namespace}/configmaps/{ROOT_MAP}"
        query = {"fieldManager": OWNER, "force": "true"}
        await self._client.call("PATCH", path, query, body, APPLY_PATCH)


def _content(item: Json) -> _Map:
    meta = item["metadata"]
    owners = [each["uid"] for each in meta.get("ownerReferences") or ()]
    return _Map(
        str((item.get("data") or {}).get(KEY, "")),
        (meta.get("labels") or {}).get(MANAGED_BY) == OWNER,
        owners[0] if owners else "",
    )


def _uid(item: Json) -> str | None:
    """Of a namespace that lives on."""
    meta = item["metadata"]
    return None if meta.get("deletionTimestamp") else str(meta["uid"])
