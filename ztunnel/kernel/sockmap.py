"""Pairs of sockets that the kernel joins (sockmap). See `verdict` for the program."""

import errno
import logging
import socket
import struct
from collections.abc import Callable
from typing import Final

from ztunnel.kernel import verdict
from ztunnel.kernel.bpf import ARRAY, HASH, SOCKHASH, Map, attach_to_map, close, load_stream_verdict
from ztunnel.kernel.ring import NumberRing
from ztunnel.kernel.verdict import CHARGED, EXPECTED, FIELDS, LEG, LIMIT, PASSED, REDIRECTED

log = logging.getLogger("ztunnel.kernel")

_SO_COOKIE: Final = 57
_DESCRIPTOR: Final = struct.Struct("=I")
_NUMBER: Final = struct.Struct("=I")


class Leg:
    """One socket of a joined pair, as the program sees it. Counts are bytes that arrived at it.

    Attributes:
        passes: called when bytes begin to pass to user space.
    """

    __slots__ = ("_at", "_fields", "cookie", "number", "passes")

    def __init__(self, fields: memoryview, number: int, cookie: bytes) -> None:
        self._fields = fields
        self._at = number * FIELDS
        self.number = number
        self.cookie = cookie
        self.passes: Callable[[], None] = _nobody

    @property
    def passed(self) -> int:
        """Handed to user space."""
        return int(self._fields[self._at + PASSED])

    @property
    def redirected(self) -> int:
        """Handed to the other socket."""
        return int(self._fields[self._at + REDIRECTED])

    @property
    def charged(self) -> int:
        """Taken off credits so far."""
        return int(self._fields[self._at + CHARGED])

    @property
    def redirecting(self) -> bool:
        """Whether the next packet goes to the other socket."""
        fields, at = self._fields, self._at
        return fields[at + PASSED] == fields[at + EXPECTED] and (
            fields[at + CHARGED] < fields[at + LIMIT]
        )

    def grant(self, expected: int, credit: int) -> None:
        """Redirects from here on, up to `credit`, if `expected` bytes have passed and no more."""
        fields, at = self._fields, self._at
        # In this order: a new limit must not become good under an old count.
        fields[at + EXPECTED] = expected
        fields[at + LIMIT] = self.charged + credit


def _nobody() -> None:
    pass


class Sockmap:
    """The maps and the program of one process.

    Args:
        pairs: how many may be joined at a time.

    Raises:
        OSError: this kernel, or this process's rights, do not allow it.
    """

    def __init__(self, pairs: int = 4096) -> None:
        count = 2 * pairs
        self._opened: list[Map | NumberRing] = []
        try:
            self._peers = Map(SOCKHASH, 8, 4, count)
            self._opened.append(self._peers)
            self._numbers = Map(HASH, 8, 4, count)
            self._opened.append(self._numbers)
            legs = Map(ARRAY, 4, LEG.size, count, mapped=True)
            self._opened.append(legs)
            self.ring = NumberRing(max(count, 256))
            self._opened.append(self.ring)
            program = load_stream_verdict(
                verdict.verdict(self._peers.fd, self._numbers.fd, legs.fd, self.ring.fd)
            )
            try:
                attach_to_map(program, self._peers)
            finally:
                close(program)  # the map holds it now
            self._mapping = legs.mapping()
        except BaseException:
            for opened in self._opened:
                opened.close()
            raise
        self._fields = memoryview(self._mapping).cast("Q")
        self._free = list(range(count))
        self._legs: dict[int, Leg] = {}

    @property
    def full(self) -> bool:
        """Whether no other pair can be joined now."""
        return len(self._free) < 2

    def join(self, one: socket.socket, other: socket.socket) -> tuple[Leg, Leg] | None:
        """Puts two connected sockets into the map; None when it is full. Raises OSError.

        Nothing is redirected yet: everything passes until a leg is granted credit.
        """
        if self.full:
            return None
        pair = self._leg(one), self._leg(other)
        try:
            for leg in pair:
                self._numbers.update(leg.cookie, _NUMBER.pack(leg.number))
            for leg, sock in zip(pair, (other, one), strict=True):
                self._peers.update(leg.cookie, _DESCRIPTOR.pack(sock.fileno()))
        except OSError:
            self.part(pair)
            raise
        return pair

    def part(self, pair: tuple[Leg, Leg]) -> None:
        """Takes a pair out. What has passed and was not read is lost with it."""
        for leg in pair:
            for one in (self._peers, self._numbers):
                try:
                    one.delete(leg.cookie)
                except OSError as error:
                    # The kernel takes a socket out by itself when it is disconnected.
                    if error.errno != errno.ENOENT:
                        log.error("a socket stays in the map: %s", error)
            self._legs.pop(leg.number, None)
            self._free.append(leg.number)

    def serve(self) -> None:
        """Tells the legs whose bytes have begun to pass; call when the ring is readable."""
        for number in self.ring.take():
            leg = self._legs.get(number)
            if leg is not None:
                try:
                    leg.passes()
                except Exception:  # the other flows must still be told
                    log.exception("a flow in the kernel could not go on by hand")

    def close(self) -> None:
        """Ends it; joined sockets stop redirecting when they close."""
        self._fields.release()
        self._mapping.close()
        for opened in self._opened:
            opened.close()

    def _leg(self, sock: socket.socket) -> Leg:
        number = self._free.pop()
        cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
        at = number * FIELDS
        for field in range(FIELDS):
            self._fields[at + field] = 0
        leg = self._legs[number] = Leg(self._fields, number, cookie)
        return leg
