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
from typing import Any, Final

_HEADER: Final = struct.Struct("!IHH")  # body length, kind, number of descriptors
_MAX_FDS: Final = 64
_MAX_BODY: Final = 1 << 30
_READ: Final = 1 << 18


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
    """Bytes and descriptors in, messages out (sans-IO)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: list[int]) -> list[Message]:
        """The messages that are complete now. Raises ChannelError."""
        self._buffer += data
        self._fds.extend(fds)
        messages: list[Message] = []
        position = 0
        buffer = self._buffer
        while len(buffer) - position >= _HEADER.size:
            length, kind, count = _HEADER.unpack_from(buffer, position)
            if length > _MAX_BODY or count > _MAX_FDS:
                raise ChannelError(f"a message of {length} bytes with {count} descriptors")
            end = position + _HEADER.size + length
            if len(buffer) < end:
                break
            if len(self._fds) < count:
                raise ChannelError(f"{count} descriptors were announced, {len(self._fds)} came")
            try:
                values = marshal.loads(memoryview(buffer)[position + _HEADER.size : end])
            except (ValueError, EOFError, TypeError) as error:
                raise ChannelError(f"a message that cannot be read: {error}") from error
            messages.append(Message(kind, values, [self._fds.popleft() for _ in range(count)]))
            position = end
        del buffer[:position]
        return messages


class Channel:
    """A non-blocking end of a channel. Its owner waits for readiness."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._decoder = Decoder()
        self._pending: deque[tuple[bytes, list[int]]] = deque()
        self._offset = 0

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self.socket.fileno()

    def queue(self, kind: int, *values: Any, fds: list[int] | None = None) -> None:
        """Appends a message to what `flush` writes. Raises OSError (no descriptors left).

        The descriptors are duplicated; the copies are closed once they are away.
        """
        copies = [os.dup(fd) for fd in fds or ()]
        self._pending.append((encode(kind, values, len(copies)), copies))

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
                    sent = self.socket.send(memoryview(data)[self._offset :])
            except BlockingIOError:
                return False
            self._offset += sent
            if self._offset == len(data):
                self._pending.popleft()
                self._offset = 0
                for fd in fds:
                    os.close(fd)
        return True

    def receive(self) -> list[Message] | None:
        """Messages that have arrived; None at the end of the stream.

        Raises ChannelError, and OSError other than "would block".
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
            if flags & socket.MSG_CTRUNC:
                for fd in fds:
                    socket.close(fd)
                raise ChannelError("descriptors were cut off")
            if not data:
                return messages or None
            messages += self._decoder.feed(data, list(fds))
            if len(data) < _READ:
                return messages

    def close(self) -> None:
        """Closes this end, and what was not sent."""
        for _, fds in self._pending:
            for fd in fds:
                os.close(fd)
        self._pending.clear()
        self.socket.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a new channel (close-on-exec)."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
