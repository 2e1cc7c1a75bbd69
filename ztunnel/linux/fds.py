"""Descriptors across process boundaries (SCM_RIGHTS), and how many of them a process may hold."""

import array
import os
import resource
import socket
from collections.abc import Sequence

_INT = array.array("i").itemsize


class MessageTruncated(OSError):
    """A datagram, or the descriptors that came with it, did not fit; all of it is thrown away."""


def send_with_fds(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> int:
    """One message with descriptors attached. Returns the bytes sent; raises OSError.

    The receiver gets duplicates: the caller keeps its own and closes them when it likes. A stream
    socket needs at least one byte of data to carry descriptors.
    """
    if not fds:
        return sock.send(data)
    rights = array.array("i", fds).tobytes()
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def receive_with_fds(
    sock: socket.socket, size: int, max_fds: int, flags: int = 0
) -> tuple[bytes, list[int]]:
    """One message and the descriptors with it, close-on-exec. `b""` is the end of the connection.

    Raises MessageTruncated when the data is longer than `size` or more than `max_fds` descriptors
    came (those that did arrive are closed: nothing leaks), BlockingIOError when there is nothing
    yet, and OSError.
    """
    data, ancillary, result_flags, _ = sock.recvmsg(
        size,
        socket.CMSG_SPACE(max_fds * _INT) if max_fds else 0,
        flags | socket.MSG_CMSG_CLOEXEC,
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % _INT])
            fds.extend(numbers)
    cut = ""
    if result_flags & socket.MSG_TRUNC:
        cut = f"the message is longer than {size} bytes"
    elif result_flags & socket.MSG_CTRUNC or len(fds) > max_fds:
        # CMSG_SPACE rounds up, so one descriptor too many can fit in without MSG_CTRUNC.
        cut = f"the message carries more than {max_fds} descriptors"
    if cut:
        for fd in fds:
            os.close(fd)
        raise MessageTruncated(90, cut)
    return data, fds


def raise_file_limit() -> int:
    """Lift the soft limit on open descriptors to the hard one; returns it.

    Every relayed connection holds two descriptors and the usual soft limit is 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
