"""Netlink framing: just enough of it to program nftables and policy routing in one system call.

Requests are answered before `sendto` returns, so plain blocking sockets are fast and simple here.
pyroute2 cannot name the message of a batch that failed and runs an event loop per socket; for links
and addresses it remains the library to use.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ztunnel.linux.netns import NetworkNamespace

NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NLMSGERR_ATTR_MSG = 1
_ATTRIBUTE_KIND = 0x3FFF

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ERROR = struct.Struct("=i")

_RECEIVE_SIZE = 1 << 18
_SEND_SIZE = 1 << 22
_SO_SNDBUFFORCE = 32
_TIMEOUT = struct.pack("@ll", 10, 0)


class NetlinkError(OSError):
    """The kernel refused a request. `position` is its index in the batch (0 for a single one)."""

    def __init__(self, number: int, position: int, explanation: str) -> None:
        text = os.strerror(number) + (f" ({explanation})" if explanation else "")
        super().__init__(number, text)
        self.position = position


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer: its type, its flags, and what follows the netlink header."""

    kind: int
    flags: int
    body: bytes


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes. A nested one has attributes as its payload."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def text(kind: int, value: str) -> bytes:
    """A string attribute with its closing NUL."""
    return attribute(kind, value.encode() + b"\0")


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of every attribute in order. Raises ValueError on malformed data."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            raise ValueError(f"netlink attribute of {length} bytes at {offset} of {len(data)}")
        yield kind & _ATTRIBUTE_KIND, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + -length % 4


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes by type (the last of a kind wins). Raises ValueError on malformed data."""
    return dict(each_attribute(data))


def string_of(payload: bytes) -> str:
    """A string attribute's value, without its NUL."""
    return payload.split(b"\0", 1)[0].decode("utf-8", "replace")


