"""Writes conditions into the status of users' objects, while this process leads.

Never a loop: an object is written when what there is to say of it (or its generation) has changed,
and not because somebody else has written something there. Never over another owner: server-side
apply without force, with a field manager of our own; where another manager holds the same
conditions, the API server answers with a conflict, and the object is left to that one.
"""

from __future__ import annotations

import datetime
import logging
from functools import partial

import trio

from daemonset.control_plane.conditions import (
    Condition,
    Judgement,
    Standing,
    conditions_of,
    same_inputs,
)
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.sources.kubernetes import KubernetesSource
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.kube.client import APPLY_PATCH, ApiError, ApiUnavailableError, Json, KubeClient
from daemonset.kube.lease import LeaderElection
from daemonset.kube.reflector import Pace

MANAGER = "ambientd-status"

_Said = tuple[str, int, tuple[Condition, ...]]

_log = logging.getLogger("daemonset.control_plane")


class ConditionWriter:
    """Keeps the conditions as the last judgement has them.

    Attributes:
        written: how often something has been written.
    """

    def __init__(
        self,
        client: KubeClient,
        election: LeaderElection,
        source: KubernetesSource,
        settings: MeshSettings,
        pace: Pace | None = None,
    ) -> None:
        self._client = client
        self._election = election
        self._source = source
        self._settings = settings
        self._settle = (pace or Pace()).settle
        self._retry = (pace or Pace()).longest_pause / 6
        self._judgement: Judgement | None = None
        self._last: Judgement | None = None
        self._wanted: dict[ObjectKey, tuple[Condition, ...]] = {}
        self._said: dict[ObjectKey, _Said] = {}
        self._wake = trio.Event()
        self.written = 0

    def judged(self, judgement: Judgement) -> None:
        """There is a new judgement."""
        self._judgement = judgement
        self._wake.set()

    async def run(self) -> None:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_election)
            while True:
                await self._wake.wait()
                # What changes in quick succession is written once.
                await trio.sleep(self._settle)
                self._wake = trio.Event()
                try:
                    done = await self._write_all()
                except Exception:
                    # Serving matters more than saying so, and the next change may be the cure.
                    _log.exception("the status of objects cannot be worked out")
                    done = True
                if not done:
                    await trio.sleep(self._retry)
                    self._wake.set()

    async def _follow_election(self) -> None:
        while True:
            await self._election.changed.wait()
            # What another leader has written meanwhile is seen in the objects themselves.
            self._said.clear()
            self._wake.set()

    async def _write_all(self) -> bool:
        """Write what has to be said anew; False where something could not be written."""
        judgement = self._judgement
        if judgement is None or not self._election.is_leader:
            return True
        found = {key: one for key, one in self._source.standing.items() if self._is_ours(one)}
        for key in self._said.keys() - found.keys():
            del self._said[key]
        if not (
            self._last is not None
            and same_inputs(self._last, judgement)
            and self._wanted.keys() == found.keys()
        ):
            self._wanted = await trio.to_thread.run_sync(
                partial(conditions_of, found, judgement, self._settings)
            )
            self._last = judgement
        return await self._write_each(found, self._wanted)

    async def _write_each(
        self,
        found: dict[ObjectKey, Standing],
        wanted: dict[ObjectKey, tuple[Condition, ...]],
    ) -> bool:
        done = True
        for key, conditions in sorted(wanted.items()):
            if not self._election.is_leader:
                break
            there = found[key]
            said = (there.uid, there.generation, conditions)
            if self._said.get(key) == said:
                continue
            if _stands(there, conditions) or await self._write(key, there, conditions):
                self._said[key] = said
            else:
                done = False
        return done

    def _is_ours(self, there: Standing) -> bool:
        return (there.revision or self._settings.revision) == self._settings.revision

    async def _write(
        self, key: ObjectKey, there: Standing, conditions: tuple[Condition, ...]
    ) -> bool:
        """False where it is worth trying again."""
        version, path = self._source.address(key)
        # Not another one of the same name that has come since.
        meta = {"name": key.name, "namespace": key.namespace, "uid": there.uid}
        body: Json = {
            "apiVersion": version,
            "kind": key.kind,
            "metadata": meta,
            "status": {"conditions": _encode(there, conditions)},
        }
        query = {"fieldManager": MANAGER}
        try:
            await self._client.call("PATCH", f"{path}/status", query, body, APPLY_PATCH)
        except ApiError as error:
            if error.status == 404:
                return True  # gone, and soon known to be
            if error.status == 409:
                _log.warning("%s: its status is left to its owner: %s", key, error)
                return True
            _log.warning("the status of %s cannot be written: %s", key, error)
            return False
        except ApiUnavailableError as error:
            _log.warning("the status of %s cannot be written: %s", key, error)
            return False
        self.written += 1
        return True


def _stands(there: Standing, conditions: tuple[Condition, ...]) -> bool:
    """Does the object say all of this already, and nothing else of ours?"""
    same = set(there.conditions) == set(conditions)
    return same and (not conditions or there.observed == {there.generation})


def _encode(there: Standing, conditions: tuple[Condition, ...]) -> list[Json]:
    before = {condition.type: condition.status for condition in there.conditions}
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": there.generation,
            "lastTransitionTime": (
                there.times[condition.type] or now
                if before.get(condition.type) == condition.status
                else now
            ),
        }
        for condition in conditions
    ]
