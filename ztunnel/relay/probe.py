"""Tries each kernel path at start: a path that does not move every byte is not used.

Kernels have had bugs in these paths, and hardened ones forbid them, so a path
counts as there when flows through it have delivered what was sent, in both
directions, with a half-close of either side first, and had counted it.
"""

import logging
import random
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import trio

from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import Outcome
from ztunnel.relay.pair import JOIN_AFTER, PairFlow

log = logging.getLogger("ztunnel.kernel")

PATIENCE: Final = 5.0  # seconds for one path
OFF: Final = "switched off"
_BULK: Final = 1 << 20  # bytes


class ProbeError(Exception):
    """A path did not do what it must."""


async def probe_paths(sockmap: bool, splice: bool) -> KernelPaths:
    """The paths that are wanted and work here. Says in the log which are not used, and why.

    Args:
        sockmap, splice: which may be used.
    """
    found = KernelPaths()
    found.reasons["sockmap"] = await _try(sockmap, _make_sockmap, found)
    found.reasons["splice"] = await _try(splice, _make_splice, found)
    for name, reason in found.reasons.items():
        if reason and reason != OFF:
            log.info("kernel path %s is off: %s", name, reason)
    return found


def _make_sockmap() -> KernelPaths:
    return KernelPaths(sockmap=Sockmap())


def _make_splice() -> KernelPaths:
    return KernelPaths(pipes=Pipes())


async def _try(wanted: bool, make: Callable[[], KernelPaths], found: KernelPaths) -> str:
    """Adds a path to `found` if it works; else says why it does not."""
    if not wanted:
        return OFF
    try:
        path = make()
    except OSError as error:
        return str(error.strerror or error)
    try:
        with trio.fail_after(PATIENCE):
            for client_first in (True, False):
                await _move(path, client_first)
    except trio.TooSlowError:
        path.close()
        return f"it did not move everything within {PATIENCE:g}s"
    except (ProbeError, OSError) as error:
        path.close()
        return str(error)
    except BaseException:
        path.close()
        raise
    found.sockmap = found.sockmap or path.sockmap
    found.pipes = found.pipes or path.pipes
    return ""


async def _move(path: KernelPaths, client_first: bool) -> None:
    """One connection. Raises ProbeError, OSError."""
    engine = Engine()
    engine.use_paths(path)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            trial = _Trial(engine)
            try:
                await trial.run(client_first)
            finally:
                trial.close()
            nursery.cancel_scope.cancel()
    except* (ProbeError, OSError) as group:
        raise group.exceptions[0] from None
    finally:
        engine.leave_paths()
        engine.close()


class _Trial:
    """A client and a server with a flow between them, all in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._outcome: Outcome | None = None
        self._ended = trio.Event()
        with _Room() as room:
            self._client, near = room.pair()
            self._server, far = room.pair()
        self._flow = PairFlow(engine, near, far, self)

    def flow_ended(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._ended.set()

    async def run(self, client_first: bool) -> None:
        """Small messages, then bulk both ways, and an end."""
        client, server = self._client, self._server
        one, other = (client, server) if client_first else (server, client)
        sent = 0
        for number in range(JOIN_AFTER + 8):
            for end, far_end in ((client, server), (server, client)):
                message = b"%d" % number
                await self._say(end, far_end, message)
            sent += len(message)
        data = random.Random(client_first).randbytes(_BULK)
        await self._say(one, other, data)
        one.shutdown(socket.SHUT_WR)
        if await self._receive(other, 1):
            raise ProbeError("bytes came after the end of a stream")
        await self._say(other, one, data)
        other.shutdown(socket.SHUT_WR)
        if await self._receive(one, 1):
            raise ProbeError("bytes came after the end of a stream")
        await self._ended.wait()
        outcome = self._outcome
        assert outcome is not None
        if outcome.error is not None:
            raise ProbeError(f"a clean end was taken for a failure: {outcome.error}")
        if (outcome.from_client, outcome.from_server) != (sent + _BULK, sent + _BULK):
            raise ProbeError("the bytes were miscounted")
        if self._flow.path == "copy":
            raise ProbeError("the flow did not use it")

    async def _say(self, end: socket.socket, far_end: socket.socket, data: bytes) -> None:
        got = b""

        async def receive() -> None:
            nonlocal got
            got = await self._receive(far_end, len(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            view = memoryview(data)
            while view:
                try:
                    view = view[end.send(view) :]
                except BlockingIOError:
                    await self._engine.wait(end.fileno(), select.EPOLLOUT)
        if got != data:
            raise ProbeError("other bytes arrived than were sent")

    async def _receive(self, end: socket.socket, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                some = end.recv(count - len(data))
            except BlockingIOError:
                await self._engine.wait(end.fileno(), select.EPOLLIN)
                continue
            if not some:
                break
            data += some
        return bytes(data)

    def close(self) -> None:
        self._flow.abort("the probe is over")
        self._client.close()
        self._server.close()


class _Room:
    """Where the probe's connections are: a network namespace of its own, if one can be had."""

    def __init__(self) -> None:
        try:
            self._namespace: NetworkNamespace | None = netns.create()
        except OSError:
            self._namespace = None  # without that right, loopback as it is must do
        else:
            with self._namespace.enter():
                netns.bring_up("lo")

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection, non-blocking. Raises OSError."""
        with ExitStack() as stack:
            if self._namespace is not None:
                stack.enter_context(self._namespace.enter())
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            one = socket.create_connection(listener.getsockname(), PATIENCE)
            other, _ = listener.accept()
        for sock in (one, other):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return one, other

    def __enter__(self) -> "_Room":
        return self

    def __exit__(self, *_: object) -> None:
        if self._namespace is not None:
            self._namespace.close()
