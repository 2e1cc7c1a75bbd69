"""The pods of the node, as the control process hands them to the workers.

It holds duplicates of every worker's listening sockets. A worker that is
killed leaves its listeners open here, with everything that waits in their
queues, and its successor goes on with the very same sockets: no client that
was already in the queue is lost.
"""

import logging
import os
from typing import Final

import trio

from ztunnel.process import messages
from ztunnel.process.worker_link import WorkerLink
from ztunnel.zds.messages import WorkloadInfo

log = logging.getLogger("ztunnel.control")

_START_TIMEOUT: Final = 4.0  # seconds; the node agent waits for five


class _Pod:
    """A pod that is to be served."""

    def __init__(self, uid: str, info: WorkloadInfo, netns_fd: int | None) -> None:
        self.uid = uid
        self.info = info
        self.netns_fd = netns_fd
        self.listeners: dict[int, dict[str, int]] = {}  # by worker slot, then by kind
        self.failures: dict[int, str] = {}
        self.changed = trio.Event()

    def close(self) -> None:
        if self.netns_fd is not None:
            os.close(self.netns_fd)
        for held in self.listeners.values():
            for fd in held.values():
                os.close(fd)
        self.listeners.clear()


class Pods:
    """A ZDS handler that serves pods by the workers (see `zds.pods.PodHandler`)."""

    def __init__(self, workers: dict[int, WorkerLink]) -> None:
        self._workers = workers
        self._pods: dict[str, _Pod] = {}

    async def add(self, uid: str, info: WorkloadInfo, netns_fd: int | None) -> None:
        """Has a pod served; returns when at least one worker listens on all of its ports.

        Raises:
            RuntimeError: no worker could, with what they said.
        """
        old = self._pods.pop(uid, None)
        pod = _Pod(uid, info, os.dup(netns_fd) if netns_fd is not None else None)
        if old is not None:
            old.close()
        self._pods[uid] = pod
        for worker in self._workers.values():
            self._send(worker, pod)
        with trio.move_on_after(_START_TIMEOUT):
            while not pod.listeners:
                if pod.failures and len(pod.failures) >= len(self._workers):
                    raise RuntimeError("; ".join(sorted(set(pod.failures.values()))))
                await pod.changed.wait()
        if not pod.listeners:
            raise RuntimeError(f"no worker serves the pod within {_START_TIMEOUT:g}s")

    async def delete(self, uid: str) -> None:
        """Stops serving a pod: its connections end."""
        pod = self._pods.pop(uid, None)
        if pod is not None:
            pod.close()
            for worker in self._workers.values():
                worker.send(messages.POD_GONE, uid)

    def welcome(self, worker: WorkerLink) -> None:
        """A worker has started, or the control process has: it gets all pods.

        A new worker goes on with the listeners of its predecessor in the slot.
        """
        worker.send(messages.PODS_COMPLETE, list(self._pods))
        for pod in self._pods.values():
            self._send(worker, pod)

    def ready(self, worker: WorkerLink, uid: str, kinds: list[str], fds: list[int]) -> None:
        """A worker listens for a pod, with these sockets."""
        pod = self._pods.get(uid)
        if pod is None or worker.gone:
            for fd in fds:
                os.close(fd)
            return
        for fd in pod.listeners.pop(worker.slot, {}).values():
            os.close(fd)
        pod.listeners[worker.slot] = dict(zip(kinds, fds, strict=True))
        pod.failures.pop(worker.slot, None)
        self._notify(pod)

    def failed(self, worker: WorkerLink, uid: str, reason: str) -> None:
        """A worker cannot serve a pod."""
        pod = self._pods.get(uid)
        if pod is not None:
            pod.failures[worker.slot] = reason
            self._notify(pod)

    @property
    def known(self) -> dict[str, WorkloadInfo]:
        """All pods by uid."""
        return {uid: pod.info for uid, pod in self._pods.items()}

    def close(self) -> None:
        """Lets everything go."""
        for pod in self._pods.values():
            pod.close()
        self._pods.clear()

    def _send(self, worker: WorkerLink, pod: _Pod) -> None:
        held = pod.listeners.get(worker.slot, {})
        fds = [pod.netns_fd] if pod.netns_fd is not None else []
        info = pod.info
        worker.send(
            messages.POD,
            pod.uid,
            info.name,
            info.namespace,
            info.service_account,
            pod.netns_fd is not None,
            list(held),
            fds=[*fds, *held.values()],
        )

    @staticmethod
    def _notify(pod: _Pod) -> None:
        pod.changed.set()
        pod.changed = trio.Event()
