"""The pods that ztunnel was told to serve: what runs, what could not be started, what must go.

A pod that cannot be started is refused to the agent with the reason, stays here as pending and is
tried again; it never holds up another pod. What runs goes on running while the agent is away.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Protocol

import trio

from ztunnel.linux.netns import NetworkNamespace, is_network_namespace
from ztunnel.zds.messages import (
    AddWorkload,
    DeleteWorkload,
    KeepWorkload,
    Request,
    WorkloadInfo,
)

logger = logging.getLogger("ztunnel.zds")

START_TIMEOUT = 4.0
"""Seconds in which a pod's listeners must be up: the agent waits 5 s for the answer."""
RETRY_INTERVAL = 5.0
"""Seconds between attempts to start pods that are pending."""


class PodHandler(Protocol):
    """What serves the pods.

    `netns_fd` is lent until `delete` of that uid has returned: duplicate it to keep it longer. What
    `add` raises is answered to the agent; it may leave things half done, since `add` again is
    another attempt, and `delete` follows in the end for every uid that `add` was ever called with.
    """

    async def add(self, uid: str, info: WorkloadInfo, netns_fd: int) -> None: ...

    async def delete(self, uid: str) -> None: ...


class ProtocolError(Exception):
    """The agent broke the rules of ZDS: refuse, hang up, and start over with a clean snapshot."""


class StartFailed(Exception):
    """A pod could not be started; the connection with the agent is in order."""


@dataclass(slots=True)
class _Pod:
    info: WorkloadInfo
    namespace: NetworkNamespace
    failure: str = "is being started"  # why it does not run; empty when it does


