"""Bytes on their way from one socket to another through a pipe (splice)."""

import errno
import os
from typing import Final

from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipe

NOTHING: Final = -1
MUST_BE_READ: Final = -2
REFUSED: Final = (errno.EINVAL, errno.ENOSYS, errno.EPERM)


class Piped:
    """What a pipe holds for one socket.

    Attributes:
        count: bytes in it; at 0 the pipe has been given back.
    """

    __slots__ = ("_paths", "_pipe", "count")

    def __init__(self, paths: KernelPaths, pipe: Pipe, count: int) -> None:
        self._paths = paths
        self._pipe = pipe
        self.count = count

    def empty(self, fd: int) -> int:
        """Writes as much as the socket takes. Returns how much; 0 when it takes nothing now.

        Raises:
            OSError: the socket is broken.
            Unpiped: the kernel does not splice into it; what is left comes with the exception.
        """
        try:
            moved = os.splice(self._pipe.out, fd, self.count, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            self._paths.splice_failed(error)
            rest = os.read(self._pipe.out, self.count)
            self._gone(len(rest))
            raise Unpiped(rest) from error
        self._gone(moved)
        return moved

    def _gone(self, count: int) -> None:
        self.count -= count
        if not self.count:
            self._pipe.give_back()

    def discard(self) -> None:
        """Nobody wants what is in it."""
        if self.count:
            self.count = 0
            self._pipe.discard()


class Unpiped(Exception):
    """A pipe could not be emptied into a socket; `rest` was in it."""

    def __init__(self, rest: bytes) -> None:
        super().__init__(f"{len(rest)} bytes must go another way")
        self.rest = rest


def fill(paths: KernelPaths, fd: int, most: int, *, by_record: bool) -> tuple[Piped | None, int]:
    """Moves up to `most` bytes from a socket into a free pipe.

    Args:
        by_record: the socket gives one record at a time (kTLS): ask again for the next.

    Returns:
        The pipe and its bytes; (None, 0) at the end of the stream, (None, NOTHING) where
        the socket has nothing, and (None, MUST_BE_READ) when there is no pipe, or the kernel does
        not splice what is there.

    Raises:
        OSError: the socket is broken.
    """
    pipe = paths.pipes.take() if paths.pipes is not None else None
    if pipe is None:
        return None, MUST_BE_READ
    moved = 0
    most = min(most, pipe.size)
    while moved < most:
        try:
            count = os.splice(fd, pipe.into, most - moved, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if moved:
                break  # it is there to be seen again next time
            pipe.give_back()
            if isinstance(error, BlockingIOError):
                return None, NOTHING
            if error.errno == errno.EINVAL:
                return None, MUST_BE_READ  # no data but another record
            if error.errno in REFUSED:
                paths.splice_failed(error)
                return None, MUST_BE_READ
            raise
        if not count:
            break
        moved += count
        if not by_record:
            break
    if not moved:
        pipe.give_back()
        return None, 0
    return Piped(paths, pipe, moved), moved
