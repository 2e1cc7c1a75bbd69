"""The Kubernetes API as a source of objects: each kind listed and watched.

Kinds that are not installed are no error: what they would bring is off, and is picked up when
they appear.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import trio

from daemonset.control_plane.conditions import Standing
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.kubernetes_kinds import KINDS
from daemonset.control_plane.sources.kubernetes_store import KindStore
from daemonset.control_plane.sources.problem import Problem
from daemonset.kube.client import KubeClient
from daemonset.kube.reflector import Pace, Reflector

_log = logging.getLogger("daemonset.control_plane.sources")

_LISTS_AT_ONCE = 3
_REMIND_SECONDS = 10.0


class KubernetesSource:
    """Implements ``Source``; ``open`` may be called once."""

    def __init__(self, client: KubeClient, pace: Pace | None = None) -> None:
        self._change = trio.Event()
        self._complete = trio.Event()
        self._stores = [KindStore(kind, self._changed) for kind in KINDS]
        self._waiting = {kind.kind for kind in KINDS}
        limiter = trio.CapacityLimiter(_LISTS_AT_ONCE)
        self.reflectors = {
            store.kind.kind: Reflector(
                client,
                store.kind.resource,
                store,
                limiter,
                partial(self._synced, store.kind.kind),
                pace,
            )
            for store in self._stores
        }

    @property
    def objects(self) -> ObjectSet:
        fields: dict[str, Any] = {store.kind.field: store.objects for store in self._stores}
        return ObjectSet(**fields)

    @property
    def problems(self) -> tuple[Problem, ...]:
        found = [problem for store in self._stores for problem in store.problems.values()]
        return tuple(sorted(found))

    @property
    def off(self) -> tuple[str, ...]:
        return tuple(store.off for store in self._stores if store.is_absent)

    @property
    def standing(self) -> dict[ObjectKey, Standing]:
        """All objects whose status is written here, readable or not, as they are now."""
        return {
            ObjectKey(store.kind.kind, name[0], name[1]): found
            for store in self._stores
            for name, found in store.standing.items()
            if not isinstance(name, str)
        }

    def store(self, kind: str) -> KindStore:
        """What is known of one kind."""
        [found] = [store for store in self._stores if store.kind.kind == kind]
        return found

    def address(self, key: ObjectKey) -> tuple[str, str]:
        """The apiVersion and the path of an object of a namespace."""
        reflector = self.reflectors[key.kind]
        resource = self.store(key.kind).kind.resource
        version = reflector.version
        path = resource.path(version).removesuffix(resource.plural)
        group_version = f"{resource.group}/{version}" if resource.group else version
        return group_version, f"{path}namespaces/{key.namespace}/{resource.plural}/{key.name}"

    def place(self, key: ObjectKey, field: str = "") -> str:
        """Objects of the API stand in no file."""
        return f"{key} {field}" if field else str(key)

    async def open(self, nursery: trio.Nursery) -> None:
        """Returns once all kinds are complete: a mesh without its policies must not be served."""
        for reflector in self.reflectors.values():
            nursery.start_soon(reflector.run)
        while not self._complete.is_set():
            with trio.move_on_after(_REMIND_SECONDS):
                await self._complete.wait()
                break
            for kind in sorted(self._waiting):
                trouble = self.reflectors[kind].trouble or "no answer yet"
                _log.warning("waiting for all objects of kind %s: %s", kind, trouble)
        # Whoever opens a source takes its objects at once: what came so far is no change to them.
        self._change = trio.Event()

    async def next_change(self) -> None:
        await self._change.wait()
        self._change = trio.Event()

    def _changed(self) -> None:
        self._change.set()

    def _synced(self, kind: str) -> None:
        self._waiting.discard(kind)
        if not self._waiting:
            self._complete.set()
