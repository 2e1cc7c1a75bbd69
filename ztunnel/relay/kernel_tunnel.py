"""A tunnel whose TLS records the kernel seals and opens once it carries bulk (kTLS).

It begins as any tunnel: for small messages, records of our own that are sealed once per round are
the cheaper way. Each direction moves on its own when it has carried enough in large pieces, and at
a record boundary: the sending one when nothing waits to be sent, the receiving one after reading
exactly to the end of the record that has begun to arrive. A kernel that refuses leaves that
direction where it is. Nothing ever moves back, and nothing need: HTTP/2 stays in user space, which
can read and write the plain bytes of such a socket as well.

Payload then does not have to pass through user space: the 9 bytes of a DATA frame's header are
written, or read, and the payload is spliced through a pipe between this socket and the
application's. Where there is no pipe, a reader is slow, or frames are small, it is copied.

What the kernel leaves to us: alerts and KeyUpdates come and go as control messages; keys change
when the kernel's count of records says so; and a socket must not be closed before the kernel has
given the last record to TCP, which its close would drop.
"""

import errno
import socket
from typing import Final

from ztunnel.hbone.client import TunnelClient
from ztunnel.hbone.server import TunnelServer
from ztunnel.http2.stream import Stream
from ztunnel.linux import ktls
from ztunnel.linux.tcp_info import progress
from ztunnel.relay.buffers import HEADER, READ, RECORD
from ztunnel.relay.engine import Engine
from ztunnel.relay.piped import NOTHING, Piped, Unpiped, fill
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.tunnel import Keepalive, Tunnel, TunnelOwner
from ztunnel.tls.errors import Alert
from ztunnel.tls.records import OwnRecords
from ztunnel.tls.session import OVERHEAD, Session

# Not Final: a compiled module would hold the values, and tests could not change them.
MOVE_AFTER: int = 1 << 20  # bytes of bulk in one direction before it moves into the kernel
LARGE: int = 1 << 16  # a read of so many bytes from the peer is bulk
SPLICE_FROM: Final = 1 << 15  # bytes of a frame's payload that are worth two system calls

_ALERTS: Final = {
    errno.EBADMSG: (Alert.BAD_RECORD_MAC, "a record that does not authenticate"),
    errno.EMSGSIZE: (Alert.RECORD_OVERFLOW, "a record that is too long"),
}


def make_tunnel(
    engine: Engine,
    sock: socket.socket,
    session: Session,
    http: TunnelClient | TunnelServer,
    leftover: bytes,
    owner: TunnelOwner,
) -> Tunnel:
    """A tunnel that may move into the kernel, where that path is on and can serve it."""
    tcp = sock.family in (socket.AF_INET, socket.AF_INET6)  # an inner tunnel's socket is none
    if engine.paths.ktls and tcp and isinstance(session, OwnRecords):
        return KernelTunnel(engine, sock, session, http, leftover, owner)
    return Tunnel(engine, sock, session, http, leftover, owner)


