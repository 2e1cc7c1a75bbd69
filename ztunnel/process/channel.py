"""Messages between the processes of one ztunnel, with descriptors where needed.

A channel is one end of a stream socket pair. Each message is a kind and a
tuple of plain values (str, bytes, int, float, None, tuples, lists, dicts of
these), written with `marshal`: both ends are the same interpreter with the
same code, started by the same supervisor, and the socket has no name that
others could connect to. Descriptors ride on the message's first bytes
(SCM_RIGHTS).
"""

import array
import marshal
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

_HEADER: Final = struct.Struct("!IHH")  # body length, kind, number of descriptors
_MAX_FDS: Final = 64
_MAX_BODY: Final = 1 << 30
_READ: Final = 1 << 18
_MERGE: Final = 1 << 16  # bytes


class ChannelError(Exception):
    """The other end broke the protocol; the channel is of no more use."""


class Message:
    """One message: `kind` (see messages.py), its values, its descriptors."""

    __slots__ = ("fds", "kind", "values")

    def __init__(self, kind: int, values: tuple[Any, ...], fds: list[int]) -> None:
        self.kind = kind
        self.values = values
        self.fds = fds


def encode(kind: int, values: tuple[Any, ...], fds: int) -> bytes:
    """The bytes of a message that carries `fds` descriptors."""
    body = marshal.dumps(values)
    return _HEADER.pack(len(body), kind, fds) + body


class Decoder:
    """Bytes and descriptors in, messages out (sans-IO).

    Attributes:
        cut: descriptors of the next message that has any could not be received: it comes without.
    """

    def __init__(self) -> None:
        self.cut = False
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: list[int]) -> list[Message]:
        """The messages that are complete now. Raises ChannelError."""
        self._buffer += data
        self._fds.extend(fds)
        messages: list[Message] = []
        try:
            self._decode(messages)
        except ChannelError:
            close_all([fd for message in messages for fd in message.fds])
            raise
        return messages

    def _decode(self, messages: list[Message]) -> None:
        position = 0
        buffer = self._buffer
        while len(buffer) - position >= _HEADER.size:
            length, kind, count = _HEADER.unpack_from(buffer, position)
            if length > _MAX_BODY or count > _MAX_FDS:
                raise ChannelError(f"a message of {length} bytes with {count} descriptors")
            end = position + _HEADER.size + length
            if len(buffer) < end:
                break
            if count and self.cut:
                self.cut = False
                count = 0
            if len(self._fds) < count:
                raise ChannelError(f"{count} descriptors were announced, {len(self._fds)} came")
            try:
                values = marshal.loads(memoryview(buffer)[position + _HEADER.size : end])
            except (ValueError, EOFError, TypeError) as error:
                raise ChannelError(f"a message that cannot be read: {error}") from error
            messages.append(Message(kind, values, [self._fds.popleft() for _ in range(count)]))
            position = end
        del buffer[:position]

    def close(self) -> None:
        """Closes descriptors whose message never came whole."""
        while self._fds:
            os.close(self._fds.popleft())


class Channel:
    """A non-blocking end of a channel. Its owner waits for readiness.

    Args:
        tolerant: a message whose descriptors this process has no room for comes without them, in
            place of an error.
    """

    def __init__(self, sock: socket.socket, tolerant: bool = False) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._tolerant = tolerant
        self._decoder = Decoder()
        self._pending: deque[tuple[bytearray, list[int]]] = deque()
        self._offset = 0

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self.socket.fileno()

    def queue(self, kind: int, *values: Any, fds: list[int] | None = None) -> None:
        """Appends a message to what `flush` writes.

        The descriptors are duplicated; the copies are closed once they are away.

        Raises:
            OSError: no descriptors left; nothing was queued.
        """
        copies: list[int] = []
        try:
            for fd in fds or ():
                copies.append(os.dup(fd))  # noqa: PERF401  (those made so far must be known)
        except OSError:
            close_all(copies)
            raise
        data = encode(kind, values, len(copies))
        last = self._pending[-1] if self._pending else None
        if last is not None and not copies and not last[1] and len(last[0]) < _MERGE:
            last[0].extend(data)  # small ones go with one system call
        else:
            self._pending.append((bytearray(data), copies))

    @property
    def pending(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._pending)

    def flush(self) -> bool:
        """Writes what the socket takes. True when nothing is left. Raises OSError."""
        while self._pending:
            data, fds = self._pending[0]
            try:
                if fds and self._offset == 0:
                    rights = array.array("i", fds)
                    sent = self.socket.sendmsg(
                        [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                    )
                else:
                    with memoryview(data) as view:
                        sent = self.socket.send(view[self._offset :])
            except BlockingIOError:
                return False
            self._offset += sent
            if self._offset == len(data):
                self._pending.popleft()
                self._offset = 0
                close_all(fds)
        return True

    def receive(self) -> list[Message] | None:
        """Messages that have arrived; None at the end of the stream.

        Their descriptors belong to the caller.

        Raises:
            ChannelError: the stream is of no more use. Also where descriptors could not be
                received because this process has no room for them.
            OSError: the socket is broken.
        """
        messages: list[Message] = []
        while True:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    _READ, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return messages
            fds = array.array("i")
            for level, kind, body in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
            if flags & socket.MSG_CTRUNC and self._tolerant:
                close_all(fds)
                del fds[:]
                self._decoder.cut = True
            elif flags & socket.MSG_CTRUNC:
                close_all([*fds, *(fd for message in messages for fd in message.fds)])
                raise ChannelError("descriptors were cut off: too many are open here")
            if not data:
                return messages or None
            try:
                messages += self._decoder.feed(data, list(fds))
            except ChannelError:
                close_all([fd for message in messages for fd in message.fds])
                raise
            if len(data) < _READ:
                return messages

    def close(self) -> None:
        """Closes this end, and all that `discard` does."""
        self.discard()
        self.socket.close()

    def discard(self) -> None:
        """Lets go of what was not sent, and of descriptors that came without a whole message."""
        for _, fds in self._pending:
            close_all(fds)
        self._pending.clear()
        self._decoder.close()


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a new channel (close-on-exec)."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
