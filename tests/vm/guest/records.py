"""The kernel's records against our own: one end of a connection each."""

from __future__ import annotations

import errno
import os
import random
import socket
from typing import Final

from tests.support.sockets import loopback
from tests.support.tls import open_all, seal
from ztunnel.linux import ktls
from ztunnel.linux.tcp_info import progress
from ztunnel.tls.errors import Alert
from ztunnel.tls.key_schedule import SUITES
from ztunnel.tls.records import Direction, OwnRecords
from ztunnel.tls.session import OVERHEAD

CIPHERS: Final = tuple(SUITES)
_SIZES: Final = (1, 5, 100, 16383, 16384, 16385, 70000)
_PATIENCE: Final = 60.0  # seconds


class Pair:
    """A socket whose records the kernel does, and the other end with records of our own.

    Args:
        used: records that have passed in each direction before the kernel takes over.
    """

    def __init__(self, suite: str, used: int = 0) -> None:
        kind = SUITES[suite]
        client, server = os.urandom(kind.hash_length), os.urandom(kind.hash_length)
        self.book = OwnRecords(Direction(kind, client), Direction(kind, server), server_side=False)
        self.own = OwnRecords(Direction(kind, server), Direction(kind, client), server_side=True)
        self.kernel, self.far = loopback()
        self.kernel.settimeout(_PATIENCE)
        self.far.settimeout(_PATIENCE)
        for number in range(used):
            text = b"record %d" % number
            assert open_all(self.own, seal(self.book, text))[1] == text
            assert open_all(self.book, seal(self.own, text))[1] == text
        ktls.attach(self.kernel)
        for sending in (True, False):
            self.set_keys(sending=sending)
        self.book.hand_over_sealing()
        self._wire = b""

    def set_keys(self, *, sending: bool) -> None:
        """Gives the kernel what our own layer would go on with."""
        keys = self.book.ktls_parameters(sending=sending)
        ktls.set_keys(self.kernel, keys.suite, keys.key, keys.iv, keys.sequence, sending=sending)

    def own_receives(self, count: int) -> bytes:
        """Bytes that our own layer opens; fewer when the session has ended."""
        data = b""
        while len(data) < count and not self.own.ended:
            consumed, plain = open_all(self.own, self._wire)
            self._wire = self._wire[consumed:]
            data += plain
            if len(data) < count and not self.own.ended:
                more = self.far.recv(1 << 16)
                assert more, f"the stream ended after {len(data)} of {count} bytes"
                self._wire += more
        return data

    def kernel_receives(self, count: int) -> bytes:
        """The same through the kernel."""
        data = bytearray()
        while len(data) < count:
            some = self.kernel.recv(count - len(data))
            assert some, f"the stream ended after {len(data)} of {count} bytes"
            data += some
        return bytes(data)

    def talk(self, rng: random.Random) -> int:
        """Both ways, in pieces of every size. Returns how much."""
        total = 0
        for size in rng.sample(_SIZES, len(_SIZES)):
            up, down = rng.randbytes(size), rng.randbytes(size)
            self.kernel.sendall(up)
            assert self.own_receives(size) == up, f"{size} bytes up"
            self.far.sendall(seal(self.own, down))
            assert self.kernel_receives(size) == down, f"{size} bytes down"
            total += 2 * size
        return total

    def close(self) -> None:
        self.kernel.close()
        self.far.close()


async def both_ways(suite: str) -> dict[str, int]:
    """From record 0 and from a later one, and the kernel counts as we do."""
    moved = 0
    for used in (0, 3):
        pair = Pair(suite, used)
        moved += pair.talk(random.Random(used))
        counted = ktls.records_used(pair.kernel, suite, sending=False)
        theirs = pair.own.ktls_parameters(sending=True).sequence
        assert counted == theirs, (counted, theirs)
        counted = ktls.records_used(pair.kernel, suite, sending=True)
        seen = pair.own.ktls_parameters(sending=False).sequence
        assert counted == seen, (counted, seen)
        _spliced(pair)
        pair.close()
    return {"bytes": moved}


