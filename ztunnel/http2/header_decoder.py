"""HPACK decoding (RFC 7541) on the tables and the Huffman code of the `hpack` library.

The library's own decoder gives up in the middle of a header list that is too large, after which
the connection's compression state is lost and every tunnel on it with it. This one decodes such a
block to its end without keeping it, so that only the one stream pays. It also takes a third of
the time for the literals that tunnels are made of. Tests compare the two on random blocks.
"""

from functools import lru_cache
from typing import Final

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from ztunnel.http2.errors import ConnectionFault, ErrorCode, StreamFault
from ztunnel.http2.headers import Headers
from ztunnel.http2.limits import MAX_TABLE_SIZE_UPDATES

_MAX_INTEGER_BYTES: Final = 5
_REMEMBERED_STRING: Final = 128
_STATIC: Final = HeaderTable.STATIC_TABLE
_STATIC_LENGTH: Final = len(_STATIC)


class HeaderDecoder:
    """The receiving side's compression state of one connection.

    Args:
        table_size: SETTINGS_HEADER_TABLE_SIZE that we announce.
        max_list_size: Largest header list kept, counted as in RFC 9113 section 6.5.2.
    """

    def __init__(self, table_size: int, max_list_size: int) -> None:
        self._table: HeaderTable = HeaderTable()
        self._announced: int = table_size
        # Until the peer has acknowledged a smaller table it may use the protocol's default.
        self._allowed: int = max(table_size, HeaderTable.DEFAULT_SIZE)
        self._max_list_size: int = max_list_size

    def settings_acknowledged(self) -> None:
        """The peer knows our table size, and must have shrunk its table by its next block."""
        self._allowed = self._announced

    def decode(self, block: bytes) -> Headers:
        """The header list of one whole block.

        Raises:
            ConnectionFault: The block is not HPACK; the compression state is lost.
            StreamFault: The list is larger than we take; the state is intact.
        """
        try:
            headers, size = self._decode(block)
        except HPACKDecodingError as error:
            raise _broken(str(error)) from error
        except IndexError as error:
            raise _broken("the header block ends in the middle of a field") from error
        if size > self._max_list_size:
            raise StreamFault(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"a header list of {size} bytes is more than the {self._max_list_size} allowed",
            )
        return headers

    def _decode(self, block: bytes) -> tuple[Headers, int]:
        headers: Headers = []
        table = self._table
        room = self._max_list_size
        size = 0
        pos = self._read_size_updates(block)
        end = len(block)
        while pos < end:
            first = block[pos]
            if first & 0x80:
                index = first & 0x7F
                pos += 1
                if index == 0x7F:
                    index, pos = _integer(block, pos, index)
                # The library's error names the index.
                field = (
                    _STATIC[index - 1] if 0 < index <= _STATIC_LENGTH else table.get_by_index(index)
                )
            else:
                if first & 0x40:
                    bits = 0x3F
                elif first & 0x20:
                    raise HPACKDecodingError("a table size update in the middle of a block")
                else:
                    bits = 0x0F
                index = first & bits
                pos += 1
                if index == bits:
                    index, pos = _integer(block, pos, index)
                if not index:
                    name, pos = _string(block, pos)
                elif index <= _STATIC_LENGTH:
                    name = _STATIC[index - 1][0]
                else:
                    name = table.get_by_index(index)[0]
                length = block[pos]
                stop = pos + 1 + length
                if length < 0x7F and stop <= end:  # short and plain: what tunnels are made of
                    value = block[pos + 1 : stop]
                    pos = stop
                else:
                    value, pos = _string(block, pos)
                field = (name, value)
                if first & 0x40:
                    table.add(name, value)
            size += 32 + len(field[0]) + len(field[1])
            if size <= room:
                headers.append(field)
        return headers, size

    def _read_size_updates(self, block: bytes) -> int:
        pos = 0
        end = len(block)
        updates = 0
        while pos < end and block[pos] & 0xE0 == 0x20:
            size = block[pos] & 0x1F
            pos += 1
            if size == 0x1F:
                size, pos = _integer(block, pos, size)
            updates += 1
            if updates > MAX_TABLE_SIZE_UPDATES:
                raise HPACKDecodingError("too many table size updates in one block")
            if size > self._allowed:
                raise HPACKDecodingError(
                    f"a table of {size} bytes is more than the {self._allowed} announced"
                )
            self._table.maxsize = size
        if self._table.maxsize > self._allowed:
            raise HPACKDecodingError(
                f"the table was not made smaller to the {self._allowed} bytes announced"
            )
        return pos


def _integer(block: bytes, pos: int, value: int) -> tuple[int, int]:
    """The rest of an integer that did not fit its prefix (RFC 7541 section 5.1)."""
    shift = 0
    last = pos + _MAX_INTEGER_BYTES
    while pos < last:
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    raise HPACKDecodingError("an integer has too many bytes")


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    first = block[pos]
    length = first & 0x7F
    pos += 1
    if length == 0x7F:
        length, pos = _integer(block, pos, length)
    stop = pos + length
    if stop > len(block):
        raise HPACKDecodingError("a string is longer than its header block")
    text = block[pos:stop]
    if first & 0x80:
        text = _remembered(text) if length <= _REMEMBERED_STRING else decode_huffman(text)
    return text, stop


# Peers with Huffman coding say the same names, addresses and hosts again and again, and the
# library takes 10 to 30 µs for each.
@lru_cache(maxsize=2048)
def _remembered(text: bytes) -> bytes:
    return decode_huffman(text)


def _broken(reason: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"header block: {reason}")
