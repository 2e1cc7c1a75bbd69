"""The pods of the node, as the control process hands them to the workers.

It holds duplicates of every worker's listening sockets. A worker that is
killed leaves its listeners open here, with everything that waits in their
queues, and its successor goes on with the very same sockets: no client that
was already in the queue is lost.

The other way round, workers that outlive a control process tell the next one
what they serve, and it takes that over as it is.
"""

import logging
import os
from collections.abc import Callable
from typing import Final

import trio

from ztunnel.linux.netns import identity_of
from ztunnel.process import messages
from ztunnel.process.channel import close_all
from ztunnel.process.worker_link import WorkerLink
from ztunnel.telemetry.counters import Counters
from ztunnel.zds.messages import WorkloadInfo

log = logging.getLogger("ztunnel.control")

_START_TIMEOUT: Final = 4.0  # seconds; the node agent waits for five
RETRY_EVERY: Final = 5.0  # seconds


class _Pod:
    """A pod that is to be served. Owns its descriptors."""

    def __init__(self, uid: str, serial: int, info: WorkloadInfo, netns_fd: int | None) -> None:
        self.uid = uid
        self.serial = serial
        self.info = info
        self.netns_fd = netns_fd
        self.listeners: dict[int, dict[str, int]] = {}  # by worker slot, then by kind
        self.failures: dict[int, str] = {}  # by worker slot
        self.changed = trio.Event()

    def hold(self, slot: int, kinds: list[str], fds: list[int]) -> None:
        """A worker listens with these sockets."""
        close_all(self.listeners.pop(slot, {}).values())
        self.listeners[slot] = dict(zip(kinds, fds, strict=True))
        self.failures.pop(slot, None)
        self.notify()

    def is_same(self, info: WorkloadInfo, netns_fd: int | None) -> bool:
        """Whether that is this very pod in this very namespace."""
        if info != self.info or netns_fd is None or self.netns_fd is None:
            return info == self.info and netns_fd is self.netns_fd
        return identity_of(netns_fd) == identity_of(self.netns_fd)

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def let_go(self) -> None:
        """Closes the listeners that are held."""
        for held in self.listeners.values():
            close_all(held.values())
        self.listeners.clear()

    def close(self) -> None:
        self.let_go()
        if self.netns_fd is not None:
            os.close(self.netns_fd)
            self.netns_fd = None


