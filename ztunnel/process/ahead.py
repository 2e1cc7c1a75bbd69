"""Workloads that name policies which are still on their way.

istiod sends what is new of workloads before what is new of policies. Taken at its word, a workload
would deny everybody in between, and lose connections that the new policy allows. So the policies
that it had stay the ones it has until the new one is there, or for `GRACE` seconds: then it denies.
A workload that was not known before has none to keep, and denies from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from ztunnel.mesh.changes import Resource
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload

GRACE: Final = 1.0  # seconds; istiod needs some milliseconds


class Ahead:
    """The workloads that wait for policies.

    Args:
        state: what is in force.
    """

    def __init__(self, state: MeshState) -> None:
        self._state = state
        self._waiting: dict[str, tuple[float, Workload]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def hold(
        self, upserts: Iterable[Resource], removed: Iterable[str], now: float
    ) -> list[Resource]:
        """What of one step on workloads and services may come into force at once."""
        for name in removed:
            self._waiting.pop(name, None)
        ready: list[Resource] = []
        for resource in upserts:
            if isinstance(resource, Workload):
                self._waiting.pop(resource.uid, None)
                before = self._state.workload(resource.uid)
                if before is not None and self._is_ahead(resource, before):
                    self._waiting[resource.uid] = (now, resource)
                    had = before.authorization_policies
                    ready.append(replace(resource, authorization_policies=had))
                    continue
            ready.append(resource)
        return ready

    def _is_ahead(self, workload: Workload, before: Workload) -> bool:
        known, had = self._state.policy, before.authorization_policies
        return any(
            name not in had and known(name) is None for name in workload.authorization_policies
        )

    def release(self, arriving: Sequence[str]) -> list[Workload]:
        """Those for which nothing is missing once these policies are in force as well."""
        ready = [
            workload
            for _, workload in self._waiting.values()
            if all(
                name in arriving or self._state.policy(name) is not None
                for name in workload.authorization_policies
            )
        ]
        for workload in ready:
            del self._waiting[workload.uid]
        return ready

    def expire(self, now: float) -> list[Workload]:
        """Those that have waited for long enough."""
        late = [workload for since, workload in self._waiting.values() if since + GRACE <= now]
        for workload in late:
            del self._waiting[workload.uid]
        return late
