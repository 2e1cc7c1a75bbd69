"""The ZDS server: every ztunnel that connects learns of every pod, and is kept up to date.

Two ztunnels are connected while one takes over from the other. New pods go to the latest one only;
deletions go to all of them, since the old one must let go as well.
"""

import errno
import logging
import socket
from collections.abc import Mapping
from pathlib import Path

import trio

from daemonset.agent.private_socket import listening
from daemonset.agent.zds_connection import NoZtunnel, Served, ZdsConnection, ZtunnelError
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.zds.messages import WorkloadInfo

logger = logging.getLogger("daemonset.agent.zds")

ACCEPT_PAUSE = 0.2
"""Seconds between connections: a ztunnel that comes back at once for ever must not fill the day."""


class ZdsServer:
    """The pods to be served, and the ztunnels that serve them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._pods: dict[str, Served] = {}
        self._connections: list[ZdsConnection] = []  # oldest first
        self._accepted = 0
        self._changed = trio.Event()

    @property
    def connected(self) -> int:
        """How many ztunnels are connected."""
        return len(self._connections)

    @property
    def synchronised(self) -> bool:
        """Whether the latest ztunnel has its snapshot."""
        return bool(self._connections) and self._connections[-1].synchronised

    @property
    def refusals(self) -> Mapping[str, str]:
        """What the latest ztunnel did not accept in its snapshot: uid to reason."""
        return self._connections[-1].refusals if self._connections else {}

    async def wait_changed(self) -> None:
        """Return when a ztunnel has come, has been brought up to date, or has gone."""
        await self._changed.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve, until cancelled. Raises OSError when it cannot listen."""
        with listening(self.path, socket.SOCK_SEQPACKET) as listener:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    try:
                        sock = listener.accept()[0]
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                            raise
                        logger.error("cannot accept a ztunnel: %s", error)
                    else:
                        sock.setblocking(False)
                        nursery.start_soon(self._serve, sock)
                    await trio.sleep(ACCEPT_PAUSE)

    def put(self, uid: str, info: WorkloadInfo, namespace: NetworkNamespace | None) -> None:
        """From now on every snapshot names this pod. Takes a copy of `namespace`.

        None: it cannot be found. What was put before stays then, and what ztunnel has too.
        """
        current = self._pods.get(uid)
        if current is not None and current.namespace is not None:
            if namespace is None:
                return
            if current.info == info and current.namespace.identity == namespace.identity:
                return
            current.namespace.close()
        self._pods[uid] = Served(info, namespace.duplicate() if namespace is not None else None)

    async def add(self, uid: str) -> None:
        """Have the latest ztunnel serve a pod that was `put`; return when it does.

        Raises NoZtunnel when there is none, and ZtunnelError with its reason when it refuses. In
        either case the pod stays in the snapshot, and asking again is harmless.
        """
        served = self._pods.get(uid)
        if served is None or served.namespace is None:
            raise ZtunnelError(f"pod {uid} has no namespace to be served in")
        if not self._connections:
            raise NoZtunnel("no ztunnel is connected")
        await self._connections[-1].add(uid, served.info, served.namespace)

    async def delete(self, uid: str) -> None:
        """No ztunnel is to serve this pod any more; return when all have confirmed.

        One that does not is hung up on: its next snapshot will not name the pod.
        """
        served = self._pods.pop(uid, None)
        if served is not None and served.namespace is not None:
            served.namespace.close()
        async with trio.open_nursery() as nursery:
            for connection in list(self._connections):
                nursery.start_soon(self._delete_from, connection, uid)

    def close(self) -> None:
        """Let go of all namespaces."""
        for served in self._pods.values():
            if served.namespace is not None:
                served.namespace.close()
        self._pods.clear()

    async def _delete_from(self, connection: ZdsConnection, uid: str) -> None:
        try:
            await connection.delete(uid)
        except NoZtunnel as error:
            logger.info("deletion of %s: %s", uid, error)
            connection.hang_up("did not take a deletion")
        except ZtunnelError as error:
            logger.error("ztunnel %d cannot stop serving %s: %s", connection.number, uid, error)
            connection.hang_up("did not stop serving a pod")

    async def _serve(self, sock: socket.socket) -> None:
        self._accepted += 1
        connection = ZdsConnection(sock, self._accepted)
        self._connections.append(connection)
        self._notify()
        try:
            await connection.run(lambda: self._pods, self._pods.get, self._notify)
        finally:
            # Whichever this is, first or last: the others stay as they are, in their order.
            self._connections.remove(connection)
            self._notify()
        if not self._connections:
            logger.warning(
                "no ztunnel is connected any more: connections of pods in the mesh are refused "
                "until one is"
            )

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
