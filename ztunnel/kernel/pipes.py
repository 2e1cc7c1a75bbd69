"""Pipes for splice: a bounded stock that all flows of a process share.

A flow has a pipe only while bytes are in it, which is for a moment unless the
receiving side takes no more; so few pipes serve many flows, and what waits in
them is bounded by their number.
"""

import fcntl
import os
from typing import Final

_SIZE: Final = 1 << 20  # bytes; the most that /proc/sys/fs/pipe-max-size allows by default


class Pipe:
    """One pipe, empty unless somebody has it."""

    __slots__ = ("_pipes", "into", "out", "size")

    def __init__(self, pipes: "Pipes") -> None:
        self._pipes = pipes
        self.out, self.into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, _SIZE)
        except OSError:
            # EPERM beyond a user's share of pipe memory: smaller steps, but as right.
            self.size = fcntl.fcntl(self.into, fcntl.F_GETPIPE_SZ)

    def give_back(self) -> None:
        """It is empty, and may serve somebody else."""
        self._pipes.given_back(self)

    def discard(self) -> None:
        """It has bytes inside that nobody wants."""
        self._pipes.made -= 1
        os.close(self.out)
        os.close(self.into)


class Pipes:
    """The stock.

    Args:
        most: pipes that exist at a time.

    Attributes:
        made: pipes that exist now.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self.made = 0
        self._idle: list[Pipe] = []
        self._closed = False

    def take(self) -> Pipe | None:
        """An empty pipe; None when all are in use, or there are no descriptors for one more."""
        if self._idle:
            return self._idle.pop()
        if self._closed or self.made >= self._most:
            return None
        try:
            pipe = Pipe(self)
        except OSError:
            return None
        self.made += 1
        return pipe

    def given_back(self, pipe: Pipe) -> None:
        """A pipe is free again."""
        if self._closed:
            pipe.discard()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Closes what is idle now, and the rest when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().discard()
