"""One ztunnel's connection: a snapshot first, then changes one at a time, each acknowledged."""

import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

import trio

from ztunnel.linux.fds import receive_with_fds, send_with_fds
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.zds.messages import (
    MAX_MESSAGE,
    AddWorkload,
    DeleteWorkload,
    KeepWorkload,
    MessageError,
    Request,
    SnapshotSent,
    WorkloadInfo,
    decode_ack,
    decode_hello,
    encode_request,
)

logger = logging.getLogger("daemonset.agent.zds")

DEADLINE = 5.0
"""Seconds for a hello, and for each acknowledgement."""
QUEUE = 100
"""Changes that may wait for a ztunnel."""


class ZtunnelError(Exception):
    """ztunnel has not done what it was asked; the message says why. Worth trying again."""


class NoZtunnel(ZtunnelError):
    """No ztunnel is connected, or the one that was has gone."""


@dataclass(frozen=True, slots=True)
class Served:
    """A pod that ztunnel is to serve. The server owns the namespace.

    Without a namespace (it cannot be found just now) a snapshot asks ztunnel to keep what it has.
    """

    info: WorkloadInfo
    namespace: NetworkNamespace | None


class _Change:
    """A change that waits for its turn, and whoever waits for its outcome."""

    __slots__ = ("done", "error", "namespace", "request")

    def __init__(self, request: Request, namespace: NetworkNamespace | None) -> None:
        self.request = request
        self.namespace = namespace
        self.done = trio.Event()
        self.error: ZtunnelError | None = None

    def finish(self, error: ZtunnelError | None) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()
            if self.namespace is not None:
                self.namespace.close()


class ZdsConnection:
    """Talks to one ztunnel. `number` tells connections apart in logs."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        """Takes ownership of `sock`, a non-blocking one."""
        self.number = number
        self.synchronised = False
        self.refusals: dict[str, str] = {}
        """uid to reason: what this ztunnel did not accept in its snapshot."""
        self._sock = sock
        self._queue_in, self._queue = trio.open_memory_channel[_Change](QUEUE)
        self._answers_in, self._answers = trio.open_memory_channel[bytes](1)
        self._expected = 1  # answers that the other end owes; the first is its hello
        self._waiting: set[_Change] = set()
        self._scope = trio.CancelScope()
        self._closed = False
        self._reason = "was left alone"

    async def run(
        self,
        snapshot: Callable[[], Iterable[str]],
        lookup: Callable[[str], Served | None],
        on_synchronised: Callable[[], None],
    ) -> None:
        """Serve until the other end hangs up, breaks the protocol or misses a deadline.

        `snapshot` names the pods; each is looked up when its turn comes, and left out when it has
        been deleted by then. Never raises but for cancellation.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    await self._hello()
                    await self._send_snapshot(snapshot, lookup)
                    self.synchronised = True
                    on_synchronised()
                    async for change in self._queue:
                        error = await self._ask(change.request, change.namespace)
                        self._waiting.discard(change)
                        change.finish(ZtunnelError(error) if error else None)
        finally:
            self._closed = True
            self.synchronised = False
            self._sock.close()
            for change in self._waiting:
                change.finish(NoZtunnel(f"the connection to ztunnel ended: it {self._reason}"))
            self._waiting.clear()
            logger.info("ztunnel %d is gone: it %s", self.number, self._reason)

    async def add(self, uid: str, info: WorkloadInfo, namespace: NetworkNamespace) -> None:
        """Have the pod served. Raises ZtunnelError when it is refused, NoZtunnel otherwise."""
        await self._submit(AddWorkload(uid, info), namespace.duplicate())

    async def delete(self, uid: str) -> None:
        """Have the pod served no more. Raises as `add`."""
        await self._submit(DeleteWorkload(uid), None)

    def hang_up(self, reason: str) -> None:
        """End the connection; whoever waits for it gets NoZtunnel. `reason` follows "it …"."""
        if not self._scope.cancel_called:
            self._reason = reason
            self._scope.cancel()

    async def _submit(self, request: Request, namespace: NetworkNamespace | None) -> None:
        change = _Change(request, namespace)
        if self._closed:
            change.finish(NoZtunnel("the ztunnel that was connected has gone"))
        else:
            self._waiting.add(change)
            try:
                self._queue_in.send_nowait(change)
            except trio.WouldBlock:
                self._waiting.discard(change)
                change.finish(NoZtunnel(f"ztunnel does not keep up: {QUEUE} changes are waiting"))
        # A waiter that is cancelled leaves the change in the queue: it is still to be made.
        await change.done.wait()
        if change.error is not None:
            raise change.error

    async def _hello(self) -> None:
        data = await self._next_answer("said no hello")
        try:
            decode_hello(data)
        except MessageError as error:
            await self._give_up(f"spoke another protocol: {error}")
        logger.info("ztunnel %d has connected", self.number)

    async def _send_snapshot(
        self, snapshot: Callable[[], Iterable[str]], lookup: Callable[[str], Served | None]
    ) -> None:
        count = 0
        for uid in list(snapshot()):
            served = lookup(uid)
            if served is None:
                continue  # deleted since; it must not be named any more
            count += 1
            if served.namespace is None:
                error = await self._ask(KeepWorkload(uid), None)
            else:
                # A copy, which no deletion in the meantime closes under the packet.
                with served.namespace.duplicate() as namespace:
                    error = await self._ask(AddWorkload(uid, served.info), namespace)
            if error:
                logger.warning("ztunnel %d refuses %s: %s", self.number, served.info, error)
                self.refusals[uid] = error
        error = await self._ask(SnapshotSent(), None)
        if error:
            logger.warning("ztunnel %d: %s", self.number, error)
        logger.info("ztunnel %d has its snapshot of %d pods", self.number, count)

    async def _ask(self, request: Request, namespace: NetworkNamespace | None) -> str:
        """The error that ztunnel answers, "" for success. Ends the connection when none comes."""
        try:
            data = encode_request(request)
        except MessageError as error:
            return str(error)
        await self._send(data, [namespace.fd] if namespace is not None else [])
        try:
            return decode_ack(await self._next_answer("did not answer"))
        except MessageError as error:
            await self._give_up(f"gave an answer that makes no sense: {error}")

    async def _send(self, data: bytes, fds: list[int]) -> None:
        self._expected += 1
        with trio.move_on_after(DEADLINE):
            while True:
                try:
                    send_with_fds(self._sock, data, fds)
                    return
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
                except OSError as error:
                    await self._give_up(f"cannot be reached: {error}")
        await self._give_up(f"did not read within {DEADLINE:g} s")

    async def _next_answer(self, complaint: str) -> bytes:
        try:
            with trio.fail_after(DEADLINE):
                return await self._answers.receive()
        except trio.TooSlowError:
            await self._give_up(f"{complaint} within {DEADLINE:g} s")

    async def _read(self) -> None:
        """Pass packets on, and notice the end at any time, not only when an answer is expected."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data, _ = receive_with_fds(self._sock, MAX_MESSAGE, 0)
            except BlockingIOError:
                continue
            except OSError as error:
                await self._give_up(f"sent something unreadable: {error}")
            if not data:
                await self._give_up("has hung up")
            if self._expected == 0:
                await self._give_up("gave an answer to nothing")
            self._expected -= 1
            self._answers_in.send_nowait(data)

    async def _give_up(self, reason: str) -> NoReturn:
        self.hang_up(reason)
        await trio.sleep_forever()  # until the cancellation, which is at once