def _spliced(pair: Pair) -> None:
    """A header, and payload through a pipe, in both directions."""
    data = os.urandom(60_000)
    out, into = os.pipe2(os.O_CLOEXEC)
    try:
        assert os.write(into, data) == len(data)
        pair.kernel.send(b"123456789", socket.MSG_MORE)
        assert os.splice(out, pair.kernel.fileno(), len(data)) == len(data)
        assert pair.own_receives(9 + len(data)) == b"123456789" + data
        pair.far.sendall(seal(pair.own, b"987654321" + data))
        assert pair.kernel_receives(9) == b"987654321"
        got = 0
        while got < len(data):
            got += os.splice(pair.kernel.fileno(), into, len(data) - got)
        assert os.read(out, len(data)) == data
    finally:
        os.close(out)
        os.close(into)


def _refusal(sock: socket.socket) -> int | None:
    """Why nothing can be received."""
    try:
        sock.recv(100)
    except OSError as problem:
        return problem.errno
    return None


async def alerts() -> None:
    """A closure and a failure, in both directions, as control messages."""
    suite = "TLS_AES_256_GCM_SHA384"
    for alert in (Alert.CLOSE_NOTIFY, Alert.CERTIFICATE_REVOKED):
        pair = Pair(suite)
        pair.kernel.sendall(b"before")
        ktls.send_control(pair.kernel, ktls.ALERT, pair.book.alert(alert))
        assert pair.own_receives(100) == b"before"
        assert pair.own.ended
        assert pair.own.closed is (alert is Alert.CLOSE_NOTIFY)
        error = pair.own.error
        assert error is None or error.alert is alert
        pair.close()

        pair = Pair(suite)
        pair.far.sendall(seal(pair.own, b"before") + pair.own.alert(alert))
        assert pair.kernel_receives(6) == b"before"
        assert _refusal(pair.kernel) == errno.EIO, "there is a record of another kind"
        kind, count = ktls.receive(pair.kernel, memoryview(bytearray(100)))
        assert (kind, count) == (ktls.ALERT, 2)
        pair.close()


async def forged() -> None:
    """A record that does not authenticate is an error, and no bytes."""
    pair = Pair("TLS_AES_128_GCM_SHA256")
    wire = bytearray(seal(pair.own, b"x" * 100))
    wire[50] ^= 1
    pair.far.sendall(wire)
    assert _refusal(pair.kernel) == errno.EBADMSG
    pair.close()


async def held_back() -> dict[str, int]:
    """What was written and TCP has not been given yet can be counted, and gets there.

    On a machine that is busy, TCP may have taken it all by the time it is counted.
    """
    for _ in range(19):
        try:
            return await held_back_once()
        except AllGiven:
            continue
    return await held_back_once()


class AllGiven(Exception):
    """Nothing was left to be counted."""


async def held_back_once() -> dict[str, int]:
    suite = "TLS_AES_256_GCM_SHA384"
    pair = Pair(suite)
    pair.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pair.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    pair.kernel.setblocking(False)
    written = 0

    def missing() -> int:
        records = ktls.records_used(pair.kernel, suite, sending=True)
        return written + OVERHEAD * records - progress(pair.kernel)[1]

    try:
        while True:
            written += pair.kernel.send(bytes(16384))
    except BlockingIOError:
        held = missing()
    assert pair.own_receives(written) == bytes(written)
    assert missing() == 0
    pair.close()
    if not held:
        raise AllGiven("TCP has been given everything")
    return {"written": written, "held back": held}


async def key_updates() -> None:
    """Both ends change their keys, in turns, many times."""
    for suite in CIPHERS:
        pair = Pair(suite)
        rng = random.Random(7)
        for _ in range(5):
            pair.book.renew_keys()
            ktls.send_control(pair.kernel, ktls.HANDSHAKE, pair.book.take_key_update())
            pair.set_keys(sending=True)
            pair.kernel.sendall(b"after ours")
            assert pair.own_receives(10) == b"after ours"
            # It was asked to change its own: that goes in front of its next data.
            pair.far.sendall(seal(pair.own, b"after theirs"))
            buffer = memoryview(bytearray(100))
            kind, count = ktls.receive(pair.kernel, buffer)
            assert kind == ktls.HANDSHAKE
            assert pair.book.control(kind, bytes(buffer[:count]), True)
            pair.set_keys(sending=False)
            assert pair.kernel_receives(12) == b"after theirs"
            pair.talk(rng)
        pair.close()