class NetlinkSocket:
    """One netlink conversation in one namespace. Not for use by several threads at a time."""

    __slots__ = ("_sequence", "sock")

    def __init__(
        self,
        protocol: int,
        namespace: NetworkNamespace | None = None,
        groups: Sequence[int] = (),
    ) -> None:
        """Open in `namespace` (default: the thread's own), subscribed to multicast `groups`.

        Raises OSError.
        """
        if namespace is None:
            self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        else:
            self.sock = namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._sequence = 0
        try:
            self.sock.bind((0, 0))
            self.sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self.sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_SIZE)
            try:
                # A transaction is one packet, however large its sets are.
                self.sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_SIZE)
            except PermissionError:  # in a user namespace: as much as everybody may have
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_SIZE)
            for group in groups:
                self.sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
            # Not settimeout(): Python would wait even where MSG_DONTWAIT is asked for.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        except BaseException:
            self.sock.close()
            raise

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """One change, acknowledged. Raises NetlinkError when it is refused."""
        self.batch([Message(kind, flags, body)])

    def batch(
        self, messages: Sequence[Message], envelope: tuple[Message, Message] | None = None
    ) -> None:
        """Several changes in one packet, in a begin and an end message when `envelope` is given.

        Only then are they one transaction. Raises NetlinkError for the first that is refused.
        """
        packed = []
        first = self._sequence + 1
        sequence = first
        everything = [envelope[0], *messages, envelope[1]] if envelope else messages
        # Errors are always reported; the last message asks for an answer in any case.
        asking = first + len(messages) - (0 if envelope else 1)
        for message in everything:
            flags = message.flags | NLM_F_REQUEST | (NLM_F_ACK if sequence == asking else 0)
            length = _HEADER.size + len(message.body)
            packed.append(_HEADER.pack(length, message.kind, flags, sequence, 0))
            packed.append(message.body + bytes(-length % 4))
            sequence += 1
        self._sequence = sequence - 1
        self.sock.sendto(b"".join(packed), (0, 0))
        refused: NetlinkError | None = None
        answered = False
        while not answered:
            for answer, number in self._receive():
                if answer.kind != _NLMSG_ERROR or not first <= number < sequence:
                    continue  # left over from something that was given up
                error, explanation = _parse_error(answer)
                if error and refused is None:
                    refused = NetlinkError(error, number - first - bool(envelope), explanation)
                # A refused batch reports its last message too, unless the end itself failed.
                answered = answered or number == asking or (error != 0 and number == first)
        if refused is not None:
            self._drain()
            raise refused

    def batch_of_none(self, begin: Message, end: Message) -> None:
        """A transaction without any change, which only asks whether there could be one now.

        Raises NetlinkError when there could not.
        """
        self._sequence += 2
        packed = b""
        for message, number in ((begin, self._sequence - 1), (end, self._sequence)):
            length = _HEADER.size + len(message.body)
            packed += _HEADER.pack(length, message.kind, NLM_F_REQUEST, number, 0) + message.body
        self.sock.sendto(packed, (0, 0))
        # Only an error is answered, and it is there by now.
        while True:
            try:
                answers = self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for answer, number in answers:
                if answer.kind == _NLMSG_ERROR and number >= self._sequence - 1:
                    code, explanation = _parse_error(answer)
                    if code:
                        raise NetlinkError(code, 0, explanation)

    def dump(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Everything of one kind, consistent. Raises NetlinkError."""
        for _ in range(20):
            found = self._dump_once(kind, body, flags)
            if found is not None:
                return found
        raise NetlinkError(errno.EINTR, 0, "what is being listed keeps changing")

    def ask(self, kind: int, body: bytes) -> Message:
        """One question with one answer. Raises NetlinkError."""
        self._send(kind, 0, body)
        while True:
            for answer, number in self._receive():
                if number != self._sequence:
                    continue
                if answer.kind == _NLMSG_ERROR:
                    error, explanation = _parse_error(answer)
                    raise NetlinkError(error, 0, explanation)
                return answer

    def drain_notifications(self) -> int:
        """Throw away what has been multicast to this socket; returns how many messages it was.

        Never blocks. ENOBUFS (the kernel dropped some) counts as one: something has changed.
        """
        return self._drain()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> "NetlinkSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(
            _HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0
        )
        self.sock.sendto(header + body, (0, 0))

    def _dump_once(self, kind: int, body: bytes, flags: int) -> list[Message] | None:
        self._send(kind, flags | NLM_F_DUMP, body)
        found: list[Message] = []
        interrupted = False
        while True:
            for answer, number in self._receive():
                if number != self._sequence:
                    continue
                interrupted = interrupted or bool(answer.flags & NLM_F_DUMP_INTR)
                if answer.kind == _NLMSG_DONE:
                    return None if interrupted else found
                if answer.kind == _NLMSG_ERROR:
                    error, explanation = _parse_error(answer)
                    raise NetlinkError(error, 0, explanation)
                found.append(answer)

    def _receive(self, flags: int = 0) -> list[tuple[Message, int]]:
        data = self.sock.recv(_RECEIVE_SIZE, flags)
        answers = []
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, message_flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size or offset + length > len(data):
                raise ValueError(f"netlink message of {length} bytes at {offset} of {len(data)}")
            body = data[offset + _HEADER.size : offset + length]
            answers.append((Message(kind, message_flags, body), sequence))
            offset += length + -length % 4
        return answers

    def _drain(self) -> int:
        count = 0
        while True:
            try:
                count += len(self._receive(socket.MSG_DONTWAIT))
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                count += 1


def _parse_error(answer: Message) -> tuple[int, str]:
    (code,) = _ERROR.unpack_from(answer.body)
    explanation = ""
    if answer.flags & _NLM_F_ACK_TLVS:
        # After the code comes the header of the refused request, alone when it was capped.
        skip = _ERROR.size + _HEADER.size
        if not answer.flags & _NLM_F_CAPPED:
            (length,) = struct.unpack_from("=I", answer.body, _ERROR.size)
            skip = _ERROR.size + length + -length % 4
        explanation = string_of(attributes(answer.body[skip:]).get(_NLMSGERR_ATTR_MSG, b""))
    return -code, explanation
