"""HPACK encoding (RFC 7541) with a policy made for tunnels.

Measured: the `hpack` library's encoder costs 41 µs for one CONNECT header block with Huffman
coding, 18 µs without. On a tunnel nearly all of it is the same each time, so: fields whose values
repeat go into the dynamic table once and are one byte from then on; all others are plain literals,
not indexed and not Huffman coded, which is a few copies. Decoding needs no such policy, since the
peer chooses: see :mod:`ztunnel.http2.header_decoder`.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from hpack.table import HeaderTable

from ztunnel.http2.headers import Header
from ztunnel.http2.limits import MAX_ENCODER_TABLE

INDEXED_NAMES: Final = frozenset(
    (
        b":method", b":scheme", b"baggage", b"x-forwarded-network", b"server",
        b"content-type", b"user-agent", b"accept", b"accept-encoding", b"accept-language",
        b"content-encoding", b"te", b"vary", b"cache-control", b"grpc-encoding",
        b"grpc-accept-encoding", b"grpc-status", b":status", b"x-istio-source",
    )
)  # fmt: skip
"""Fields whose values repeat from message to message."""

NEVER_INDEXED: Final = frozenset(
    (b"authorization", b"proxy-authorization", b"cookie", b"set-cookie")
)
"""Secrets, which no hop may put into a table (RFC 7541 section 7.1.3)."""

_STATIC: Final[dict[Header, int]] = {
    entry: index for index, entry in reversed(list(enumerate(HeaderTable.STATIC_TABLE, 1)))
}
_STATIC_NAMES: Final[dict[bytes, int]] = {
    entry[0]: index for index, entry in reversed(list(enumerate(HeaderTable.STATIC_TABLE, 1)))
}
_STATIC_LENGTH: Final = len(HeaderTable.STATIC_TABLE)
_MOST_REMEMBERED: Final = 256


class HeaderEncoder:
    """The sending side's compression state of one connection."""

    def __init__(self) -> None:
        # Entries are numbered as they come; the index on the wire counts back from the newest.
        self._numbers: dict[Header, int] = {}
        self._entries: deque[Header] = deque()
        self._added: int = 0
        self._size: int = 0
        self._limit: int = MAX_ENCODER_TABLE
        self._smallest: int = -1
        # Blocks made before, for as long as the table and with it the indexes stay what they are.
        self._remembered: dict[tuple[Header, ...], bytes] = {}

    def set_table_size(self, allowed: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE changed; the next block says what we make of it."""
        limit = min(allowed, MAX_ENCODER_TABLE)
        if limit == self._limit:
            return
        self._limit = limit
        self._remembered.clear()
        # The smallest of several changes must be signalled as well (RFC 7541 section 4.2).
        self._smallest = limit if self._smallest < 0 else min(self._smallest, limit)
        self._evict(limit)

    def encode(self, headers: Iterable[Header]) -> bytes:
        """One header block for the list; names must be lower case, pseudo-headers first."""
        block = bytearray()
        if self._smallest >= 0:
            if self._smallest != self._limit:
                block += integer(self._smallest, 5, 0x20)
            block += integer(self._limit, 5, 0x20)
            self._smallest = -1
        numbers = self._numbers
        for field in headers:
            index = _STATIC.get(field, 0)
            if not index:
                number = numbers.get(field, -1)
                if number >= 0:
                    index = _STATIC_LENGTH + self._added - number
            if index:
                if index < 127:
                    block.append(0x80 | index)
                else:
                    block += integer(index, 7, 0x80)
                continue
            name, value = field
            index = _STATIC_NAMES.get(name, 0)
            if name in INDEXED_NAMES and self._add(field):
                block += integer(index, 6, 0x40)
            elif name in NEVER_INDEXED:
                block += integer(index, 4, 0x10)
            elif index < 15:
                block.append(index)
            else:
                block += integer(index, 4, 0x00)
            if not index:
                _string(block, name)
            _string(block, value)
        return bytes(block)

    def encode_again(self, headers: tuple[Header, ...]) -> bytes:
        """The same for a list that is said again and again: it is put together only once."""
        block = self._remembered.get(headers)
        if block is None:
            steady, added = self._smallest < 0, self._added
            block = self.encode(headers)
            if steady and added == self._added:
                if len(self._remembered) >= _MOST_REMEMBERED:
                    self._remembered.clear()
                self._remembered[headers] = block
        return block

    def _add(self, field: Header) -> bool:
        size = 32 + len(field[0]) + len(field[1])
        # A value that would throw out most of the table is better said again.
        if size > self._limit // 2:
            return False
        self._remembered.clear()
        self._evict(self._limit - size)
        self._entries.append(field)
        self._numbers[field] = self._added
        self._added += 1
        self._size += size
        return True

    def _evict(self, room: int) -> None:
        while self._size > room:
            name, value = oldest = self._entries.popleft()
            self._size -= 32 + len(name) + len(value)
            del self._numbers[oldest]


def _string(block: bytearray, text: bytes) -> None:
    length = len(text)
    if length < 127:
        block.append(length)
    else:
        block += integer(length, 7, 0x00)
    block += text


def literal(name: bytes, value: bytes) -> bytes:
    """A field that is in no table and goes into none, its name spelt out (section 6.2.2)."""
    if len(name) < 127 and len(value) < 127:
        return b"\0%c%b%c%b" % (len(name), name, len(value), value)
    block = bytearray(1)
    _string(block, name)
    _string(block, value)
    return bytes(block)


def integer(value: int, bits: int, first: int) -> bytes:
    """An HPACK integer with an n-bit prefix (RFC 7541 section 5.1), ``first`` in the rest."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