class KernelTunnel(Tunnel):
    """See the module's docstring, and `Tunnel`.

    Attributes:
        sending, receiving: whether the kernel does that direction.
        spliced_out, spliced_in: payload bytes that went past user space.
    """

    __slots__ = (
        "_after_data", "_attached", "_bulk_in", "_bulk_out", "_due", "_exact", "_header",
        "_key_update", "_paths", "_piped", "_records", "_refused", "_sequence", "_wanted",
        "receiving", "sending", "spliced_in", "spliced_out",
    )  # fmt: skip

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        records: OwnRecords,
        http: TunnelClient | TunnelServer,
        leftover: bytes,
        owner: TunnelOwner,
    ) -> None:
        super().__init__(engine, sock, records, http, leftover, owner)
        self._records = records
        self._paths = engine.paths
        self.sending = False
        self.receiving = False
        self.spliced_out = 0
        self.spliced_in = 0
        self._attached = False
        self._refused = False
        self._wanted = False  # receiving moves at the next record boundary
        self._bulk_out = 0
        self._bulk_in = 0
        self._exact = False  # the next frame is likely to be bulk: read its header alone
        self._after_data = False
        self._header = bytearray(HEADER)
        self._key_update = b""  # taken, not sent yet
        self._piped: Piped | None = None  # payload whose header was sent
        self._due = 0  # bytes that TCP is to be given in all, without the overhead of …
        self._sequence = 0  # … records from this number on

    # ---- into the kernel

    def enter_kernel(self) -> None:
        """Moves both directions, each as soon as it can be."""
        self._move_sending()
        self._wanted = not self.receiving and not self._refused
        self._move_receiving()

    def _move_sending(self) -> None:
        if self.sending or self._refused or self.blocked or self.closed:
            return
        try:
            written = progress(self.sock)[1]
            self._sequence = self._set_keys(sending=True)
        except OSError as error:
            self._refuse(error)
            return
        self._records.hand_over_sealing()
        self._due = written
        self.sending = True
        self.path = "ktls"
        self.splices = True

    def _move_receiving(self) -> None:
        if not self._wanted or self._rest or self.closed or self._records.ended:
            return
        self._wanted = False
        try:
            self._set_keys(sending=False)
        except OSError as error:
            self._refuse(error)
            return
        self.receiving = True
        self.path = "ktls"

    def _set_keys(self, *, sending: bool) -> int:
        """Gives the kernel the keys of a direction. Returns the next record's number."""
        if not self._attached:
            ktls.attach(self.sock)
            self._attached = True
        keys = self._records.ktls_parameters(sending=sending)
        ktls.set_keys(self.sock, keys.suite, keys.key, keys.iv, keys.sequence, sending=sending)
        return keys.sequence

    def _refuse(self, error: OSError) -> None:
        self._refused = True
        self._wanted = False
        if error.errno != errno.ENOTCONN:  # that one is closing
            self._paths.ktls_failed(error)

    # ---- from the peer

    def _read(self) -> None:
        if self.receiving:
            self._read_plain()
        elif self._wanted:
            rest = self._rest
            if len(rest) < 5:
                self._receive(5 - len(rest))
            else:
                self._receive(5 + int.from_bytes(rest[3:5], "big") - len(rest))
        else:
            self._receive(READ)

    def _open(self, end: int) -> None:
        super()._open(end)
        if end >= LARGE and not self._refused:
            self._bulk_in += end
            self._wanted = self._bulk_in >= MOVE_AFTER
        if self._wanted:
            self._move_receiving()

    def _read_plain(self) -> None:
        http = self.http
        left = READ
        while left > 0 and not self.closed:
            moved = self._splice_in() if http.payload_left >= SPLICE_FROM else 0
            if not moved:
                moved = self._read_some()
            if moved < 0:
                return
            left -= moved

    def _splice_in(self) -> int:
        """Moves payload to its application. Bytes; 0: it must be read, -1: there is nothing."""
        http = self.http
        stream = http.payload_stream
        flow = stream.owner if stream is not None else None
        if not isinstance(flow, StreamFlow) or not flow.takes_pipe:
            return 0
        try:
            most = min(http.payload_left, READ)  # others are to have their turn
            piped, count = fill(self._paths, self.fd, most, by_record=True)
        except OSError:
            return 0  # reading says the same
        if piped is None:
            return NOTHING if count == NOTHING else 0
        self.spliced_in += count
        self._after_data = True
        ended = http.payload_moved(count)
        self._exact = True
        flow.take_piped(piped, ended)
        if http.out and not self.dirty:
            self.mark_dirty()
        return count

    def _read_some(self) -> int:
        plain = self.buffers.plain
        most = min(self.http.boundary, READ) if self._exact else READ
        try:
            count = self.recv_into(plain[:most])
        except BlockingIOError:
            return -1
        except OSError as error:
            if error.errno == errno.EIO:
                return self._read_control()
            self._receive_failed(error)
            return -1
        return self._take(count)

    def _take(self, count: int) -> int:
        """Plain bytes are in the buffer; or none, at the end of the connection."""
        if not count:
            self.close("the peer closed the tunnel's connection")
            return -1
        http = self.http
        self._after_data = True
        payload = self._exact and http.payload_left > 0
        self._dispatch(http.receive(self.buffers.plain[:count], self.engine.now))
        # As long as much comes, or where a frame has just been read to its end.
        self._exact = payload or count >= LARGE or http.payload_left >= SPLICE_FROM
        if http.out and not self.dirty:
            self.mark_dirty()
        return count

    def _read_control(self) -> int:
        """Reads what is no data."""
        plain = self.buffers.plain
        try:
            kind, count = ktls.receive(self.sock, plain)
        except BlockingIOError:
            return -1
        except OSError as error:
            self._receive_failed(error)
            return -1
        if kind == ktls.DATA:
            return self._take(count)
        records = self._records
        changed = records.control(kind, bytes(plain[:count]), self._after_data)
        self._after_data = False
        if changed:
            try:
                self._set_keys(sending=False)
            except OSError as error:
                self._no_new_key(error, records.alert(Alert.INTERNAL_ERROR))
                return -1
        if records.ended:
            self._session_ended()
            return -1
        if records.update_due and not self.dirty:
            self.mark_dirty()
        return count

    def _receive_failed(self, error: OSError) -> None:
        alert, words = _ALERTS.get(error.errno or 0, (None, ""))
        if alert is None:
            self.close(f"the tunnel's connection broke: {error.strerror or error}")
        else:
            # The socket keeps the error for whoever comes next, which must not be the alert.
            self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.close(f"TLS: the peer sent {words}", alert=self._records.alert(alert))

    # ---- to the peer

    def send_scattered(self, stream: Stream, count: int, one_frame: bool) -> None:
        super().send_scattered(stream, count, one_frame)
        if not self.sending:
            self._bulk_out += count
            if self._bulk_out >= MOVE_AFTER:
                self._move_sending()

    def send_spliced(self, flow: StreamFlow, most: int) -> int:
        """Moves what an application has sent, as one DATA frame.

        Nothing may be pending or blocked, and the windows must have room for `most` bytes.

        Returns:
            How many; 0 at the end of its stream, or NOTHING or MUST_BE_READ as `piped.fill`.

        Raises:
            OSError: the application's socket is broken.
        """
        if self._records.update_due and not self._renew_key():
            return NOTHING
        most = min(most, self.http.max_send_frame)
        piped, count = fill(self._paths, flow.fd, most, by_record=False)
        if piped is None:
            return count
        self.spliced_out += count
        self._piped = piped
        self.http.write_data_header(self._header, 0, flow.stream, count)
        sent = self._send_some(self._header, socket.MSG_MORE)
        if sent < HEADER and not self.closed:
            self._unsent += self._header[sent:]
            self._block()
        elif not self.closed and not self._empty_pipe() and not self.closed:
            self._block()
        return count

    def _seal_pending(self) -> None:
        if not self.sending:
            super()._seal_pending()
            return
        if self._records.update_due and not self._renew_key():
            return
        if self.http.out:
            self._put(memoryview(self.http.take()))

    def _send_gathered(self, total: int) -> None:
        if not self.sending:
            super()._send_gathered(total)
            return
        scatter = self.buffers.scatter
        pieces = []
        position = 0
        left = total
        while left > 0:
            pieces.append(scatter[position : position + min(left, RECORD)])
            position += RECORD + 1
            left -= RECORD
        try:
            sent = self.sock.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(f"the tunnel's connection broke: {error.strerror or error}")
            return
        self._due += sent
        if sent < total:
            self._unsent += b"".join(pieces)[sent:]
            self._block()

    def _put(self, data: memoryview) -> None:
        if self.blocked or not self.sending:
            super()._put(data)
            return
        sent = self._send_some(data, 0)
        if sent < len(data) and not self.closed:
            self._unsent += data[sent:]
            self._block()

    def _send_some(self, data: memoryview | bytearray, flags: int) -> int:
        try:
            sent = self.sock.send(data, flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.close(f"the tunnel's connection broke: {error.strerror or error}")
            return 0
        self._due += sent
        return sent

    def _empty_pipe(self) -> bool:
        """Sends payload whose header has gone; whether that was all of it."""
        piped = self._piped
        if piped is None:
            return True
        try:
            self._due += piped.empty(self.fd)
            if piped.count:
                # More follows, says the splice, so a kernel before 6.5 keeps its last record back;
                # in a small send buffer that would be for ever. Asking for no delay pushes it.
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return False
        except Unpiped as left:
            self._piped = None
            self._unsent += left.rest
            return False
        except OSError as error:
            self.close(f"the tunnel's connection broke: {error.strerror or error}")
            return False
        self._piped = None
        return True

    def _send_rest(self) -> bool:
        if not self.sending:
            return super()._send_rest()
        if self._key_update and not self._send_key_update():
            return False
        if self._unsent:
            # What follows in the pipe is the rest of the same record.
            sent = self._send_some(self._unsent, socket.MSG_MORE if self._piped is not None else 0)
            if self.closed:
                return False
            del self._unsent[:sent]
            if self._unsent:
                return False
        return self._empty_pipe()

    # ---- keys

    def renew_keys(self) -> None:
        """Changes our keys, and asks the peer to change its own."""
        self._records.renew_keys()
        if not self.dirty:
            self.mark_dirty()

    def _renew_key(self) -> bool:
        """Sends the KeyUpdate that is due, and seals under the next key; whether it is done."""
        self._key_update = self._records.take_key_update()
        if self._send_key_update():
            return True
        if not self.closed:
            self._block()
        return False

    def _send_key_update(self) -> bool:
        try:
            before = ktls.records_used(self.sock, self._records.suite, sending=True)
            ktls.send_control(self.sock, ktls.HANDSHAKE, self._key_update)
            self._due += len(self._key_update) + OVERHEAD * (before + 1 - self._sequence)
            self._key_update = b""
            self._sequence = self._set_keys(sending=True)
        except BlockingIOError:
            return False
        except OSError as error:
            self._no_new_key(error, b"")
            return False
        return True

    def _no_new_key(self, error: OSError, alert: bytes) -> None:
        words = "TLS keys must change, and this kernel does not do that"
        if error.errno == errno.EBUSY:
            self.close(f"{words} (Linux 6.14 does)", alert)
        else:
            self.close(f"{words}: {error.strerror or error}", alert)

    # ---- life

    def tick(self, now: float, keepalive: Keepalive) -> None:
        super().tick(now, keepalive)
        if self.closed:
            return
        suite = self._records.suite
        try:
            sent = ktls.records_used(self.sock, suite, sending=True) if self.sending else 0
            received = ktls.records_used(self.sock, suite, sending=False) if self.receiving else 0
        except OSError:
            return  # it is broken, and reading says so
        if sent or received:
            self._records.used(sent, received)
        if self.sending and self._records.update_due and not self.dirty:
            self.mark_dirty()

    def all_sent(self) -> bool:
        """Whether TCP has been given every record: one that it has no room for waits outside."""
        if not self.sending:
            return True
        try:
            used = ktls.records_used(self.sock, self._records.suite, sending=True)
            return progress(self.sock)[1] >= self._due + OVERHEAD * (used - self._sequence)
        except OSError:
            return True  # it is broken: nothing more can be sent

    def _send_alert(self, alert: bytes) -> None:
        if not self.sending:
            super()._send_alert(alert)
        elif alert:
            try:
                ktls.send_control(self.sock, ktls.ALERT, alert)
            except OSError:
                pass  # the peer is gone already, and has taken what it wanted

    def close(self, reason: str, alert: bytes = b"", final_words: bool = False) -> None:
        super().close(reason, alert, final_words)
        if self._piped is not None:
            self._piped.discard()
            self._piped = None
