"""What every probe of a kernel path does: moves bytes, half-closes, and looks at what came."""

import random
import select
import socket
from contextlib import ExitStack
from typing import Final

import trio

from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import Outcome
from ztunnel.relay.pair import JOIN_AFTER

PATIENCE: Final = 5.0  # seconds for one path
_BULK: Final = 1 << 20  # bytes


class ProbeError(Exception):
    """A path did not do what it must."""


class Ending:
    """Owns a flow of a trial."""

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._ended = trio.Event()

    def flow_ended(self, outcome: Outcome) -> None:
        """See `flow.Owner`."""
        self._outcome = outcome
        self._ended.set()

    async def check(self, expected: int) -> None:
        """Waits for the end: clean, and with so many bytes each way. Raises ProbeError."""
        await self._ended.wait()
        outcome = self._outcome
        assert outcome is not None
        if outcome.error is not None:
            raise ProbeError(f"a clean end was taken for a failure: {outcome.error}")
        if (outcome.from_client, outcome.from_server) != (expected, expected):
            raise ProbeError("the bytes were miscounted")


class Trial:
    """A client and a server with something between them, all in this process.

    Args:
        engine: it must be running when `run` is called.
        client, server: the applications' ends, non-blocking.
    """

    def __init__(self, engine: Engine, client: socket.socket, server: socket.socket) -> None:
        self.engine = engine
        self._client = client
        self._server = server

    async def prepare(self) -> None:
        """Whatever must be there before the first byte."""

    def half_way(self) -> None:
        """Between small messages and bulk."""

    def between(self) -> None:
        """Between bulk one way and bulk the other way."""

    async def check(self, expected: int) -> None:
        """Judges the flow, which carried so many bytes each way. Raises ProbeError."""
        raise NotImplementedError

    def why(self) -> str:
        """What is at the bottom of a failure, where more is known."""
        return ""

    async def run(self, client_first: bool) -> None:
        """Small messages, then bulk both ways, and an end. Raises ProbeError, OSError."""
        await self.prepare()
        try:
            await self.check(await self._talk(client_first))
        except (ProbeError, OSError, ExceptionGroup):
            reason = self.why()
            if not reason:
                raise
            raise ProbeError(reason) from None

    async def _talk(self, client_first: bool) -> int:
        client, server = self._client, self._server
        one, other = (client, server) if client_first else (server, client)
        sent = 0
        for number in range(JOIN_AFTER + 8):
            for end, far_end in ((client, server), (server, client)):
                message = b"%d" % number
                await self._say(end, far_end, message)
            sent += len(message)
        self.half_way()
        data = random.Random(client_first).randbytes(_BULK)
        await self._say(one, other, data)
        self.between()
        one.shutdown(socket.SHUT_WR)
        if await self._receive(other, 1):
            raise ProbeError("bytes came after the end of a stream")
        await self._say(other, one, data)
        other.shutdown(socket.SHUT_WR)
        if await self._receive(one, 1):
            raise ProbeError("bytes came after the end of a stream")
        return sent + _BULK

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
                    await self.engine.wait(end.fileno(), select.EPOLLOUT)
        if got != data:
            raise ProbeError("other bytes arrived than were sent")

    async def _receive(self, end: socket.socket, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                some = end.recv(count - len(data))
            except BlockingIOError:
                await self.engine.wait(end.fileno(), select.EPOLLIN)
                continue
            if not some:
                break
            data += some
        return bytes(data)

    def close(self) -> None:
        """Ends whatever is left."""
        self._client.close()
        self._server.close()


class Room:
    """Where the connections of a probe are: a network namespace of its own, if one can be had."""

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

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        if self._namespace is not None:
            self._namespace.close()