class Pods:
    """A ZDS handler that serves pods by the workers (see `zds.pods.PodHandler`).

    Args:
        workers: by slot.
        adopt: asked about each pod that a worker serves already, with uid, info and the lent
            namespace descriptor: false when the node agent has named all pods, and not this one.
    """

    def __init__(
        self,
        workers: dict[int, WorkerLink],
        counters: Counters,
        adopt: Callable[[str, WorkloadInfo, int], bool],
    ) -> None:
        self._workers = workers
        self._adopt = adopt
        self._started = counters.counter("workload_manager_proxies_started")
        self._stopped = counters.counter("workload_manager_proxies_stopped")
        self._pods: dict[str, _Pod] = {}
        self._serial = 0
        self._draining = False

    # ---- what the node agent asks for

    async def add(self, uid: str, info: WorkloadInfo, netns_fd: int | None) -> None:
        """Has a pod served; returns when at least one worker listens on all of its ports.

        Raises:
            RuntimeError: no worker could, with what they said.
        """
        if self._draining:
            raise RuntimeError("this ztunnel is being shut down")
        old = self._pods.pop(uid, None)
        pod = self._new(uid, info, os.dup(netns_fd) if netns_fd is not None else None)
        if old is not None:
            old.close()
        # The first to listen gets the pod's first connections: not the same worker for every pod.
        workers = self._welcome()
        first = pod.serial % len(workers) if workers else 0
        for worker in (*workers[first:], *workers[:first]):
            self._send(worker, pod)
        with trio.move_on_after(_START_TIMEOUT):
            while not pod.listeners and self._pods.get(uid) is pod:
                if len(pod.failures) >= len(self._welcome()) > 0:
                    raise RuntimeError("; ".join(sorted(set(pod.failures.values()))))
                await pod.changed.wait()
        if not pod.listeners:
            raise RuntimeError(f"no worker serves the pod within {_START_TIMEOUT:g}s")
        self._started.add()

    async def delete(self, uid: str) -> None:
        """Stops serving a pod: its connections end."""
        pod = self._pods.pop(uid, None)
        if pod is not None:
            pod.close()
            pod.notify()
            self._stopped.add()
            for worker in self._welcome():
                worker.send(messages.POD_GONE, uid)

    # ---- what workers say

    def held(
        self, worker: WorkerLink, uid: str, info: WorkloadInfo, netns_fd: int | None,
        kinds: list[str], fds: list[int],
    ) -> None:  # fmt: skip
        """A worker that has just been joined serves this pod. Takes the descriptors over."""
        pod = self._pods.get(uid)
        if (
            pod is None
            and not self._draining
            and (netns_fd is None or self._adopt(uid, info, netns_fd))
        ):
            log.info("pod %s is served by worker %d already", info, worker.slot)
            pod = self._new(uid, info, netns_fd)
        elif pod is not None and pod.is_same(info, netns_fd) and not self._draining:
            if netns_fd is not None:
                os.close(netns_fd)
        else:
            close_all([*fds, *([netns_fd] if netns_fd is not None else [])])
            worker.send(messages.POD_GONE, uid)
            return
        pod.hold(worker.slot, kinds, fds)

    def ready(
        self, worker: WorkerLink, uid: str, serial: int, kinds: list[str], fds: list[int]
    ) -> None:
        """A worker listens for a pod, with these sockets."""
        pod = self._pods.get(uid)
        if pod is None or pod.serial != serial or worker.gone or self._draining:
            close_all(fds)
        else:
            pod.hold(worker.slot, kinds, fds)

    def failed(self, worker: WorkerLink, uid: str, serial: int, reason: str) -> None:
        """A worker cannot serve a pod."""
        pod = self._pods.get(uid)
        if pod is not None and pod.serial == serial:
            log.warning("worker %d cannot serve pod %s: %s", worker.slot, pod.info, reason)
            pod.failures[worker.slot] = reason
            pod.notify()

    def welcome(self, worker: WorkerLink) -> None:
        """A worker is to serve all pods; a new one goes on with the listeners of its predecessor
        in the slot."""
        for pod in self._pods.values():
            self._send(worker, pod)

    async def retry_forever(self) -> None:
        """Asks workers again that could not serve a pod, where another one could."""
        while True:
            await trio.sleep(RETRY_EVERY)
            for pod in list(self._pods.values()):
                for slot in [slot for slot in pod.failures if pod.listeners]:
                    worker = self._workers.get(slot)
                    if worker is not None and worker.welcome:
                        self._send(worker, pod)

    # ---- the rest

    @property
    def known(self) -> dict[str, WorkloadInfo]:
        """All pods by uid."""
        return {uid: pod.info for uid, pod in self._pods.items()}

    def drain(self) -> None:
        """Takes no pods any more, and lets the listeners go: with a duplicate held here clients
        would go on being connected, to nobody."""
        self._draining = True
        for pod in self._pods.values():
            pod.let_go()

    def close(self) -> None:
        """Lets everything go."""
        for pod in self._pods.values():
            pod.close()
        self._pods.clear()

    def _welcome(self) -> list[WorkerLink]:
        return [worker for worker in self._workers.values() if worker.welcome]

    def _new(self, uid: str, info: WorkloadInfo, netns_fd: int | None) -> _Pod:
        self._serial += 1
        pod = self._pods[uid] = _Pod(uid, self._serial, info, netns_fd)
        return pod

    def _send(self, worker: WorkerLink, pod: _Pod) -> None:
        held = pod.listeners.get(worker.slot, {})
        fds = [pod.netns_fd] if pod.netns_fd is not None else []
        info = pod.info
        try:
            worker.send(
                messages.POD,
                pod.uid,
                pod.serial,
                info.name,
                info.namespace,
                info.service_account,
                pod.netns_fd is not None,
                list(held),
                fds=[*fds, *held.values()],
            )
        except OSError as error:
            self.failed(worker, pod.uid, pod.serial, f"it cannot be handed over: {error}")
