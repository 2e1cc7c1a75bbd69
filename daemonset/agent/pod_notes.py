"""What the agent writes about its pods into the API: an annotation, and events.

The annotation is what a control plane goes by when it tells others to speak HBONE to a pod; its
name and values are Istio's. Only pods of this node are written, and only their status subresource.
"""

import datetime
import logging
import math
import uuid
from collections.abc import Sequence

import trio

from daemonset.agent.agent import Agent
from daemonset.agent.book_source import BookSource
from daemonset.agent.status import PodState, PodStatus
from daemonset.kube.client import MERGE_PATCH, ApiError, ApiUnavailableError, KubeClient

logger = logging.getLogger("daemonset.agent")

REDIRECTION = "ambient.istio.io/redirection"
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
_AT_ONCE = 16
"""Requests: where an installation is deleted, the right to write goes with it within moments."""
PENDING_SECONDS = 3.0
"""Until there is an event of a pod without ztunnel: an agent that has just started has none."""
_TROUBLE = (PodState.STOPPED, PodState.FAILED, PodState.PENDING)


def annotation(status: PodStatus, present: str | None) -> str | None:
    """Pure: what the annotation of a pod is to be, given what it is.

    A pod that was in the mesh stays in it while it is on its way, cut off, or without a ztunnel (an
    agent that has just started knows of none yet): what others send to it must go through a tunnel
    or be refused meanwhile, not be sent in the clear.
    """
    if status.state is PodState.ENROLLED:
        return "enabled"
    if status.state in (PodState.NOT_IN_MESH, PodState.LEAVING):
        # Before it has left: whoever still came through a tunnel then would find nobody.
        return None
    if status.state is PodState.PENDING and present is None:
        return "pending"
    return present


class PodNotes:
    """Follows the agent's status with annotations and events."""

    def __init__(self, client: KubeClient, node: str, source: BookSource, agent: Agent) -> None:
        self._client = client
        self._node = node
        self._source = source
        self._agent = agent
        self._said: dict[str, tuple[PodState, str]] = {}  # by uid: the event written last
        self._written: dict[str, str | None] = {}  # by uid: ahead of what the watch has told
        self._wrote = trio.Event()
        self._pending: dict[str, float] = {}  # by uid: since when it is without ztunnel
        self.refusal = ""
        """Why nothing may be written any more, as the API server says it; "" as long as it may."""

    async def run(self) -> None:
        """Write, until cancelled. Never raises else: what cannot be written is tried again."""
        pause = FIRST_PAUSE
        while True:
            changed = self._agent.next_change()
            try:
                next_event = await self._write()
                pause = FIRST_PAUSE
                self.refusal = ""
            except (ApiError, ApiUnavailableError) as error:
                refused = isinstance(error, ApiError) and error.status in (401, 403)
                self.refusal = str(error) if refused else ""
                self._tried()
                logger.warning("pods cannot be annotated: %s; trying again", error)
                await trio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            with trio.move_on_after(next_event):
                await changed.wait()

    def unwritten(self) -> list[str]:
        """Pods ("namespace/name") whose annotation is not yet what it is to be."""
        return [
            f"{status.namespace}/{status.name}"
            for status in self._agent.status.pods
            if annotation(status, self._present(status.uid)) != self._present(status.uid)
        ]

    async def wait_written(self) -> None:
        """Return when every annotation is what it is to be, or none may be written any more."""
        while self.unwritten() and not self.refusal:
            await self._wrote.wait()

    async def wait_taken_off(self, uid: str) -> None:
        """Return when a pod that leaves has no annotation any more, or none may be written."""
        while self._present(uid) is not None and not self.refusal:
            await self._wrote.wait()

    async def _write(self) -> float:
        """Seconds after which there is an event to write if nothing changes until then."""
        statuses = self._agent.status.pods
        known = {status.uid for status in statuses}
        self._said = {uid: said for uid, said in self._said.items() if uid in known}
        self._written = {uid: value for uid, value in self._written.items() if uid in known}
        pending = {status.uid for status in statuses if status.state is PodState.PENDING}
        now = trio.current_time()
        self._pending = {uid: self._pending.get(uid, now) for uid in pending}
        await self._annotate_all(statuses)
        next_event = math.inf
        for status in statuses:
            if status.state in _TROUBLE and self._is_news(status):
                wait = self._pending.get(status.uid, -math.inf) + PENDING_SECONDS - now
                if wait <= 0:
                    await self._say(status)
                else:
                    next_event = min(next_event, wait)
        self._tried()
        return next_event

    async def _annotate_all(self, statuses: Sequence[PodStatus]) -> None:
        wrong: list[ApiError | ApiUnavailableError] = []
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def annotate(status: PodStatus, wanted: str | None) -> None:
            async with limit:
                try:
                    await self._annotate(status, wanted)
                except (ApiError, ApiUnavailableError) as error:
                    wrong.append(error)
                else:
                    self._tried()

        async with trio.open_nursery() as nursery:
            for status in statuses:
                present = self._present(status.uid)
                wanted = annotation(status, present)
                if wanted != present:
                    nursery.start_soon(annotate, status, wanted)
        if wrong:
            raise wrong[0]

    def _tried(self) -> None:
        self._wrote.set()
        self._wrote = trio.Event()

    def _present(self, uid: str) -> str | None:
        """What the API has: the watch tells of our own writing only later."""
        told = self._source.book.annotation(uid, REDIRECTION)
        if uid in self._written:
            if self._written[uid] != told:
                return self._written[uid]
            del self._written[uid]
        return told

    async def _annotate(self, status: PodStatus, value: str | None) -> None:
        body = {"metadata": {"uid": status.uid, "annotations": {REDIRECTION: value}}}
        path = f"/api/v1/namespaces/{status.namespace}/pods/{status.name}/status"
        try:
            await self._client.call("PATCH", path, body=body, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status not in (404, 409):  # gone, or another pod of the same name by now
                raise
        self._written[status.uid] = value

    def _is_news(self, status: PodStatus) -> bool:
        return self._said.get(status.uid) != (status.state, status.reason)

    async def _say(self, status: PodStatus) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": status.name,
            "namespace": status.namespace,
            "uid": status.uid,
        }
        event = {
            "metadata": {"name": f"{status.name}.{uuid.uuid4().hex[:16]}"},
            "involvedObject": pod,
            "reason": "AmbientMeshNotReady",
            "message": f"{status.state.value}: {status.reason}"[:1024],
            "type": "Warning",
            "source": {"component": "ambient-agent", "host": self._node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        path = f"/api/v1/namespaces/{status.namespace}/events"
        try:
            await self._client.call("POST", path, body=event)
        except ApiError as error:
            # A courtesy; the state itself is in the annotation, the log and the metrics.
            logger.warning("no event could be written for %s: %s", status.name, error)
        self._said[status.uid] = (status.state, status.reason)