class Pods:
    """Applies requests to a handler. One `apply` at a time; `retry_forever` runs beside it.

    `synchronised`: the current connection has delivered its snapshot.
    """

    def __init__(self, handler: PodHandler) -> None:
        self.synchronised = False
        self._handler = handler
        self._pods: dict[str, _Pod] = {}
        self._snapshot: set[str] = set()
        self._named_all = False  # some connection has delivered its snapshot
        # Per pod, so that a slow one is waited for by nobody else. The number counts users.
        self._locks: dict[str, tuple[trio.Lock, list[None]]] = {}

    @property
    def running(self) -> dict[str, WorkloadInfo]:
        """The pods that are served, by uid."""
        return {uid: pod.info for uid, pod in self._pods.items() if not pod.failure}

    @property
    def pending(self) -> dict[str, tuple[WorkloadInfo, str]]:
        """The pods that are not served though they should be, by uid, with the reason."""
        return {uid: (pod.info, pod.failure) for uid, pod in self._pods.items() if pod.failure}

    def adopt(self, uid: str, info: WorkloadInfo, netns_fd: int) -> bool:
        """A pod that runs already: the handler served it before this process knew of it.

        The agent's snapshot then decides as for any other that runs: an add of the same pod, or a
        keep, lets it go on; a pod that is not named is stopped. Copies `netns_fd`.

        Returns:
            False when a snapshot has been applied already, and this pod was not in it.
        """
        if uid not in self._pods:
            if self._named_all:
                return False
            namespace = NetworkNamespace(os.dup(netns_fd))
            self._pods[uid] = _Pod(info, namespace, failure="")
        return True

    def connected(self) -> None:
        """A new connection: its snapshot starts empty. Everything that runs goes on."""
        self.synchronised = False
        self._snapshot.clear()

    def disconnected(self) -> None:
        """The agent is away. Everything that runs goes on."""
        self.synchronised = False

    async def apply(self, request: Request, netns_fd: int | None) -> None:
        """Do what the agent asks. Takes ownership of `netns_fd`.

        Raises StartFailed and ProtocolError.
        """
        if isinstance(request, AddWorkload):
            if netns_fd is None:
                raise ProtocolError(f"add of {request.info} came without a network namespace")
            with closing(NetworkNamespace(netns_fd)) as namespace:
                if not is_network_namespace(netns_fd):
                    raise ProtocolError(f"add of {request.info} came with some other descriptor")
                await self._add(request, namespace)
            return
        if netns_fd is not None:
            os.close(netns_fd)
            raise ProtocolError(f"{type(request).__name__} came with a descriptor")
        if isinstance(request, DeleteWorkload):
            self._snapshot.discard(request.uid)
            await self._delete(request.uid)
        elif self.synchronised:
            raise ProtocolError(f"{type(request).__name__} came after the snapshot")
        elif isinstance(request, KeepWorkload):
            self._snapshot.add(request.uid)
        else:
            await self._reconcile()

    async def retry_forever(self) -> None:
        """Try pending pods again, all at once, every RETRY_INTERVAL seconds."""
        while True:
            await trio.sleep(RETRY_INTERVAL)
            async with trio.open_nursery() as nursery:
                for uid in self.pending:
                    nursery.start_soon(self._retry, uid)

    def close(self) -> None:
        """Let go of all namespaces. For the end of the process, when nothing is served any more."""
        for pod in self._pods.values():
            pod.namespace.close()
        self._pods.clear()

    async def _add(self, request: AddWorkload, namespace: NetworkNamespace) -> None:
        uid = request.uid
        if not self.synchronised:
            self._snapshot.add(uid)
        async with self._lock(uid):
            current = self._pods.get(uid)
            if current is not None:
                same = current.namespace.identity == namespace.identity
                if same and current.info == request.info:
                    if current.failure:
                        await self._start(uid, current)
                    return
                logger.info("%s (%s) has moved to another namespace", current.info, uid)
                await self._stop(uid)
            pod = _Pod(request.info, namespace.duplicate())
            self._pods[uid] = pod
            await self._start(uid, pod)

    async def _retry(self, uid: str) -> None:
        async with self._lock(uid):
            pod = self._pods.get(uid)
            if pod is None or not pod.failure:
                return  # deleted, or started by the agent's asking again
            try:
                await self._start(uid, pod)
            except StartFailed as error:
                logger.warning("still: %s", error)
            else:
                logger.info("%s (%s) is served at last", pod.info, uid)

    async def _start(self, uid: str, pod: _Pod) -> None:
        try:
            with trio.fail_after(START_TIMEOUT):
                await self._handler.add(uid, pod.info, pod.namespace.fd)
        except trio.TooSlowError:
            pod.failure = f"not serving after {START_TIMEOUT:g} s"
        except Exception as error:
            pod.failure = f"{type(error).__name__}: {error}"
            logger.debug("%s (%s) cannot be served", pod.info, uid, exc_info=error)
        else:
            pod.failure = ""
            return
        raise StartFailed(f"failure to start proxy for {pod.info}: {pod.failure}")

    async def _delete(self, uid: str) -> None:
        async with self._lock(uid):
            if uid in self._pods:
                await self._stop(uid)

    async def _stop(self, uid: str) -> None:
        pod = self._pods[uid]
        try:
            await self._handler.delete(uid)
        except Exception as error:
            # It stays in the table: the agent may ask again, and nobody believes it is gone.
            logger.exception("%s (%s) cannot be stopped", pod.info, uid)
            raise StartFailed(f"failure to stop proxy for {pod.info}: {error}") from error
        del self._pods[uid]
        pod.namespace.close()

    async def _reconcile(self) -> None:
        failures: dict[str, str] = {}
        # While one is stopped another may be adopted: only who looks last has seen them all.
        while stale := [uid for uid in self._pods if uid not in self._snapshot | failures.keys()]:
            for uid in stale:
                info = self._pods[uid].info
                logger.info("%s (%s) is not in the snapshot: stopping it", info, uid)
                try:
                    await self._delete(uid)
                except StartFailed as error:
                    failures[uid] = str(error)
        self.synchronised = self._named_all = True
        self._snapshot.clear()
        if failures:
            raise StartFailed("; ".join(failures.values()))

    @asynccontextmanager
    async def _lock(self, uid: str) -> AsyncIterator[None]:
        lock, users = self._locks.setdefault(uid, (trio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[uid]
