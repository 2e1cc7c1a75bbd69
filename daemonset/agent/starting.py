"""The agent's answer to the CNI plugin: a pod starts once it is as it should be."""

import trio

from daemonset.agent.agent import Agent
from daemonset.agent.book_source import BookSource
from daemonset.agent.cni_request import CniRequest
from daemonset.agent.cni_server import CniRefused
from daemonset.agent.pod_book import Sandbox
from daemonset.agent.status import PodState

PATIENCE = 25.0
"""Seconds; the plugin waits a little longer by default, and then the kubelet tries again."""


class Starting:
    """Holds pods back until they are captured, or are known not to be in the mesh.

    Args:
        source: of the same agent.
    """

    def __init__(self, source: BookSource, agent: Agent) -> None:
        self._source = source
        self._book = source.book
        self._agent = agent

    async def answer(self, request: CniRequest) -> None:
        """See `CniServer`."""
        with trio.move_on_after(PATIENCE):
            uid = await self._known(request)
            if request.command == "ADD":
                self._book.tell(uid, Sandbox(request.netns, request.addresses))
                self._source.changed()
                await self._settled(uid, request.netns)
            self._check(uid)
            return
        raise CniRefused(self._why_not(request))

    async def _known(self, request: CniRequest) -> str:
        while True:
            uid = self._book.find(request.pod_uid, request.pod_namespace, request.pod_name)
            if uid is not None:
                return uid
            await self._source.next_change().wait()

    async def _settled(self, uid: str, netns: str) -> None:
        """Return when the pod is as it should be, or has been deleted meanwhile."""
        async with trio.open_nursery() as nursery:

            async def until_deleted() -> None:
                while True:
                    changed = self._source.next_change()
                    if not self._book.has(uid):
                        break
                    await changed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_deleted)
            await self._agent.wait_settled(uid, netns)
            nursery.cancel_scope.cancel()

    def _check(self, uid: str) -> None:
        if not self._book.has(uid):
            raise CniRefused("the pod has been deleted")
        status = self._agent.pod_status(uid)
        if status is None or status.state not in (PodState.ENROLLED, PodState.NOT_IN_MESH):
            raise CniRefused(status.reason if status is not None else "the pod is being deleted")

    def _why_not(self, request: CniRequest) -> str:
        uid = self._book.find(request.pod_uid, request.pod_namespace, request.pod_name)
        if uid is None:
            return f"the API server has not told the node agent of this pod within {PATIENCE:g} s"
        status = self._agent.pod_status(uid)
        if status is None:
            return "the node agent has not come to this pod yet"
        return f"{status.state.value}: {status.reason}"
