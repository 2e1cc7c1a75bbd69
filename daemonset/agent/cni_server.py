"""Where the CNI plugin asks: may this pod start now?"""

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import trio

from daemonset.agent.cni_request import LONGEST, CniRequest, CniRequestError, parse_request
from daemonset.agent.private_socket import listening

logger = logging.getLogger("daemonset.agent.cni")

PATIENCE = 10.0
"""Seconds for a plugin to have said what it wants."""
MOST_AT_ONCE = 512
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


class CniRefused(Exception):
    """The pod must not start now; the message is for its events."""


class CniServer:
    """Answers on a UNIX socket that only root can open.

    Args:
        answer: returns when the pod may go on; raises CniRefused.
    """

    def __init__(self, path: str | Path, answer: Callable[[CniRequest], Awaitable[None]]) -> None:
        self.path = Path(path)
        self._answer = answer
        self._limit = trio.CapacityLimiter(MOST_AT_ONCE)
        self.answers: dict[str, int] = {"ok": 0, "refused": 0, "malformed": 0}
        """How often each has been said, for the metrics."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Listen and answer, until cancelled. Raises OSError when it cannot listen."""
        with listening(self.path, socket.SOCK_STREAM) as listener:
            task_status.started()
            await trio.serve_listeners(
                self._serve, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            )
        raise AssertionError("listeners are served until cancelled")

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with self._limit:
            text, kind = await self._reply(stream)
        self.answers[kind] += 1
        try:
            await stream.send_all(text.encode())
            await stream.aclose()
        except trio.BrokenResourceError:
            logger.info("a CNI plugin has gone before its answer came")

    async def _reply(self, stream: trio.SocketStream) -> tuple[str, str]:
        try:
            self._check_peer(stream)
            request = parse_request(await _read(stream))
        except CniRequestError as error:
            logger.error("a CNI plugin's question is not understood: %s", error)
            return f"refused\n{error}", "malformed"
        try:
            await self._answer(request)
        except CniRefused as error:
            logger.error("%s must not start yet: %s", request, error)
            return f"refused\n{error}", "refused"
        except Exception as error:
            # Whatever it is, it concerns this pod, and it must not run outside the mesh for it.
            logger.exception("%s must not start yet", request)
            return f"refused\n{type(error).__name__}: {error}", "refused"
        return "ok\n", "ok"

    def _check_peer(self, stream: trio.SocketStream) -> None:
        raw = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(bytes(raw))
        if uid not in (0, os.geteuid()):
            raise CniRequestError(f"process {pid} of user {uid} may not ask")


async def _read(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    try:
        with trio.fail_after(PATIENCE):
            while chunk := await stream.receive_some(65536):
                data += chunk
                if len(data) > LONGEST:
                    raise CniRequestError(f"it is longer than {LONGEST} bytes")
    except trio.TooSlowError as error:
        raise CniRequestError(f"it was not complete after {PATIENCE:g} s") from error
    except trio.BrokenResourceError as error:
        raise CniRequestError("the plugin has gone") from error
    return bytes(data)
