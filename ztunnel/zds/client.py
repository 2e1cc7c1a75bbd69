"""The connection to the node agent: ztunnel is the client, and says hello first.

Whatever goes wrong with the connection ends the connection, never what is being served: the client
comes back with growing pauses, gets a new snapshot, and drops what is not in it.
"""

import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from ztunnel.linux.fds import MessageTruncated, receive_with_fds
from ztunnel.zds.messages import (
    MAX_MESSAGE,
    MessageError,
    WorkloadInfo,
    decode_request,
    encode_ack,
    encode_hello,
)
from ztunnel.zds.pods import PodHandler, Pods, ProtocolError, StartFailed

logger = logging.getLogger("ztunnel.zds")

DEFAULT_PATH = "/var/run/ztunnel/ztunnel.sock"
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 15.0


@dataclass(frozen=True, slots=True)
class ZdsState:
    """For readiness and the admin page. `pending` maps a uid to the pod and why it is not served.

    One pod that cannot be served is no reason to call the node unready: `ready` leaves it out.
    """

    connected: bool
    synchronised: bool
    running: dict[str, WorkloadInfo]
    pending: dict[str, tuple[WorkloadInfo, str]]
    last_error: str

    @property
    def ready(self) -> bool:
        """A snapshot has been applied, and the agent is still there."""
        return self.synchronised


class ZdsClient:
    """Serves the agent's requests with `handler`, for as long as `run` runs.

    Args:
        failed: told of each thing that went wrong: "connection" (also: the agent is not there),
            "protocol", or "pod" that could not be started or stopped.
    """

    def __init__(
        self,
        handler: PodHandler,
        path: str | Path = DEFAULT_PATH,
        failed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._path = str(path)
        self._failed = failed
        self._pods = Pods(handler)
        self._connected = False
        self._last_error = "has not connected yet"
        self._pause = FIRST_PAUSE
        self._first_snapshot = trio.Event()

    @property
    def state(self) -> ZdsState:
        return ZdsState(
            self._connected,
            self._pods.synchronised,
            self._pods.running,
            self._pods.pending,
            self._last_error,
        )

    def adopt(self, uid: str, info: WorkloadInfo, netns_fd: int) -> bool:
        """See `Pods.adopt`."""
        return self._pods.adopt(uid, info, netns_fd)

    async def wait_synchronised(self) -> None:
        """Return when the first snapshot has been applied."""
        await self._first_snapshot.wait()

    async def run(self) -> None:
        """Connect, serve, connect again. Ends only by cancellation, and lets all namespaces go."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pods.retry_forever)
                while True:
                    await self._serve_one_connection()
                    self._connected = False
                    self._pods.disconnected()
                    await trio.sleep(self._pause)
                    self._pause = min(self._pause * 2, LONGEST_PAUSE)
        finally:
            self._pods.close()

    async def _serve_one_connection(self) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.setblocking(False)
                sock.connect(self._path)
                sock.send(encode_hello())
                self._connected = True
                self._pods.connected()
                await self._serve(sock)
        except (OSError, MessageError, ProtocolError) as error:
            lost = isinstance(error, OSError) and not isinstance(error, MessageTruncated)
            self._failed("connection" if lost else "protocol")
            text = str(error)
            if text != self._last_error:  # said once, not on every attempt
                logger.warning("ZDS at %s: %s; what is served goes on", self._path, text)
            self._last_error = text

    async def _serve(self, sock: socket.socket) -> None:
        """Answer requests in order, until an exception; OSError means that the agent is gone."""
        while True:
            await trio.lowlevel.wait_readable(sock)
            netns_fd: int | None = None
            try:
                data, fds = receive_with_fds(sock, MAX_MESSAGE, 1)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "the agent has hung up")
                netns_fd = fds[0] if fds else None
                request = decode_request(data)
                handed_over, netns_fd = netns_fd, None
                await self._pods.apply(request, handed_over)
            except BlockingIOError:
                continue
            except StartFailed as error:
                self._failed("pod")
                logger.warning("%s", error)
                await self._answer(sock, str(error))
            except (MessageTruncated, MessageError, ProtocolError) as error:
                await self._answer(sock, str(error))
                raise
            else:
                await self._answer(sock, "")
            finally:
                if netns_fd is not None:
                    os.close(netns_fd)
            if self._pods.synchronised and not self._first_snapshot.is_set():
                logger.info("ZDS snapshot applied: %d pods", len(self._pods.running))
                self._first_snapshot.set()
            if self._pods.synchronised:
                # Only a whole snapshot proves the agent: one that hangs up earlier is not hurried.
                self._pause = FIRST_PAUSE
                self._last_error = ""

    async def _answer(self, sock: socket.socket, error: str) -> None:
        data = encode_ack(error)
        while True:
            try:
                sock.send(data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
            else:
                return
