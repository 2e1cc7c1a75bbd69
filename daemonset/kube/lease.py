"""Leader election over a Lease (coordination.k8s.io/v1), as Kubernetes' own components do it.

The clocks of two machines are never compared: a lease has run out when its holder has not been
*seen* to renew it for as long as it said. A leader that cannot renew steps down well before that,
so that there is never a second one beside it.
"""

from __future__ import annotations

import datetime
import logging
import random
from dataclasses import dataclass

import trio

from daemonset.kube.client import ApiError, ApiUnavailableError, Json, KubeClient

_log = logging.getLogger("daemonset.kube")


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """In seconds: how long a lease holds, when a leader without renewal steps down, and how long
    to wait between two looks."""

    duration: float = 15.0
    step_down: float = 10.0
    look: float = 2.0


class LeaderElection:
    """One candidate.

    Args:
        identity: of this process, unlike that of any other.

    Attributes:
        changed: is set, and replaced, when ``is_leader`` changes.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes | None = None,
    ) -> None:
        self._client = client
        self._folder = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name = namespace, name
        self._identity = identity
        self._times = times or LeaseTimes()
        self._renewed_at = 0.0
        self._seen: tuple[str, str] = ("", "")  # holder and time of renewal, as they stand there
        self._seen_at = 0.0
        self._trouble = ""
        self.is_leader = False
        self.changed = trio.Event()

    async def run(self) -> None:
        """Never returns. When cancelled, the lease is given back."""
        try:
            while True:
                await self._look()
                await trio.sleep(self._times.look * random.uniform(0.8, 1.2))
        finally:
            if self.is_leader:
                with trio.move_on_after(self._times.look, shield=True):
                    await self._give_back()

    async def _look(self) -> None:
        try:
            # An answer that comes after the time to step down is of no use.
            with trio.move_on_after(self._times.step_down - self._times.look):
                await self._try()
            self._trouble = ""
        except (ApiError, ApiUnavailableError) as error:
            if str(error) != self._trouble:
                _log.warning("lease %s/%s: %s", self._namespace, self._name, error)
            self._trouble = str(error)
        if self.is_leader and trio.current_time() - self._renewed_at > self._times.step_down:
            self._set(False)

    async def _try(self) -> None:
        try:
            lease = await self._client.call("GET", f"{self._folder}/{self._name}")
        except ApiError as error:
            if error.status != 404:
                raise
            lease = None
        started = trio.current_time()
        try:
            if lease is None:
                await self._client.call("POST", self._folder, body=self._lease(None))
            elif self._is_free(lease, started):
                path = f"{self._folder}/{self._name}"
                await self._client.call("PUT", path, body=self._lease(lease))
            else:
                self._set(False)
                return
        except ApiError as error:
            if error.status != 409:
                raise
            return  # somebody else was faster: look again
        self._renewed_at = started
        self._set(True)

    def _is_free(self, lease: Json, now: float) -> bool:
        spec = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        seen = (holder, str(spec.get("renewTime") or ""))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        duration = float(spec.get("leaseDurationSeconds") or self._times.duration)
        return holder in ("", self._identity) or now - self._seen_at > duration

    def _lease(self, before: Json | None, holder: str | None = None) -> Json:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        now = now.replace("+00:00", "Z")
        old = (before or {}).get("spec") or {}
        taken = old.get("holderIdentity") != self._identity
        transitions = int(old.get("leaseTransitions") or 0)
        spec = {
            "holderIdentity": self._identity if holder is None else holder,
            "leaseDurationSeconds": max(1, round(self._times.duration)),
            "acquireTime": now if taken else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": transitions + 1 if before is not None and taken else transitions,
        }
        meta = {"name": self._name, "namespace": self._namespace}
        if before is not None:
            meta["resourceVersion"] = before["metadata"]["resourceVersion"]
        version = "coordination.k8s.io/v1"
        return {"apiVersion": version, "kind": "Lease", "metadata": meta, "spec": spec}

    async def _give_back(self) -> None:
        path = f"{self._folder}/{self._name}"
        try:
            lease = await self._client.call("GET", path)
            if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                await self._client.call("PUT", path, body=self._lease(lease, holder=""))
        except (ApiError, ApiUnavailableError) as error:
            _log.info("the lease runs out by itself: %s", error)
        self._set(False)

    def _set(self, leader: bool) -> None:
        if leader == self.is_leader:
            return
        self.is_leader = leader
        what = "leads" if leader else "does not lead any more"
        _log.info("lease %s/%s: %s %s", self._namespace, self._name, self._identity, what)
        self.changed.set()
        self.changed = trio.Event()
